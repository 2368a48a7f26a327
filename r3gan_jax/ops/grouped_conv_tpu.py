"""The two operations of ops/grouped_conv.py as Pallas TPU kernels that read and write each activation once.

A TPU's matrix unit multiplies 128 x 128 blocks. Small groups share a block of lanes: m groups of I inputs and O outputs
are one block-diagonal [m I, m O] matrix a tap, which costs the matrix unit no more than one group would. XLA's own
grouped convolution instead pads every group to 128 lanes, in memory too.

Inside, images are [H, W, N, C]: batch and channels lie in the tiles of a vector register, so a tap is a shift along
untiled dimensions, which is only an address, and the padding is rows and columns that are never read. XLA keeps the
activations around the kernel in that order too (layout {3, 0, 2, 1}), so that the transposes here are no copies.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

Padding = tuple[tuple[int, int], tuple[int, int]]

LANES = 128
_VMEM_BYTES = 17 * 2**20
"""For the blocks of one program, each twice (one is in flight); a v5e has 128 MiB."""


def supports(groups: int, inputs: int, outputs: int) -> bool:
  """Whether groups of these sizes make blocks that waste little of the matrix unit."""
  return inputs < LANES and _merged(groups, inputs, outputs) * max(inputs, outputs) <= 2 * LANES


def _merged(groups: int, inputs: int, outputs: int) -> int:
  """How many groups share a block: the fewest whose lanes are whole registers, or all of them."""
  fitting = [m for m in range(1, groups) if groups % m == 0 and m * inputs % LANES == m * outputs % LANES == 0]
  return min(fitting, default=groups)


def conv(x: jax.Array, kernel: jax.Array, *, groups: int, padding: Padding, interpret: bool = False) -> jax.Array:
  """[N, H, W, G*I], [kh, kw, I, G*O] -> [N, H', W', G*O], of x's dtype; sums in float32.

  Args:
    x: the images.
    kernel: of x's dtype.
    groups: G.
    padding: zeros ((above, below), (left of, right of)) the image.
    interpret: emulate the kernel, for machines without a TPU; not under `jax.shard_map`.
  """
  height, width, _, channels = kernel.shape
  out_height, out_width = (
    n + sum(pad) - k + 1 for n, pad, k in zip(x.shape[1:3], padding, kernel.shape[:2], strict=True)
  )
  tiling = _tile(x, (x.shape[0], out_height, out_width, channels), (height, width), groups, padding)
  blocks, lanes_in, lanes_out = tiling.blocks, tiling.lanes_in, tiling.lanes_out

  def body(x_ref, kernel_ref, out_ref):
    row_tile = pl.program_id(2)

    def row(r, _):
      sums = jnp.zeros((out_width * tiling.batch, lanes_out), jnp.float32)
      for i in range(height):
        image = _padded_row(x_ref, tiling, row_tile, r + i)
        for j in range(width):
          taps = image[j : j + out_width].reshape(-1, lanes_in)
          sums += jnp.dot(taps, kernel_ref[0, i * width + j], preferred_element_type=jnp.float32)
      out_ref[r] = sums.reshape(out_width, tiling.batch, lanes_out).astype(out_ref.dtype)
      return 0

    lax.fori_loop(0, tiling.rows, row, 0)

  out = pl.pallas_call(
    body,
    grid=tiling.grid,
    in_specs=[
      tiling.in_spec,
      pl.BlockSpec((1, height * width, lanes_in, lanes_out), lambda b, n, t: (b, 0, 0, 0)),
    ],
    out_specs=tiling.out_spec,
    out_shape=_like(x, (out_height, out_width, x.shape[0], channels), x.dtype),
    compiler_params=_compiler_params("parallel", "parallel", "parallel"),
    cost_estimate=_cost(tiling, x, x.shape[0] * out_height * out_width * channels * x.dtype.itemsize),
    interpret=interpret,
    name="grouped_conv",
  )(_to_tiles(x), _block_diagonal(kernel, groups, blocks))
  return _from_tiles(out)


def weight_gradient(
  x: jax.Array,
  dy: jax.Array,
  *,
  groups: int,
  padding: Padding,
  kernel_size: tuple[int, int],
  interpret: bool = False,
) -> jax.Array:
  """[N, H, W, G*I], [N, H', W', G*O] -> [kh, kw, I, G*O], of x's dtype; sums in float32. Arguments as `conv`'s."""
  height, width = kernel_size
  tiling = _tile(x, dy.shape, kernel_size, groups, padding)
  blocks, lanes_in, lanes_out = tiling.blocks, tiling.lanes_in, tiling.lanes_out
  out_width = tiling.out_size[1]

  def body(x_ref, dy_ref, out_ref):
    row_tile = pl.program_id(2)

    @pl.when((pl.program_id(1) == 0) & (row_tile == 0))
    def _():
      out_ref[...] = jnp.zeros_like(out_ref)

    def row(r, _):
      cotangents = dy_ref[r].reshape(-1, lanes_out)
      for i in range(height):
        image = _padded_row(x_ref, tiling, row_tile, r + i)
        for j in range(width):
          taps = image[j : j + out_width].reshape(-1, lanes_in)
          out_ref[0, i * width + j] += lax.dot_general(
            taps, cotangents, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32
          )
      return 0

    lax.fori_loop(0, tiling.rows, row, 0)

  dense = pl.pallas_call(
    body,
    grid=tiling.grid,
    in_specs=[tiling.in_spec, tiling.out_spec],
    out_specs=pl.BlockSpec((1, height * width, lanes_in, lanes_out), lambda b, n, t: (b, 0, 0, 0)),
    out_shape=_like(x, (blocks, height * width, lanes_in, lanes_out), jnp.float32),
    compiler_params=_compiler_params("parallel", "arbitrary", "arbitrary"),
    cost_estimate=_cost(tiling, x, dy.size * dy.dtype.itemsize),
    interpret=interpret,
    name="grouped_conv_weight_gradient",
  )(_to_tiles(x), _to_tiles(dy))
  merged = groups // blocks
  dense = dense.reshape(blocks, height, width, merged, lanes_in // merged, merged, lanes_out // merged)
  diagonal = jnp.einsum("bhwmimo->hwibmo", dense)
  return diagonal.reshape(height, width, lanes_in // merged, groups * lanes_out // merged).astype(x.dtype)


class _Tiling(NamedTuple):
  """How the work is cut into programs (channel block, batch tile, row tile).

  Attributes:
    blocks: of lanes.
    lanes_in, lanes_out: channels of a block.
    batch: images of a tile.
    rows: rows of the output in a tile, `in_rows` of the input.
    out_size: (H', W').
    in_size: (H, W).
    grid: how many (blocks, batch tiles, row tiles).
    padding: as of the operation.
    taps: of the kernel.
  """

  blocks: int
  lanes_in: int
  lanes_out: int
  batch: int
  rows: int
  in_rows: int
  in_size: tuple[int, int]
  out_size: tuple[int, int]
  grid: tuple[int, int, int]
  padding: Padding
  taps: int

  @property
  def in_spec(self) -> pl.BlockSpec:
    """The rows that a tile's taps reach, moved to lie inside the image."""
    block = (pl.Element(self.in_rows), pl.Element(self.in_size[1]), pl.Element(self.batch), pl.Element(self.lanes_in))
    return pl.BlockSpec(
      block, lambda b, n, t: (self.first_row(t), 0, n * self.batch, b * self.lanes_in if self.blocks > 1 else 0)
    )

  @property
  def out_spec(self) -> pl.BlockSpec:
    return pl.BlockSpec((self.rows, self.out_size[1], self.batch, self.lanes_out), lambda b, n, t: (t, 0, n, b))

  def first_row(self, row_tile: jax.Array) -> jax.Array:
    return jnp.clip(row_tile * self.rows - self.padding[0][0], 0, self.in_size[0] - self.in_rows)


