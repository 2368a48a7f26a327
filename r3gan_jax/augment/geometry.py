"""Pixel blitting and general geometry, as one affine resampling at twice the resolution.

The image is continued by reflection, upsampled by 2 with the wavelet filter sym6, sampled bilinearly where the
inverse transform sends the output's pixels (also at twice the resolution), and downsampled by 2 with sym6. The two
filters undo each other, so the identity leaves the image as it is.

Reflection and upsampling of an axis are a constant matrix U, [upsampled, side]. Bilinear sampling at (y, x) weighs the
rows of U by the hat functions of y, those of x likewise, and contracts both with the image: matrix products take the
place of image gathers, which TPUs are slow at. The output is made in tiles, as a tile needs only a window of the image.
"""

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from r3gan_jax.augment.parameters import Parameters

NAMES = (
  "x_flip",
  "rotate90",
  "integer_translation",
  "isotropic_scale",
  "rotation",
  "anisotropic_scale",
  "fractional_translation",
)

# Symlets: orthonormal wavelets (Daubechies 1992, section 8.1.1); low-pass decomposition filter, sum 1.
_SYM6 = np.array(
  [
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
  ]
) / np.sqrt(2)
_MARGIN = len(_SYM6) // 4  # what the downsampling filter needs around the output, in pixels of the image
_TILE = 32  # about the side of a tile, in pixels of the upsampled output
_STRETCH = 4  # a tile's points lie within this many times its side, but for shrinking by more than 2.8


def inverse_matrix(parameters: Parameters, height: int, width: int) -> jax.Array:
  """[3, 3]: from the output's pixels to the input's, (x, y, 1) from the image's centre, for one sample's parameters."""

  def value(name: str, count: int) -> jax.Array:
    return parameters.get(name, jnp.zeros(count))

  (mirrored,) = value("x_flip", 1)
  (quarter_turns,) = value("rotate90", 1)
  (scale,) = jnp.exp2(value("isotropic_scale", 1))
  (stretch,) = jnp.exp2(value("anisotropic_scale", 1))
  before, after = value("rotation", 2)
  side = jnp.array([width, height], jnp.float32)
  # The transforms' inverses, first to last; each is applied to what the next ones send an output pixel to.
  inverses = (
    _scale(1 - 2 * mirrored, 1.0),
    _rotation(quarter_turns * (np.pi / 2)),
    _translation(-jnp.round(value("integer_translation", 2) * side)),
    _scale(1 / scale, 1 / scale),
    _rotation(before),
    _scale(1 / stretch, stretch),
    _rotation(after),
    _translation(-value("fractional_translation", 2) * side),
  )
  matrix = jnp.eye(3)
  for inverse in inverses:
    matrix = jnp.matmul(matrix, inverse, precision="highest")
  return matrix


def resample(image: jax.Array, inverse: jax.Array) -> jax.Array:
  """One image [H, W, C] float32, transformed; `inverse` [3, 3] as of `inverse_matrix`."""
  height, width, channels = image.shape
  rows, columns = _axis(height), _axis(width)
  planar = image.swapaxes(1, 2)  # [H, C, W]
  # From here coordinates are in pixels of the upsampled images, counted from their corners.
  y, x = jnp.meshgrid(jnp.arange(rows.tile), jnp.arange(columns.tile), indexing="ij")

  def sample_tile(tile: jax.Array) -> jax.Array:
    """(row, column) of a tile -> [tile * tile, C]."""
    output_x = (x + columns.tile * tile[1] + 1.0).ravel() - (width + 2 * _MARGIN)
    output_y = (y + rows.tile * tile[0] + 1.0).ravel() - (height + 2 * _MARGIN)
    source_x = inverse[0, 0] * output_x + inverse[0, 1] * output_y + 2 * inverse[0, 2] + (3 * width - 3)
    source_y = inverse[1, 0] * output_x + inverse[1, 1] * output_y + 2 * inverse[1, 2] + (3 * height - 3)
    weights_y, first_y = _interpolation(source_y, rows)
    weights_x, first_x = _interpolation(source_x, columns)
    window = jax.lax.dynamic_slice(planar, (first_y, 0, first_x), (rows.window, channels, columns.window))
    sampled_rows = jnp.einsum("ph,hcw->pcw", weights_y, window, precision="highest")
    return jnp.einsum("pcw,pw->pc", sampled_rows, weights_x, precision="highest")

  # Derivatives make the weights anew rather than keep them: they are bigger than the image by far.
  tiles = np.stack(np.meshgrid(np.arange(rows.tiles), np.arange(columns.tiles), indexing="ij"), axis=-1).reshape(-1, 2)
  sampled = jax.lax.map(jax.checkpoint(sample_tile, prevent_cse=False), tiles)
  sampled = sampled.reshape(rows.tiles, columns.tiles, rows.tile, columns.tile, channels).swapaxes(1, 2)
  sampled = sampled.reshape(rows.tiles * rows.tile, columns.tiles * columns.tile, channels)
  return jnp.einsum("ik,klc,jl->ijc", rows.downsampling, sampled, columns.downsampling, precision="highest")


