"""The Pallas TPU kernel of ops/residual_block.py: a whole residual block, which reads x and writes the result once.

The kernel walks down the images row by row. Step t computes row t of u, and keeps the rows of u that a row of v
needs; row t - k // 2 of v and of the result follow at once. So no row is computed twice, and u and v are written only
where they are asked for. The weights of all three convolutions stay in the chip's vector memory.

As in ops/grouped_conv_tpu.py images are [H, W, N, C] inside, and small groups share a block of lanes.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from r3gan_jax.ops import grouped_conv_tiling
from r3gan_jax.ops.grouped_conv_tiling import LANES, merged_groups
from r3gan_jax.ops.grouped_conv_tpu import block_diagonal, like

WORD = 32
"""Signs per packed word."""
PIXELS = 512
"""Rows of a matrix product, unless the fewest images that fill a register have more."""
Chunk = Callable[[jax.Array, "pl.Slice | slice", jax.Array], None]
"""(block of channels, these channels, word of a row's signs) -> None."""


def supports(x: jax.Array, inner: int, groups: int, kernel_size: Sequence[int]) -> bool:
  """Returns whether the groups fill blocks of the matrix unit well, and a program fits the chip's vector memory."""
  group = inner // groups
  try:
    capacity = pltpu.get_tpu_info().vmem_capacity_bytes
  except ValueError:  # the program is not for a known chip, but for export, say
    return False
  fits = _vmem_bytes(x, inner, groups, kernel_size) <= capacity * 3 / 4
  return fits and grouped_conv_tiling.supports(groups, group, group)


def residual_block(
  x: jax.Array,
  conv1: jax.Array,
  bias1: jax.Array,
  conv2: jax.Array,
  bias2: jax.Array,
  conv3: jax.Array,
  *signs: jax.Array,
  groups: int,
  slope: float,
  wanted: Sequence[bool],
  interpret: bool = False,
) -> list[jax.Array]:
  """Computes the `wanted` of `residual_block.Results`; sums in float32. See ops/residual_block.py for the arguments.

  `interpret` emulates the kernel, for machines without a TPU; not under `jax.shard_map`.
  """
  batch, height, width, outer = x.shape
  *kernel_size, _, inner = conv2.shape
  kernel_height, kernel_width = kernel_size
  reach, side = kernel_height // 2, kernel_width // 2
  lanes = merged_groups(groups, inner // groups, inner // groups) * (inner // groups)
  columns, images = math.gcd(width, WORD), _images(x)
  words = width // columns

  def body(*refs: jax.Ref) -> None:
    x_ref, conv1_ref, bias1_ref, conv2_ref, bias2_ref, conv3_ref = refs[:6]
    u_signs_in, v_signs_in = refs[6 : 6 + len(signs)] or (None, None)
    *out_refs, x_rows, u_rows, v_row = refs[6 + len(signs) :]
    found = iter(out_refs)
    out_ref, u_ref, v_ref, u_signs_ref, v_signs_ref, u_sums_ref, v_sums_ref = (
      next(found) if asked else None for asked in wanted
    )
    step = pl.program_id(1)

    def of_chunks(channels: int, size: int, compute: Chunk) -> None:
      """Runs `compute` for each block of `size` channels, and each word of a row's signs."""

      def chunk(index: jax.Array, _: None) -> None:
        block, word = index // words, index % words
        compute(block, pl.ds(pl.multiple_of(block * size, size), size) if size < channels else slice(None), word)

      lax.fori_loop(0, channels // size * words, chunk, None)

    def activate(value, part, word, signs_in, value_ref, signs_ref, sums_ref) -> jax.Array:
      """Multiplies [columns, n, lanes] by the slope where it is not positive; writes what is wanted of it."""
      if signs_in is None:
        positive = value > 0
      else:
        bits = [lax.shift_right_logical(signs_in[0, word, :, part], jnp.int32(column)) & 1 for column in range(columns)]
        positive = jnp.stack(bits) > 0
      value = jnp.where(positive, value, slope * value)
      if value_ref is not None:
        value_ref[0, pl.ds(word * columns, columns), :, part] = value.astype(value_ref.dtype)
      if signs_ref is not None:
        bits = [jnp.where(value[column] > 0, jnp.int32(_bit(column)), jnp.int32(0)) for column in range(columns)]
        signs_ref[0, word, :, part] = sum(bits[1:], bits[0])
      if sums_ref is not None:
        sums_ref[:, part] += jnp.sum(value, axis=0)
      return value

    @pl.when(step == 0)
    def _():
      u_rows[...] = jnp.zeros_like(u_rows)
      for sums_ref in (u_sums_ref, v_sums_ref):
        if sums_ref is not None:
          sums_ref[...] = jnp.zeros_like(sums_ref)

    @pl.when(step < height)
    def _():
      x_rows[step % (reach + 1)] = x_ref[0]

      def compute(block: jax.Array, part: pl.Slice | slice, word: jax.Array) -> None:
        del block
        pixels = x_ref[0, pl.ds(word * columns, columns)].reshape(-1, outer)
        sums = jnp.dot(pixels, conv1_ref[:, part], preferred_element_type=jnp.float32).reshape(columns, images, lanes)
        sums += bias1_ref[:, part].astype(jnp.float32)[None]
        u = activate(sums, part, word, u_signs_in, u_ref, u_signs_ref, u_sums_ref)
        u_rows[step % kernel_height, pl.ds(side + word * columns, columns), :, part] = u.astype(x.dtype)

      of_chunks(inner, lanes, compute)

    @pl.when(step >= height)
    def _():
      u_rows[step % kernel_height] = jnp.zeros(u_rows.shape[1:], u_rows.dtype)

    @pl.when(step >= reach)
    def _():
      def compute(block: jax.Array, part: pl.Slice | slice, word: jax.Array) -> None:
        sums = jnp.zeros((columns * images, lanes), jnp.float32)
        for i in range(kernel_height):
          for j in range(kernel_width):
            taps = u_rows[(step + 1 + i) % kernel_height, pl.ds(word * columns + j, columns), :, part]
            kernel = conv2_ref[block, i * kernel_width + j]
            sums += jnp.dot(taps.reshape(-1, lanes), kernel, preferred_element_type=jnp.float32)
        sums = sums.reshape(columns, images, lanes) + bias2_ref[:, part].astype(jnp.float32)[None]
        v = activate(sums, part, word, v_signs_in, v_ref, v_signs_ref, v_sums_ref)
        v_row[pl.ds(word * columns, columns), :, part] = v.astype(x.dtype)

      of_chunks(inner, lanes, compute)
      if out_ref is None:
        return

      def finish(block: jax.Array, part: pl.Slice | slice, word: jax.Array) -> None:
        del block
        here = pl.ds(word * columns, columns)
        sums = jnp.dot(v_row[here].reshape(-1, inner), conv3_ref[:, part], preferred_element_type=jnp.float32)
        sums = sums.reshape(columns, images, -1) + x_rows[(step + 1) % (reach + 1), here, :, part].astype(jnp.float32)
        out_ref[0, here, :, part] = sums.astype(out_ref.dtype)

      of_chunks(outer, LANES if outer % LANES == 0 else outer, finish)

  def rows(length: int, channels: int, delay: int) -> pl.BlockSpec:
    """The row of an array [H, length, N, channels] that a step reads or writes."""
    return pl.BlockSpec((1, length, images, channels), lambda n, t: (jnp.clip(t - delay, 0, height - 1), 0, n, 0))

  def whole(weights: jax.Array) -> pl.BlockSpec:
    return pl.BlockSpec(weights.shape, lambda n, t: (0,) * weights.ndim, pipeline_mode=pl.Buffered(1))

  per_image = pl.BlockSpec((images, inner), lambda n, t: (n, 0))
  signs_specs = rows(words, inner, 0), rows(words, inner, reach)
  specs = (rows(width, outer, reach), rows(width, inner, 0), rows(width, inner, reach), *signs_specs, *[per_image] * 2)
  of_u = like(x, (height, width, batch, inner), x.dtype)
  of_signs, of_sums = like(x, (height, words, batch, inner), jnp.int32), like(x, (batch, inner), jnp.float32)
  shapes = like(x, (height, width, batch, outer), x.dtype), of_u, of_u, of_signs, of_signs, of_sums, of_sums
  out_shape = [shape for shape, asked in zip(shapes, wanted, strict=True) if asked]
  conv2 = block_diagonal(conv2, groups, inner // lanes)
  operands = (x.transpose(1, 2, 0, 3), conv1, bias1, conv2, bias2, conv3, *signs)
  accessed: list[jax.Array | jax.ShapeDtypeStruct] = [*operands, *out_shape]
  in_specs = [rows(width, outer, 0), whole(conv1), per_image, whole(conv2), per_image, whole(conv3)]
  results = pl.pallas_call(
    body,
    grid=(batch // images, height + reach),
    in_specs=[*in_specs, *signs_specs[: len(signs)]],
    out_specs=[spec for spec, asked in zip(specs, wanted, strict=True) if asked],
    out_shape=out_shape,
    scratch_shapes=[
      pltpu.VMEM((reach + 1, width, images, outer), x.dtype),
      pltpu.VMEM((kernel_height, width + 2 * side, images, inner), x.dtype),
      pltpu.VMEM((width, images, inner), x.dtype),
    ],
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=_vmem_bytes(x, inner, groups, kernel_size)
    ),
    cost_estimate=pl.CostEstimate(
      flops=2 * batch * height * width * inner * (2 * outer + kernel_height * kernel_width * lanes),
      transcendentals=0,
      bytes_accessed=sum(a.size * a.dtype.itemsize for a in accessed),
    ),
    interpret=interpret,
    name="residual_block",
  )(*operands)
  return [a.transpose(2, 0, 1, 3) if a.ndim == 4 and a.dtype == x.dtype else a for a in results]


def _images(x: jax.Array) -> int:
  """Returns the images of a program: as many as `PIXELS` allows."""
  columns, sublanes = math.gcd(x.shape[2], WORD), 32 // x.dtype.itemsize
  tiles = [n for n in range(sublanes, x.shape[0], sublanes) if x.shape[0] % n == 0] or [x.shape[0]]
  return max((n for n in tiles if n * columns <= PIXELS), default=tiles[0])


def _vmem_bytes(x: jax.Array, inner: int, groups: int, kernel_size: Sequence[int]) -> int:
  """Returns the memory of a program: weights, double-buffered rows, scratch, and values in flight."""
  _, _, width, outer = x.shape
  group = inner // groups
  outer, inner, lanes = (
    -(-channels // LANES) * LANES for channels in (outer, inner, merged_groups(groups, group, group) * group)
  )
  weights = (2 * outer + math.prod(kernel_size) * lanes) * inner
  height, side = kernel_size[0], kernel_size[1] // 2
  images = _images(x)
  rows = (2 + 2 + height // 2 + 1) * width * outer + (4 + 1) * width * inner + height * (width + 2 * side) * inner
  signs = 8 * images * (width // math.gcd(width, WORD)) * inner
  in_flight = 8 * max(PIXELS, images) * lanes
  return (weights + rows * images) * x.dtype.itemsize + 4 * (signs + in_flight) + 4 * 2**20


def _bit(column: int) -> int:
  """Returns 2^column as int32."""
  return (1 << column) if column < 31 else -(2**31)