def _tile(
  x: jax.Array, out_shape: tuple[int, ...], kernel_size: tuple[int, int], groups: int, padding: Padding
) -> _Tiling:
  batch, in_height, in_width, channels = x.shape
  _, out_height, out_width, out_channels = out_shape
  inputs, outputs = channels // groups, out_channels // groups
  merged = _merged(groups, inputs, outputs)
  lanes_in, lanes_out = merged * inputs, merged * outputs

  sublanes = 32 // x.dtype.itemsize
  batches = [n for n in range(sublanes, batch, sublanes) if batch % n == 0] or [batch]

  def in_rows(rows: int) -> int:
    return min(rows + kernel_size[0] - 1, in_height)

  def fits(rows: int, images: int) -> bool:
    lanes = [-(-lanes // LANES) * LANES for lanes in (lanes_in, lanes_out)]
    values = in_rows(rows) * in_width * lanes[0] + rows * out_width * lanes[1]
    return 2 * values * images * x.dtype.itemsize <= _VMEM_BYTES

  rows = max((r for r in range(1, out_height + 1) if out_height % r == 0 and fits(r, batches[0])), default=1)
  # Enough images for long matrix products, and no more: sums of one row live in registers.
  enough = [n for n in batches if fits(rows, n) and n * out_width <= 1024]
  images = max(enough, default=batches[0])
  return _Tiling(
    blocks=groups // merged,
    lanes_in=lanes_in,
    lanes_out=lanes_out,
    batch=images,
    rows=rows,
    in_rows=in_rows(rows),
    in_size=(in_height, in_width),
    out_size=(out_height, out_width),
    grid=(groups // merged, batch // images, out_height // rows),
    padding=padding,
    taps=math.prod(kernel_size),
  )


def _padded_row(x_ref: jax.Ref, tiling: _Tiling, row_tile: jax.Array, tap_row: jax.Array) -> jax.Array:
  """The input's row that output row 0 of a tile sees through row `tap_row` of the kernel, zeros around it."""
  (top, _), (left, right) = tiling.padding
  row = row_tile * tiling.rows + tap_row - top
  inside = jnp.clip(row, 0, tiling.in_size[0] - 1)
  image = x_ref[inside - tiling.first_row(row_tile)]
  image = jnp.where(row == inside, image, jnp.zeros_like(image))
  sides = [jnp.zeros((side, *image.shape[1:]), image.dtype) for side in (left, right)]
  return jnp.concatenate([part for part in (sides[0], image, sides[1]) if part.shape[0]])


def _block_diagonal(kernel: jax.Array, groups: int, blocks: int) -> jax.Array:
  """[kh, kw, I, G*O] -> [blocks, kh * kw, m I, m O], m groups a block."""
  height, width, inputs, _ = kernel.shape
  merged = groups // blocks
  kernel = kernel.reshape(height, width, inputs, blocks, merged, -1)
  kernel = jnp.einsum("hwibmo,nm->bhwnimo", kernel, jnp.eye(merged, dtype=kernel.dtype))
  return kernel.reshape(blocks, height * width, merged * inputs, -1)


def _to_tiles(x: jax.Array) -> jax.Array:
  return x.transpose(1, 2, 0, 3)


def _from_tiles(x: jax.Array) -> jax.Array:
  return x.transpose(2, 0, 1, 3)


def _like(x: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> jax.ShapeDtypeStruct:
  """Varies, under `jax.shard_map`, over the mesh axes that x does."""
  return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(x).mat)


def _compiler_params(*semantics: str) -> pltpu.CompilerParams:
  return pltpu.CompilerParams(dimension_semantics=semantics, vmem_limit_bytes=2 * _VMEM_BYTES)


def _cost(tiling: _Tiling, x: jax.Array, other_bytes: int) -> pl.CostEstimate:
  """FLOPs of the matrix unit, zeros included; each activation once."""
  positions = x.shape[0] * math.prod(tiling.out_size)
  flops = 2 * positions * tiling.taps * tiling.blocks * tiling.lanes_in * tiling.lanes_out
  halo = tiling.grid[2] * tiling.in_rows / tiling.in_size[0]
  accessed = int(x.size * x.dtype.itemsize * halo) + other_bytes
  return pl.CostEstimate(flops=flops, transcendentals=0, bytes_accessed=accessed)