class _Axis(NamedTuple):
  """Constants of an axis.

  Attributes:
    tile: side of a tile.
    tiles: their number.
    span: how many upsampled pixels a tile may touch.
    window: how many pixels of the image those may touch.
    firsts: [upsampled - span + 1], the first of these, by the first upsampled pixel.
    upsampling: [upsampled, side], reflection and upsampling.
    downsampling: [side, tiles * tile].
  """

  tile: int
  tiles: int
  span: int
  window: int
  firsts: np.ndarray
  upsampling: np.ndarray
  downsampling: np.ndarray


@cache
def _axis(side: int) -> _Axis:
  reflected = np.pad(np.arange(side), side - 1, mode="reflect")
  upsampled = 2 * len(reflected)
  upsampling = np.zeros((upsampled, side))
  for i, pixel in enumerate(reflected):
    for tap, weight in enumerate(2 * _SYM6):
      if 0 <= (k := 2 * i + tap - 5) < upsampled:
        upsampling[k, pixel] += weight

  output = 2 * (side + 2 * _MARGIN)
  tiles = -(-output // _TILE)
  tile = -(-output // tiles)
  downsampling = np.zeros((side, tiles * tile))
  for i in range(side):
    downsampling[i, 2 * i + 1 : 2 * i + 1 + len(_SYM6)] = _SYM6

  span = min(_STRETCH * tile, upsampled)
  touched = [np.flatnonzero(upsampling[k : k + span].any(axis=0)) for k in range(upsampled - span + 1)]
  window = max(pixels[-1] - pixels[0] + 1 for pixels in touched)
  firsts = np.array([min(pixels[0], side - window) for pixels in touched], np.int32)
  return _Axis(tile, tiles, span, window, firsts, upsampling.astype(np.float32), downsampling.astype(np.float32))


def _interpolation(positions: jax.Array, axis: _Axis) -> tuple[jax.Array, jax.Array]:
  """positions [P] in upsampled pixels -> (weights [P, window] of the image's pixels, the first of these)."""
  lowest = jnp.clip(jnp.floor(jnp.min(positions)), 0, len(axis.firsts) - 1).astype(jnp.int32)
  first = jnp.asarray(axis.firsts)[lowest]
  hats = jnp.maximum(0, 1 - jnp.abs(positions[:, None] - (lowest + jnp.arange(axis.span)).astype(jnp.float32)[None]))
  upsampling = jax.lax.dynamic_slice(jnp.asarray(axis.upsampling), (lowest, first), (axis.span, axis.window))
  return jnp.matmul(hats, upsampling, precision="highest"), first


def _translation(offset: jax.Array) -> jax.Array:
  return jnp.eye(3).at[:2, 2].set(offset)


def _scale(x: jax.Array, y: jax.Array | float) -> jax.Array:
  return jnp.diag(jnp.stack([x, jnp.asarray(y, x.dtype), jnp.ones((), x.dtype)]))


def _rotation(angle: jax.Array) -> jax.Array:
  cos, sin, zero = jnp.cos(angle), jnp.sin(angle), jnp.zeros_like(angle)
  return jnp.stack([cos, -sin, zero, sin, cos, zero, zero, zero, jnp.ones_like(angle)]).reshape(3, 3)
