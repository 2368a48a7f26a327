"""Pixel blitting and general geometry, as one affine resampling at twice the resolution.

The image is extended by reflection, upsampled by 2 with the wavelet filter sym6, sampled bilinearly at the positions to
which the inverse transform maps the output's pixels (also at twice the resolution), and downsampled by 2 with sym6. The
two filters cancel, so the identity leaves the image unchanged.

All steps are separable, so a sampled value is a(y)^T image a(x): a(y) has the weights of the image's rows at y, from
reflection, upsampling and interpolation together, and a(x) those of its columns. Matrix products replace gathers from
the image, which are slow on TPUs. The output is computed in tiles; a tile needs only a window of a large image. On CPUs
gathers from the upsampled image are faster.
"""

from functools import cache
from typing import Any, NamedTuple

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
SYM6 = np.array(
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
_MARGIN = len(SYM6) // 4  # of the downsampling filter around the output, in pixels of the image
TILE = 32  # the approximate side of a tile, in pixels of the upsampled output
_STRETCH = 4  # a tile's points span at most this many of its sides, unless the image shrinks by more than 2.8

_GATHERED_PIXELS = 2**22
"""On CPUs, so many pixels of upsampled images are in memory at a time, or one image."""

# _TAPS[r, t]: the weight of image pixel i + _OFFSETS[t] in pixel 2 i + r of the upsampled image.
_OFFSETS = np.arange(-3, 4, dtype=np.int32)
_TAPS = np.array([[2 * SYM6[k] if 0 <= (k := r + 5 - 2 * t) < 12 else 0 for t in _OFFSETS] for r in range(3)])


def inverse_matrix(parameters: Parameters, height: int, width: int) -> jax.Array:
  """Returns the map [3, 3] of one sample from output to input pixels, (x, y, 1) from the image's centre."""

  def value(name: str, count: int) -> jax.Array:
    return parameters.get(name, jnp.zeros(count))

  (mirrored,) = value("x_flip", 1)
  (quarter_turns,) = value("rotate90", 1)
  (scale,) = jnp.exp2(value("isotropic_scale", 1))
  (stretch,) = jnp.exp2(value("anisotropic_scale", 1))
  before, after = value("rotation", 2)
  side = jnp.array([width, height], jnp.float32)
  # The inverses, from the first transform to the last; each is applied to the result of those after it.
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
  """Transforms images [N, H, W, C] float32, each by its `inverse_matrix`, [N, 3, 3]."""
  planes = jax.lax.platform_dependent(images, inverses, cpu=sample_by_gathers, default=sample_by_products)
  # Separate matrices for each plane. With shared ones XLA makes one product over the rows of all planes, for which its
  # GPU compiler finds no tiling, because the number of rows is no power of 2, and fails.
  of_rows, of_columns = (
    jnp.broadcast_to(matrix, (*planes.shape[:2], *matrix.shape))
    for matrix in map(downsampling_matrix, images.shape[1:3])
  )
  return jnp.einsum("ncik,nckl,ncjl->nijc", of_rows, planes, of_columns, precision="high")


@jax.vmap
def sample_by_products(image: jax.Array, inverse: jax.Array) -> jax.Array:
  """Returns transformed images at twice the resolution, up to the end of the last tiles.

  Args:
    image: [N, H, W, C] float32.
    inverse: [N, 3, 3].

  Returns:
    [N, C, rows, columns].
  """
  height, width, channels = image.shape
  rows, columns = tiling(height), tiling(width)
  planar = image.swapaxes(1, 2)  # [H, C, W]
  y, x = _grid(rows.tile, columns.tile)

  def sample_tile(tile: jax.Array) -> jax.Array:
    """Samples the tile (row, column): [tile * tile, C]."""
    source_x, source_y = _source(inverse, y + rows.tile * tile[0], x + columns.tile * tile[1], height, width)
    weights_y, first_y = _weights(source_y, height, rows.window)
    weights_x, first_x = _weights(source_x, width, columns.window)
    window = jax.lax.dynamic_slice(planar, (first_y, 0, first_x), (rows.window, channels, columns.window))
    sampled_rows = jnp.einsum("ph,hcw->pcw", weights_y, window, precision="high")
    return jnp.einsum("pcw,pw->pc", sampled_rows, weights_x, precision="high")

  # Derivatives recompute the weights, which are much larger than the image.
  sampled = jax.lax.map(jax.checkpoint(sample_tile, prevent_cse=False), _grid(rows.tiles, columns.tiles).T)
  sampled = sampled.reshape(rows.tiles, columns.tiles, rows.tile, columns.tile, channels)
  return sampled.transpose(4, 0, 2, 1, 3).reshape(channels, rows.tiles * rows.tile, columns.tiles * columns.tile)


def sample_by_gathers(images: jax.Array, inverses: jax.Array) -> jax.Array:
  """Computes `sample_by_products` in the way that is faster on CPUs."""
  _, height, width, channels = images.shape
  rows, columns = tiling(height), tiling(width)
  of_rows, of_columns = upsampling_matrix(height), upsampling_matrix(width)
  y, x = _grid(rows.tiles * rows.tile, columns.tiles * columns.tile)

  def sample(image: jax.Array, inverse: jax.Array) -> jax.Array:
    upsampled = jnp.einsum("yh,hwc,xw->yxc", of_rows, image, of_columns).reshape(-1, channels)
    source_x, source_y = _source(inverse, y, x, height, width)
    left, above = jnp.floor(source_x), jnp.floor(source_y)
    sampled = jnp.zeros((len(y), channels))
    for row, of_row in ((above, 1 - (source_y - above)), (above + 1, source_y - above)):
      for column, of_column in ((left, 1 - (source_x - left)), (left + 1, source_x - left)):
        # The matrices have a row of zeros before the first pixel, and one after the last.
        i, j = (
          jnp.clip(index.astype(jnp.int32) + 1, 0, len(matrix) - 1)
          for index, matrix in ((row, of_rows), (column, of_columns))
        )
        sampled += (of_row * of_column)[:, None] * upsampled.at[i * len(of_columns) + j].get(mode="promise_in_bounds")
    return sampled.T.reshape(channels, rows.tiles * rows.tile, columns.tiles * columns.tile)

  at_once = max(1, _GATHERED_PIXELS // (len(of_rows) * len(of_columns)))
  return jax.lax.map(lambda pair: jax.checkpoint(sample)(*pair), (images, inverses), batch_size=at_once)


def _source(
  inverse: jax.Array, y: np.ndarray | jax.Array, x: np.ndarray | jax.Array, height: int, width: int
) -> tuple[jax.Array, jax.Array]:
  """Returns (x, y) in the upsampled reflection, from its corner, of points of the upsampled output."""
  output_x, output_y = x + 1 - (width + 2 * _MARGIN), y + 1 - (height + 2 * _MARGIN)  # from its centre
  source_x = inverse[0, 0] * output_x + inverse[0, 1] * output_y + 2 * inverse[0, 2] + (3 * width - 3)
  source_y = inverse[1, 0] * output_x + inverse[1, 1] * output_y + 2 * inverse[1, 2] + (3 * height - 3)
  return source_x, source_y


def _grid(rows: int, columns: int) -> np.ndarray:
  """Returns the (row, column) of each cell, row by row: float32 [2, rows * columns]."""
  return np.indices((rows, columns), np.float32).reshape(2, -1)


def _weights(positions: jax.Array, side: int, window: int) -> tuple[jax.Array, int | jax.Array]:
  """Returns weights [P, window] of an axis's pixels at positions [P] of its upsampled reflection; the first pixel."""
  reflected = 3 * side - 2
  pixel = jnp.floor(positions / 2)
  weights = jnp.zeros((len(positions), _TAPS.shape[1]))
  for remainder, taps in enumerate(_TAPS.astype(np.float32)):
    upsampled = 2 * pixel + remainder
    hat = jnp.maximum(0, 1 - jnp.abs(positions - upsampled))
    inside = (upsampled >= 0) & (upsampled < 2 * reflected)
    weights += jnp.where(inside, hat, 0)[:, None] * taps[None]
  pixels = pixel.astype(jnp.int32)[:, None] + _OFFSETS[None]
  weights = jnp.where((pixels >= 0) & (pixels < reflected), weights, 0)
  pixels = _unreflected(pixels, side)
  first = 0 if window == side else jnp.clip(jnp.min(pixels), 0, side - window)
  columns = jnp.arange(window)[None] + first
  of_columns = jnp.zeros((len(positions), window))
  for tap in range(_TAPS.shape[1]):
    of_columns += jnp.where(pixels[:, tap, None] == columns, weights[:, tap, None], 0)
  return of_columns, first


def _unreflected(pixels: Any, side: int) -> Any:
  """Returns the pixels of an axis that are at these pixels of its reflection."""
  return side - 1 - abs(abs(pixels - (side - 1)) - (side - 1))


class Tiling(NamedTuple):
  """The tiling of an axis: side of a tile, number of tiles, and number of image pixels that a tile may need."""

  tile: int
  tiles: int
  window: int


def tiling(side: int) -> Tiling:
  output = 2 * (side + 2 * _MARGIN)
  tiles = -(-output // TILE)
  tile = -(-output // tiles)
  return Tiling(tile, tiles, min(side, _STRETCH * tile // 2 + _TAPS.shape[1] + 1))


@cache
def upsampling_matrix(side: int) -> np.ndarray:
  """Returns the weights of an axis's pixels in its upsampled reflection, and in a zero before and after: [., side]."""
  reflected = 3 * side - 2
  matrix = np.zeros((2 * reflected + 2, side), np.float32)
  for row in range(2 * reflected):
    for offset, weight in zip(_OFFSETS, _TAPS[row % 2], strict=True):
      if 0 <= row // 2 + offset < reflected:
        matrix[row + 1, _unreflected(row // 2 + offset, side)] += weight
  return matrix


@cache
def downsampling_matrix(side: int) -> np.ndarray:
  """Returns the downsampling matrix, [side, length of the upsampled output up to the end of its last tile]."""
  cut = tiling(side)
  matrix = np.zeros((side, cut.tiles * cut.tile), np.float32)
  for i in range(side):
    matrix[i, 2 * i + 1 : 2 * i + 1 + len(SYM6)] = SYM6
  return matrix


def _translation(offset: jax.Array) -> jax.Array:
  return jnp.eye(3).at[:2, 2].set(offset)


def _scale(x: jax.Array, y: jax.Array | float) -> jax.Array:
  return jnp.diag(jnp.stack([x, jnp.asarray(y, x.dtype), jnp.ones((), x.dtype)]))


def _rotation(angle: jax.Array) -> jax.Array:
  cos, sin, zero = jnp.cos(angle), jnp.sin(angle), jnp.zeros_like(angle)
  return jnp.stack([cos, -sin, zero, sin, cos, zero, zero, zero, jnp.ones_like(angle)]).reshape(3, 3)
