"""Image-space filtering, additive noise and cutout; the first two are off in R3GAN."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

NAMES = ("image_filter", "noise", "cutout")

_CUTOUT_SIDE = 0.5  # as a fraction of the image's side
# Symlet of 2 vanishing moments (Daubechies 1992): low-pass decomposition filter, sum sqrt(2).
_SYM2 = np.array([1 - 3**0.5, 3 - 3**0.5, 3 + 3**0.5, 1 + 3**0.5]) / (4 * 2**0.5)
_POWER = np.array([10, 1, 1, 1], np.float32) / 13  # the power of natural images, 1 / f, in each band


def filter_bands(image: jax.Array, log2_gains: jax.Array) -> jax.Array:
  """Amplifies the frequency bands of one image [H, W, C] float32 by 2^log2_gains [4], low frequencies first.

  After each gain all bands are normalised to keep the expected power of natural images.
  """
  gains = jnp.ones(4)
  for band in range(4):
    gain = jnp.ones(4).at[band].set(jnp.exp2(log2_gains[band]))
    gains *= gain / jnp.sqrt(jnp.sum(_POWER * gain**2))
  height, width, channels = image.shape
  rows, columns = (jnp.einsum("b,bij->ij", gains, _band_matrices(side)) for side in (height, width))
  # Separate matrices for each plane: see geometry.resample.
  of_rows, of_columns = (jnp.broadcast_to(matrix, (channels, *matrix.shape)) for matrix in (rows, columns))
  return jnp.einsum("cik,klc,cjl->ijc", of_rows, image, of_columns, precision="highest")


def add_noise(image: jax.Array, key: jax.Array, std: jax.Array) -> jax.Array:
  """Adds independent normal noise with standard deviation `std` to one image [H, W, C] float32."""
  return image + std * jax.random.normal(key, image.shape)


def cut_out(image: jax.Array, centre: jax.Array) -> jax.Array:
  """Zeroes a square of one image [H, W, C] float32 around `centre` [2], (x, y) as fractions of the sides."""
  height, width, _ = image.shape
  x, y = ((np.arange(side, dtype=np.float32) + 0.5) / side for side in (width, height))
  outside_x, outside_y = (jnp.abs(of - at) >= _CUTOUT_SIDE / 2 for of, at in ((x, centre[0]), (y, centre[1])))
  return jnp.where((outside_y[:, None] | outside_x[None])[..., None], image, 0)


@cache
def _band_matrices(side: int) -> np.ndarray:
  """Returns the filter of each band as a matrix, [4, side, side], with reflection at borders; they sum to identity."""
  bank = filter_bank()
  radius = bank.shape[1] // 2
  reflected = np.pad(np.arange(side), radius, mode="reflect")
  matrices = np.zeros((4, side, side), np.float32)
  for i in range(side):
    for tap, pixel in enumerate(reflected[i : i + bank.shape[1]]):
      matrices[:, i, pixel] += bank[:, tap]
  return matrices


def filter_bank() -> np.ndarray:
  """Returns zero-phase filters of one octave each, [4, taps], low frequencies first, by splitting the lowest band."""
  low = np.convolve(_SYM2, _SYM2[::-1]) / 2
  high_pass = _SYM2 * (-1) ** np.arange(4)
  high = np.convolve(high_pass, high_pass[::-1]) / 2
  bank = np.eye(4, 1)
  for band in range(1, 4):
    spread = np.zeros((4, 2 * bank.shape[1] - 1))
    spread[:, ::2] = bank
    bank = np.stack([np.convolve(row, low) for row in spread])
    centre = bank.shape[1] // 2
    bank[band, centre - len(high) // 2 : centre + len(high) // 2 + 1] += high
  return bank
