"""Pallas TPU kernels for ops/grouped_conv.py, which read and write each activation once.

A TPU's matrix unit multiplies 128 x 128 blocks. Small groups share a block of lanes: m groups of I inputs and O outputs
are one block-diagonal [m I, m O] matrix per tap, at the cost of one group. XLA's own grouped convolution pads every
group to 128 lanes instead, also in memory.

Inside, images are [H, W, N, C]: batch and channels are tiled into vector registers, so a tap is a shift along untiled
dimensions, a plain address, and padding is rows and columns that are never read. XLA keeps activations around the
kernel in the same order (layout {3, 0, 2, 1}), so the transposes here copy nothing.
"""

import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from r3gan_jax.ops.grouped_conv_tiling import VMEM_BYTES, WORD, Tiling, tile
from r3gan_jax.ops.padding import Padding, output_shape


def conv(
  x: jax.Array,
  kernel: jax.Array,
  *,
  groups: int,
  padding: Padding,
  bias: jax.Array | None = None,
  in_signs: jax.Array | None = None,
  out_signs: jax.Array | None = None,
  slope: float = 1.0,
  interpret: bool = False,
) -> jax.Array:
  """Computes the convolution: [N, H, W, G*I], [kh, kw, I, G*O] -> [N, H', W', G*O], of x's dtype; sums in float32.

  Args:
    x: the images.
    kernel: of x's dtype.
    groups: G.
    padding: see ops/padding.py.
    bias: [N, G*O], added to the convolution.
    in_signs: packed signs (see `activated_conv`); x is multiplied by `slope` where they are 0.
    out_signs: the same for the result, including the bias.
    slope: of the LeakyReLU whose signs they are.
    interpret: emulate the kernel, for machines without a TPU; not under `jax.shard_map`.
  """
  tiling = tile(x, output_shape(x.shape, kernel.shape, padding), (kernel.shape[0], kernel.shape[1]), groups, padding)
  operands, specs = _given(
    x=(_to_tiles(x), tiling.in_spec),
    kernel=(_block_diagonal(kernel, groups, tiling.blocks), tiling.kernel_spec),
    bias=(bias, tiling.bias_spec),
    in_signs=(in_signs, tiling.in_signs_spec),
    out_signs=(out_signs, tiling.out_signs_spec),
  )

  def body(*refs: jax.Ref) -> None:
    *in_refs, out_ref = refs
    ref = dict(zip(operands, in_refs, strict=True))
    row_tile = pl.program_id(2)

    def row(r: jax.Array, _: None) -> None:
      sums = _convolve_row(
        tiling, ref["kernel"], lambda tap: _input_row(tiling, row_tile, ref["x"], r + tap, ref.get("in_signs"), slope)
      )
      if "bias" in ref:
        sums += ref["bias"][...].astype(jnp.float32)[None]
      if "out_signs" in ref:
        sums = _leak(sums, _unpack(ref["out_signs"][r], sums.shape[0]), slope)
      out_ref[r] = sums.astype(out_ref.dtype)

    lax.fori_loop(0, tiling.rows, row, None)

  out = pl.pallas_call(
    body,
    grid=tiling.grid,
    in_specs=specs,
    out_specs=tiling.out_spec,
    out_shape=_like(x, (*tiling.out_size, x.shape[0], kernel.shape[-1]), x.dtype),
    compiler_params=_compiler_params("parallel", "parallel", "parallel"),
    cost_estimate=_cost(tiling, x, math.prod(output_shape(x.shape, kernel.shape, padding)) * x.dtype.itemsize),
    interpret=interpret,
    name="grouped_conv",
  )(*operands.values())
  return _from_tiles(out)


