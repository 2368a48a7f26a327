"""Pixel blitting and general geometry, as one affine resampling at twice the resolution.

The image is continued by reflection, upsampled by 2 with the wavelet filter sym6, sampled bilinearly where the
inverse transform sends the output's pixels (also at twice the resolution), and downsampled by 2 with sym6. The two
filters undo each other, so the identity leaves the image as it is.

All these steps act on rows and columns apart, so a sampled value is a(y)^T image a(x), with a(y) the weights that
reflection, upsampling and interpolation together give the image's rows at y, and a(x) those of its columns: matrix
products take the place of gathers from the image, which TPUs are slow at. The output is made tile by tile; a tile
needs only a window of a big image.
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
TILE = 32  # about the side of a tile, in pixels of the upsampled output
_STRETCH = 4  # a tile's points lie within this many times its side, unless the image shrinks by more than 2.8

# _TAPS[r, t]: the weight of pixel i + t - 3 of an image in pixel 2 i + r of the upsampled one.
_TAPS = np.array([[2 * _SYM6[k] if 0 <= (k := r + 5 - 2 * t) < 12 else 0 for t in range(-3, 4)] for r in range(3)])


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


def resample(images: jax.Array, inverses: jax.Array) -> jax.Array:
  """Images [N, H, W, C] float32, each transformed; `inverses` [N, 3, 3] as of `inverse_matrix`."""
  planes = jax.vmap(_sample)(images, inverses)
  # Each plane with matrices of its own. Of matrices that are shared XLA makes one product over the rows of all planes,
  # for which its GPU compiler finds no blocks, as rows of a plane are not a power of 2, and gives up.
  of_rows, of_columns = (
    jnp.broadcast_to(matrix, (*planes.shape[:2], *matrix.shape)) for matrix in map(_downsampling, images.shape[1:3])
  )
  return jnp.einsum("ncik,nckl,ncjl->nijc", of_rows, planes, of_columns, precision="high")


def _sample(image: jax.Array, inverse: jax.Array) -> jax.Array:
  """[H, W, C] -> the transformed image at twice the resolution: [C, rows, columns], up to the last tiles' ends."""
  height, width, channels = image.shape
  rows, columns = _tiling(height), _tiling(width)
  planar = image.swapaxes(1, 2)  # [H, C, W]
  y, x = _grid(rows.tile, columns.tile)

  def sample_tile(tile: jax.Array) -> jax.Array:
    """(row, column) of a tile -> [tile * tile, C]."""
    # In pixels of the upsampled images: the output's from its centre, the source's from the reflected image's corner.
    output_x = x + columns.tile * tile[1] + 1 - (width + 2 * _MARGIN)
    output_y = y + rows.tile * tile[0] + 1 - (height + 2 * _MARGIN)
    source_x = inverse[0, 0] * output_x + inverse[0, 1] * output_y + 2 * inverse[0, 2] + (3 * width - 3)
    source_y = inverse[1, 0] * output_x + inverse[1, 1] * output_y + 2 * inverse[1, 2] + (3 * height - 3)
    weights_y, first_y = _weights(source_y, height, rows.window)
    weights_x, first_x = _weights(source_x, width, columns.window)
    window = jax.lax.dynamic_slice(planar, (first_y, 0, first_x), (rows.window, channels, columns.window))
    sampled_rows = jnp.einsum("ph,hcw->pcw", weights_y, window, precision="high")
    return jnp.einsum("pcw,pw->pc", sampled_rows, weights_x, precision="high")

  # Derivatives make the weights anew rather than keep them: they are bigger than the image by far.
  sampled = jax.lax.map(jax.checkpoint(sample_tile, prevent_cse=False), _grid(rows.tiles, columns.tiles).T)
  sampled = sampled.reshape(rows.tiles, columns.tiles, rows.tile, columns.tile, channels)
  return sampled.transpose(4, 0, 2, 1, 3).reshape(channels, rows.tiles * rows.tile, columns.tiles * columns.tile)


def _grid(rows: int, columns: int) -> np.ndarray:
  """float32 [2, rows * columns]: the (row, column) of each cell, row by row."""
  return np.indices((rows, columns), np.float32).reshape(2, -1)


def _weights(positions: jax.Array, side: int, window: int) -> tuple[jax.Array, int | jax.Array]:
  """The weights [P, window] of an axis's pixels at positions [P] of its upsampled reflection, and the first pixel."""
  reflected = 3 * side - 2
  pixel = jnp.floor(positions / 2)
  weights = jnp.zeros((len(positions), _TAPS.shape[1]))
  for remainder, taps in enumerate(_TAPS.astype(np.float32)):
    upsampled = 2 * pixel + remainder
    hat = jnp.maximum(0, 1 - jnp.abs(positions - upsampled))
    inside = (upsampled >= 0) & (upsampled < 2 * reflected)
    weights += jnp.where(inside, hat, 0)[:, None] * taps[None]
  pixels = pixel.astype(jnp.int32)[:, None] + jnp.arange(-3, 4)[None]
  weights = jnp.where((pixels >= 0) & (pixels < reflected), weights, 0)
  pixels = side - 1 - jnp.abs(jnp.abs(pixels - (side - 1)) - (side - 1))  # the reflections, undone
  first = 0 if window == side else jnp.clip(jnp.min(pixels), 0, side - window)
  columns = jnp.arange(window)[None] + first
  of_columns = jnp.zeros((len(positions), window))
  for tap in range(_TAPS.shape[1]):
    of_columns += jnp.where(pixels[:, tap, None] == columns, weights[:, tap, None], 0)
  return of_columns, first


class _Tiling(NamedTuple):
  """How an axis is cut: the side of a tile, their number, and how many pixels of the image a tile may touch."""

  tile: int
  tiles: int
  window: int


def _tiling(side: int) -> _Tiling:
  output = 2 * (side + 2 * _MARGIN)
  tiles = -(-output // TILE)
  tile = -(-output // tiles)
  return _Tiling(tile, tiles, min(side, _STRETCH * tile // 2 + _TAPS.shape[1] + 1))


@cache
def _downsampling(side: int) -> np.ndarray:
  """[side, upsampled output, up to its last tile's end]."""
  tiling = _tiling(side)
  matrix = np.zeros((side, tiling.tiles * tiling.tile), np.float32)
  for i in range(side):
    matrix[i, 2 * i + 1 : 2 * i + 1 + len(_SYM6)] = _SYM6
  return matrix


def _translation(offset: jax.Array) -> jax.Array:
  return jnp.eye(3).at[:2, 2].set(offset)


def _scale(x: jax.Array, y: jax.Array | float) -> jax.Array:
  return jnp.diag(jnp.stack([x, jnp.asarray(y, x.dtype), jnp.ones((), x.dtype)]))


def _rotation(angle: jax.Array) -> jax.Array:
  cos, sin, zero = jnp.cos(angle), jnp.sin(angle), jnp.zeros_like(angle)
  return jnp.stack([cos, -sin, zero, sin, cos, zero, zero, zero, jnp.ones_like(angle)]).reshape(3, 3)
