"""Pallas TPU kernels for ops/resample.py, which read and write each activation once.

As in ops/grouped_conv_tpu.py images are [H, W, N, C] inside, so that neighbours along both axes are plain addresses.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

_LANES = 128
_VMEM_BYTES = 24 * 2**20
"""For the blocks of one program, double-buffered."""

Row = Callable[[jax.Array], jax.Array]
"""Index of an image row -> the row [W, N, C], float32; zero outside the image."""


def upsample2x(x: jax.Array, scale: float = 1.0, interpret: bool = False) -> jax.Array:
  """Upsamples [N, H, W, C] to [N, 2H, 2W, C], times `scale`."""

  def write(row: Row, first: jax.Array, index: jax.Array, out_ref: jax.Ref) -> None:
    here = 0.75 * scale * row(first + index)
    for odd, neighbour in enumerate((row(first + index - 1), row(first + index + 1))):
      mixed = here + 0.25 * scale * neighbour
      previous, following = _shifted(mixed, mixed)
      pair = jnp.stack([0.75 * mixed + 0.25 * previous, 0.75 * mixed + 0.25 * following], axis=1)
      out_ref[2 * index + odd] = pair.reshape(out_ref.shape[1:]).astype(out_ref.dtype)

  return _resample(write, x, x.shape[1], (1, 1), (2, 1), interpret)


def downsample2x(x: jax.Array, scale: float = 1.0, interpret: bool = False) -> jax.Array:
  """Downsamples [N, 2H, 2W, C] to [N, H, W, C], times `scale`."""

  def write(row: Row, first: jax.Array, index: jax.Array, out_ref: jax.Ref) -> None:
    top = 2 * (first + index)
    mixed = 0.375 * (row(top) + row(top + 1)) + 0.125 * (row(top - 1) + row(top + 2))
    pairs = mixed.reshape(-1, 2, *mixed.shape[1:])
    even, odd = pairs[:, 0], pairs[:, 1]
    previous_odd, following_even = _shifted(odd, even)
    out = 0.375 * scale * (even + odd) + 0.125 * scale * (previous_odd + following_even)
    out_ref[index] = out.astype(out_ref.dtype)

  return _resample(write, x, x.shape[1] // 2, (2, 1), (1, 2), interpret)


def _resample(
  write: Callable[[Row, jax.Array, jax.Array, jax.Ref], None],
  x: jax.Array,
  steps: int,
  in_rows_per_step: tuple[int, int],
  ratio: tuple[int, int],
  interpret: bool,
) -> jax.Array:
  """Runs `write(row, first step of the tile, step in the tile, out)` for every step.

  Args:
    write: writes the output rows of one step.
    x: [N, H, W, C].
    steps: number of steps.
    in_rows_per_step: the input rows that a step advances, and the rows beyond them that it reads on each side.
    ratio: output size / input size, as (numerator, denominator).
    interpret: emulate the kernel.
  """
  batch, height, width, channels = x.shape
  stride, reach = in_rows_per_step
  out_height, out_width = (n * ratio[0] // ratio[1] for n in (height, width))
  out_stride = out_height // steps
  lanes = _LANES if channels % _LANES == 0 else channels
  sublanes = 32 // x.dtype.itemsize
  images = sublanes if batch % sublanes == 0 else batch

  def in_rows(rows: int) -> int:
    return min(rows * stride + 2 * reach, height)

  def fits(rows: int) -> bool:
    pixels = in_rows(rows) * width + rows * out_stride * out_width
    return 2 * pixels * images * -(-lanes // _LANES) * _LANES * x.dtype.itemsize <= _VMEM_BYTES

  rows = max((r for r in range(1, steps + 1) if steps % r == 0 and fits(r)), default=1)

  def first_row(tile: jax.Array) -> jax.Array:
    return jnp.clip(tile * rows * stride - reach, 0, height - in_rows(rows))

  def body(x_ref: jax.Ref, out_ref: jax.Ref) -> None:
    tile = pl.program_id(2)

    def row(index: jax.Array) -> jax.Array:
      inside = jnp.clip(index, 0, height - 1)
      value = x_ref[inside - first_row(tile)].astype(jnp.float32)
      return jnp.where(index == inside, value, 0.0)

    def step(index: jax.Array, _: None) -> None:
      write(row, tile * rows, index, out_ref)

    lax.fori_loop(0, rows, step, None)

  block = (pl.Element(in_rows(rows)), pl.Element(width), pl.Element(images), pl.Element(lanes))
  # A single block may be smaller than a register; its index must then be a plain 0.
  batch_step, lane_step = images * (images < batch), lanes * (lanes < channels)
  out_shape = (out_height, out_width, batch, channels)
  out = pl.pallas_call(
    body,
    grid=(channels // lanes, batch // images, steps // rows),
    in_specs=[pl.BlockSpec(block, lambda c, n, t: (first_row(t), 0, n * batch_step, c * lane_step))],
    out_specs=pl.BlockSpec((rows * out_stride, out_width, images, lanes), lambda c, n, t: (t, 0, n, c)),
    out_shape=jax.ShapeDtypeStruct(out_shape, x.dtype, manual_axis_type=jax.typeof(x).mat),
    compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",) * 3, vmem_limit_bytes=2 * _VMEM_BYTES),
    cost_estimate=pl.CostEstimate(
      flops=8 * batch * out_height * width * channels,
      transcendentals=0,
      bytes_accessed=(x.size + batch * out_height * out_width * channels) * x.dtype.itemsize,
    ),
    interpret=interpret,
    name="resample2x",
  )(x.transpose(1, 2, 0, 3))
  return out.transpose(2, 0, 1, 3)


def _shifted(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns x[i - 1] and y[i + 1] along the first axis, zero outside."""
  zero = jnp.zeros_like(x[:1])
  return jnp.concatenate([zero, x[:-1]]), jnp.concatenate([y[1:], zero])
