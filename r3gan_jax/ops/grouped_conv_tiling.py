"""The tiling of the Pallas kernels in grouped_conv_tpu.py: how their work is divided into programs."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from r3gan_jax.ops.padding import Padding

LANES = 128
"""The width of a vector register and of the matrix unit."""
VMEM_BYTES = 17 * 2**20
"""For the blocks of one program, double-buffered; a v5e has 128 MiB."""


def supports(groups: int, inputs: int, outputs: int) -> bool:
  """Returns whether groups of these sizes fill blocks of the matrix unit well."""
  return inputs < LANES and merged_groups(groups, inputs, outputs) * max(inputs, outputs) <= 2 * LANES


def merged_groups(groups: int, inputs: int, outputs: int) -> int:
  """Returns how many groups share a block: the fewest that fill whole registers, or all."""
  fitting = [m for m in range(1, groups) if groups % m == 0 and m * inputs % LANES == m * outputs % LANES == 0]
  return min(fitting, default=groups)


class Tiling(NamedTuple):
  """The division of the work into programs (channel block, batch tile, row tile).

  Attributes:
    blocks: number of blocks of lanes.
    lanes_in, lanes_out: channels of a block.
    batch: images of a tile.
    rows: output rows of a tile; `in_rows`: its input rows.
    out_size: (H', W').
    in_size: (H, W).
    grid: numbers of (blocks, batch tiles, row tiles).
    padding: as of the operation.
    kernel_size: (kh, kw).
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
  kernel_size: tuple[int, int]

  @property
  def taps(self) -> int:
    return math.prod(self.kernel_size)

  @property
  def kernel_spec(self) -> pl.BlockSpec:
    return pl.BlockSpec((1, self.taps, self.lanes_in, self.lanes_out), lambda b, n, t: (b, 0, 0, 0))

  @property
  def in_spec(self) -> pl.BlockSpec:
    """The block of input rows that a tile's taps reach, moved inside the image."""
    block = (pl.Element(self.in_rows), pl.Element(self.in_size[1]), pl.Element(self.batch), pl.Element(self.lanes_in))
    # A single block may be smaller than a register; its index must then be a plain 0.
    batch, lanes = self.batch * (self.grid[1] > 1), self.lanes_in * (self.blocks > 1)
    return pl.BlockSpec(block, lambda b, n, t: (self.first_row(t), 0, n * batch, b * lanes))

  @property
  def out_spec(self) -> pl.BlockSpec:
    return pl.BlockSpec((self.rows, self.out_size[1], self.batch, self.lanes_out), lambda b, n, t: (t, 0, n, b))

  def first_row(self, row_tile: jax.Array) -> jax.Array:
    return jnp.clip(row_tile * self.rows - self.padding[0][0], 0, self.in_size[0] - self.in_rows)


def tile(
  x: jax.Array, out_shape: tuple[int, ...], kernel_size: tuple[int, int], groups: int, padding: Padding
) -> Tiling:
  """Returns the tiling of a convolution of x [N, H, W, C] to `out_shape`."""
  batch, in_height, in_width, channels = x.shape
  _, out_height, out_width, out_channels = out_shape
  inputs, outputs = channels // groups, out_channels // groups
  merged = merged_groups(groups, inputs, outputs)
  lanes_in, lanes_out = merged * inputs, merged * outputs

  sublanes = 32 // x.dtype.itemsize
  batches = [n for n in range(sublanes, batch, sublanes) if batch % n == 0] or [batch]

  def in_rows(rows: int) -> int:
    return min(rows + kernel_size[0] - 1, in_height)

  def fits(rows: int, images: int) -> bool:
    lanes = [-(-lanes // LANES) * LANES for lanes in (lanes_in, lanes_out)]
    values = in_rows(rows) * in_width * lanes[0] + rows * out_width * lanes[1]
    return 2 * values * images * x.dtype.itemsize <= VMEM_BYTES

  rows = max((r for r in range(1, out_height + 1) if out_height % r == 0 and fits(r, batches[0])), default=1)
  # Enough images for long matrix products, and no more: sums of one row live in registers.
  enough = [n for n in batches if fits(rows, n) and n * out_width <= 1024]
  images = max(enough, default=batches[0])
  return Tiling(
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
    kernel_size=kernel_size,
  )