def activated_conv(
  x: jax.Array,
  kernel: jax.Array,
  bias: jax.Array,
  *,
  groups: int,
  padding: Padding,
  slope: float,
  interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Computes LeakyReLU(conv(LeakyReLU(x)) + bias) for a convolution that keeps the size, and both activations' signs.

  Signs are [H, W / c, N, C] int32, c = gcd(W, 32): bit i of a word is 1 where column i of c is positive.

  Args:
    x: [N, H, W, G*I].
    kernel: [kh, kw, I, G*O], of x's dtype.
    bias: [N, G*O].
    groups: G.
    padding: see ops/padding.py.
    slope: of the LeakyReLU.
    interpret: emulate the kernel.
  """
  tiling = tile(x, output_shape(x.shape, kernel.shape, padding), (kernel.shape[0], kernel.shape[1]), groups, padding)
  height, width = tiling.in_size
  top = padding[0][0]

  def body(x_ref, kernel_ref, bias_ref, out_ref, in_signs_ref, out_signs_ref) -> None:
    row_tile = pl.program_id(2)

    def row(r: jax.Array, _: None) -> None:
      in_signs_ref[r] = _pack(_input_row(tiling, row_tile, x_ref, r + top).astype(jnp.float32))
      sums = _convolve_row(tiling, kernel_ref, lambda tap: _input_row(tiling, row_tile, x_ref, r + tap, "own", slope))
      sums += bias_ref[...].astype(jnp.float32)[None]
      out_signs_ref[r] = _pack(sums)
      out_ref[r] = jnp.where(sums > 0, sums, slope * sums).astype(out_ref.dtype)

    lax.fori_loop(0, tiling.rows, row, None)

  words = (height, width // math.gcd(width, WORD), x.shape[0])
  out, in_signs, out_signs = pl.pallas_call(
    body,
    grid=tiling.grid,
    in_specs=[tiling.in_spec, tiling.kernel_spec, tiling.bias_spec],
    out_specs=[tiling.out_spec, tiling.signs_spec(tiling.lanes_in), tiling.signs_spec(tiling.lanes_out)],
    out_shape=[
      _like(x, (height, width, x.shape[0], kernel.shape[-1]), x.dtype),
      _like(x, (*words, x.shape[-1]), jnp.int32),
      _like(x, (*words, kernel.shape[-1]), jnp.int32),
    ],
    compiler_params=_compiler_params("parallel", "parallel", "parallel"),
    cost_estimate=_cost(tiling, x, math.prod(output_shape(x.shape, kernel.shape, padding)) * x.dtype.itemsize),
    interpret=interpret,
    name="activated_grouped_conv",
  )(_to_tiles(x), _block_diagonal(kernel, groups, tiling.blocks), bias)
  return _from_tiles(out), in_signs, out_signs


def weight_gradient(
  x: jax.Array,
  dy: jax.Array,
  *,
  groups: int,
  padding: Padding,
  kernel_size: tuple[int, int],
  in_signs: jax.Array | None = None,
  out_signs: jax.Array | None = None,
  slope: float = 1.0,
  interpret: bool = False,
) -> jax.Array:
  """Computes the weight gradient, [kh, kw, I, G*O] of x's dtype; sums in float32. For the arguments see `conv`."""
  height, width = kernel_size
  tiling = tile(x, dy.shape, kernel_size, groups, padding)
  blocks, lanes_in, lanes_out = tiling.blocks, tiling.lanes_in, tiling.lanes_out
  out_width = tiling.out_size[1]
  operands, specs = _given(
    x=(_to_tiles(x), tiling.in_spec),
    dy=(_to_tiles(dy), tiling.out_spec),
    in_signs=(in_signs, tiling.in_signs_spec),
    out_signs=(out_signs, tiling.out_signs_spec),
  )

  def body(*refs: jax.Ref) -> None:
    *in_refs, out_ref = refs
    ref = dict(zip(operands, in_refs, strict=True))
    row_tile = pl.program_id(2)

    @pl.when((pl.program_id(1) == 0) & (row_tile == 0))
    def _():
      out_ref[...] = jnp.zeros_like(out_ref)

    def row(r: jax.Array, _: None) -> None:
      cotangents = ref["dy"][r]
      if "out_signs" in ref:
        cotangents = _leak(cotangents, _unpack(ref["out_signs"][r], out_width), slope)
      cotangents = cotangents.reshape(-1, lanes_out)
      for i in range(height):
        image = _input_row(tiling, row_tile, ref["x"], r + i, ref.get("in_signs"), slope)
        for j in range(width):
          taps = _taps(tiling, image, j).reshape(-1, lanes_in)
          out_ref[0, i * width + j] += lax.dot_general(
            taps, cotangents, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32
          )

    lax.fori_loop(0, tiling.rows, row, None)

  dense = pl.pallas_call(
    body,
    grid=tiling.grid,
    in_specs=specs,
    out_specs=tiling.kernel_spec,
    out_shape=_like(x, (blocks, height * width, lanes_in, lanes_out), jnp.float32),
    compiler_params=_compiler_params("parallel", "arbitrary", "arbitrary"),
    cost_estimate=_cost(tiling, x, dy.size * dy.dtype.itemsize),
    interpret=interpret,
    name="grouped_conv_weight_gradient",
  )(*operands.values())
  merged = groups // blocks
  dense = dense.reshape(blocks, height, width, merged, lanes_in // merged, merged, lanes_out // merged)
  diagonal = jnp.einsum("bhwmimo->hwibmo", dense)
  return diagonal.reshape(height, width, lanes_in // merged, groups * lanes_out // merged).astype(x.dtype)


def bias_gradient(
  dy: jax.Array, out_signs: jax.Array, *, slope: float, dtype: jax.typing.DTypeLike, interpret: bool = False
) -> jax.Array:
  """Sums dy over pixels, times `slope` where `out_signs` are 0: [N, H, W, C] -> [N, C] of `dtype`; in float32."""
  batch, _, width, channels = dy.shape
  # The tiles of a 1x1 convolution with one channel per group.
  tiling = tile(dy, dy.shape, (1, 1), channels, ((0, 0), (0, 0)))

  def body(dy_ref, signs_ref, out_ref) -> None:
    @pl.when(pl.program_id(2) == 0)
    def _():
      out_ref[...] = jnp.zeros_like(out_ref)

    def row(r: jax.Array, _: None) -> None:
      cotangents = _leak(dy_ref[r].astype(jnp.float32), _unpack(signs_ref[r], width), slope)
      out_ref[...] += jnp.sum(cotangents, axis=0)

    lax.fori_loop(0, tiling.rows, row, None)

  out = pl.pallas_call(
    body,
    grid=tiling.grid,
    in_specs=[tiling.out_spec, tiling.out_signs_spec],
    out_specs=tiling.bias_spec,
    out_shape=_like(dy, (batch, channels), jnp.float32),
    compiler_params=_compiler_params("parallel", "parallel", "arbitrary"),
    cost_estimate=pl.CostEstimate(flops=2 * dy.size, transcendentals=0, bytes_accessed=dy.size * dy.dtype.itemsize),
    interpret=interpret,
    name="bias_gradient",
  )(_to_tiles(dy), out_signs)
  return out.astype(dtype)


def _convolve_row(tiling: Tiling, kernel_ref: jax.Ref, input_row: Callable[[int], jax.Array]) -> jax.Array:
  """Computes one output row, [W', n, lanes_out] float32; `input_row` returns the input row of a row of taps."""
  width = tiling.kernel_size[1]
  sums = jnp.zeros((tiling.out_size[1] * tiling.batch, tiling.lanes_out), jnp.float32)
  for i in range(tiling.kernel_size[0]):
    image = input_row(i)
    for j in range(width):
      taps = _taps(tiling, image, j).reshape(-1, tiling.lanes_in)
      sums += jnp.dot(taps, kernel_ref[0, i * width + j], preferred_element_type=jnp.float32)
  return sums.reshape(-1, tiling.batch, tiling.lanes_out)


def _taps(tiling: Tiling, image: jax.Array, tap: int) -> jax.Array:
  """Returns the part of a row [W, n, lanes] that the output's columns see through column `tap` of the kernel."""
  left, right = tiling.padding[1]
  sides = [jnp.zeros((side, *image.shape[1:]), image.dtype) for side in (left, right)]
  padded = jnp.concatenate([part for part in (sides[0], image, sides[1]) if part.shape[0]])
  return padded[tap : tap + tiling.out_size[1]]


def _leak(x: jax.Array, signs: jax.Array, slope: float) -> jax.Array:
  """Returns x where `signs` is positive, slope * x elsewhere; in float32, which all vector units support."""
  wide = x.astype(jnp.float32)
  return jnp.where(signs > 0, wide, slope * wide).astype(x.dtype)


def _pack(x: jax.Array) -> jax.Array:
  """Packs the signs of x [W, n, lanes] as [W / c, n, lanes] int32."""
  columns = math.gcd(x.shape[0], WORD)
  split = x.reshape(-1, columns, *x.shape[1:])
  words = jnp.zeros_like(split[:, 0], jnp.int32)
  for column in range(columns):
    words |= jnp.where(split[:, column] > 0, jnp.int32(_bit(column)), jnp.int32(0))
  return words


def _unpack(words: jax.Array, width: int) -> jax.Array:
  """Unpacks [W / c, n, lanes] int32 to [W, n, lanes] int32, 1 where positive and 0 elsewhere."""
  columns = math.gcd(width, WORD)
  bits = [lax.shift_right_logical(words, jnp.int32(column)) & 1 for column in range(columns)]
  return jnp.stack(bits, axis=1).reshape(width, *words.shape[1:])


def _bit(column: int) -> int:
  """Returns 2^column as int32."""
  return (1 << column) if column < 31 else -(2**31)


def _input_row(
  tiling: Tiling,
  row_tile: jax.Array,
  x_ref: jax.Ref,
  tap_row: jax.Array,
  signs: jax.Ref | str | None = None,
  slope: float = 1.0,
) -> jax.Array:
  """Returns the input row [W, n, lanes_in] that output row 0 of this tile sees through row `tap_row` of the kernel.

  It is zero outside the image. `signs`, packed or "own", say where it is multiplied by `slope`.
  """
  row = row_tile * tiling.rows + tap_row - tiling.padding[0][0]
  inside = jnp.clip(row, 0, tiling.in_size[0] - 1)
  index = inside - tiling.first_row(row_tile)
  image = x_ref[index]
  if isinstance(signs, str):
    image = _leak(image, image.astype(jnp.float32), slope)
  elif signs is not None:
    image = _leak(image, _unpack(signs[index], image.shape[0]), slope)
  return jnp.where(row == inside, image, jnp.zeros_like(image))


def _block_diagonal(kernel: jax.Array, groups: int, blocks: int) -> jax.Array:
  """[kh, kw, I, G*O] -> [blocks, kh * kw, m I, m O], m groups a block."""
  height, width, inputs, _ = kernel.shape
  merged = groups // blocks
  kernel = kernel.reshape(height, width, inputs, blocks, merged, -1)
  kernel = jnp.einsum("hwibmo,nm->bhwnimo", kernel, jnp.eye(merged, dtype=kernel.dtype))
  return kernel.reshape(blocks, height * width, merged * inputs, -1)


def _given(**inputs: tuple[jax.Array | None, pl.BlockSpec]) -> tuple[dict[str, jax.Array], list[pl.BlockSpec]]:
  """Returns the operands by name, and their specs, without those that are None."""
  given = {name: (operand, spec) for name, (operand, spec) in inputs.items() if operand is not None}
  return {name: operand for name, (operand, _) in given.items()}, [spec for _, spec in given.values()]


def _to_tiles(x: jax.Array) -> jax.Array:
  return x.transpose(1, 2, 0, 3)


def _from_tiles(x: jax.Array) -> jax.Array:
  return x.transpose(2, 0, 1, 3)


def _like(x: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> jax.ShapeDtypeStruct:
  """Varies, under `jax.shard_map`, over the mesh axes that x does."""
  return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(x).mat)


def _compiler_params(*semantics: Literal["parallel", "arbitrary"]) -> pltpu.CompilerParams:
  return pltpu.CompilerParams(dimension_semantics=semantics, vmem_limit_bytes=2 * VMEM_BYTES)


def _cost(tiling: Tiling, x: jax.Array, other_bytes: int) -> pl.CostEstimate:
  """FLOPs of the matrix unit, zeros included; each activation once."""
  positions = x.shape[0] * math.prod(tiling.out_size)
  flops = 2 * positions * tiling.taps * tiling.blocks * tiling.lanes_in * tiling.lanes_out
  halo = tiling.grid[2] * tiling.in_rows / tiling.in_size[0]
  accessed = int(x.size * x.dtype.itemsize * halo) + other_bytes
  return pl.CostEstimate(flops=flops, transcendentals=0, bytes_accessed=accessed)
