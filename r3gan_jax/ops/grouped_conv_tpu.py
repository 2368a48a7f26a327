"""Pallas TPU kernels for ops/grouped_conv.py, which read and write each activation once.

A TPU's matrix unit multiplies 128 x 128 blocks. Small groups share a block of lanes: m groups of I inputs and O outputs
are one block-diagonal [m I, m O] matrix per tap, at the cost of one group. XLA's own grouped convolution pads every
group to 128 lanes instead, also in memory.

Inside, images are [H, W, N, C]: batch and channels are tiled into vector registers, so a tap is a shift along untiled
dimensions, a plain address, and padding is rows and columns that are never read. XLA keeps activations around the
kernel in the same order (layout {3, 0, 2, 1}), so the transposes here copy nothing.
"""

import math
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from r3gan_jax.ops.grouped_conv_tiling import VMEM_BYTES, Tiling, tile
from r3gan_jax.ops.padding import Padding, output_shape


def conv(x: jax.Array, kernel: jax.Array, *, groups: int, padding: Padding, interpret: bool = False) -> jax.Array:
  """Computes the convolution: [N, H, W, G*I], [kh, kw, I, G*O] -> [N, H', W', G*O], of x's dtype; sums in float32.

  Args:
    x: the images.
    kernel: of x's dtype.
    groups: G.
    padding: see ops/padding.py.
    interpret: emulate the kernel, for machines without a TPU; not under `jax.shard_map`.
  """
  tiling = tile(x, output_shape(x.shape, kernel.shape, padding), (kernel.shape[0], kernel.shape[1]), groups, padding)

  def body(x_ref: jax.Ref, kernel_ref: jax.Ref, out_ref: jax.Ref) -> None:
    row_tile = pl.program_id(2)

    def row(r: jax.Array, _: None) -> None:
      sums = jnp.zeros((tiling.out_size[1] * tiling.batch, tiling.lanes_out), jnp.float32)
      for i in range(tiling.kernel_size[0]):
        image = _input_row(tiling, row_tile, x_ref, r + i)
        for j in range(tiling.kernel_size[1]):
          taps = _taps(tiling, image, j).reshape(-1, tiling.lanes_in)
          sums += jnp.dot(taps, kernel_ref[0, i * tiling.kernel_size[1] + j], preferred_element_type=jnp.float32)
      out_ref[r] = sums.reshape(-1, tiling.batch, tiling.lanes_out).astype(out_ref.dtype)

    lax.fori_loop(0, tiling.rows, row, None)

  out = pl.pallas_call(
    body,
    grid=tiling.grid,
    in_specs=[tiling.in_spec, tiling.kernel_spec],
    out_specs=tiling.out_spec,
    out_shape=like(x, (*tiling.out_size, x.shape[0], kernel.shape[-1]), x.dtype),
    compiler_params=_compiler_params("parallel", "parallel", "parallel"),
    cost_estimate=_cost(tiling, x, math.prod(output_shape(x.shape, kernel.shape, padding)) * x.dtype.itemsize),
    interpret=interpret,
    name="grouped_conv",
  )(_to_tiles(x), block_diagonal(kernel, groups, tiling.blocks))
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
  """Computes the weight gradient, [kh, kw, I, G*O] of x's dtype; sums in float32. For the arguments see `conv`."""
  height, width = kernel_size
  tiling = tile(x, dy.shape, kernel_size, groups, padding)
  blocks, lanes_in, lanes_out = tiling.blocks, tiling.lanes_in, tiling.lanes_out

  def body(x_ref: jax.Ref, dy_ref: jax.Ref, out_ref: jax.Ref) -> None:
    row_tile = pl.program_id(2)

    @pl.when((pl.program_id(1) == 0) & (row_tile == 0))
    def _():
      out_ref[...] = jnp.zeros_like(out_ref)

    def row(r: jax.Array, _: None) -> None:
      cotangents = dy_ref[r].reshape(-1, lanes_out)
      for i in range(height):
        image = _input_row(tiling, row_tile, x_ref, r + i)
        for j in range(width):
          taps = _taps(tiling, image, j).reshape(-1, lanes_in)
          out_ref[0, i * width + j] += lax.dot_general(
            taps, cotangents, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32
          )

    lax.fori_loop(0, tiling.rows, row, None)

  dense = pl.pallas_call(
    body,
    grid=tiling.grid,
    in_specs=[tiling.in_spec, tiling.out_spec],
    out_specs=tiling.kernel_spec,
    out_shape=like(x, (blocks, height * width, lanes_in, lanes_out), jnp.float32),
    compiler_params=_compiler_params("parallel", "arbitrary", "arbitrary"),
    cost_estimate=_cost(tiling, x, dy.size * dy.dtype.itemsize),
    interpret=interpret,
    name="grouped_conv_weight_gradient",
  )(_to_tiles(x), _to_tiles(dy))
  merged = groups // blocks
  dense = dense.reshape(blocks, height, width, merged, lanes_in // merged, merged, lanes_out // merged)
  diagonal = jnp.einsum("bhwmimo->hwibmo", dense)
  return diagonal.reshape(height, width, lanes_in // merged, groups * lanes_out // merged).astype(x.dtype)


def _taps(tiling: Tiling, image: jax.Array, tap: int) -> jax.Array:
  """Returns the part of a row [W, n, lanes] that the output's columns see through column `tap` of the kernel."""
  left, right = tiling.padding[1]
  sides = [jnp.zeros((side, *image.shape[1:]), image.dtype) for side in (left, right)]
  padded = jnp.concatenate([part for part in (sides[0], image, sides[1]) if part.shape[0]])
  return padded[tap : tap + tiling.out_size[1]]


def _input_row(tiling: Tiling, row_tile: jax.Array, x_ref: jax.Ref, tap_row: jax.Array) -> jax.Array:
  """Returns the input row [W, n, lanes_in] that output row 0 of this tile sees through row `tap_row` of the kernel.

  It is zero outside the image.
  """
  row = row_tile * tiling.rows + tap_row - tiling.padding[0][0]
  inside = jnp.clip(row, 0, tiling.in_size[0] - 1)
  image = x_ref[inside - tiling.first_row(row_tile)]
  return jnp.where(row == inside, image, jnp.zeros_like(image))


def block_diagonal(kernel: jax.Array, groups: int, blocks: int) -> jax.Array:
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


def like(x: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> jax.ShapeDtypeStruct:
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
