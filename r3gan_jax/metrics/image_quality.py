"""PSNR and SSIM: how near an image is to the one that it should be."""

import jax
import jax.numpy as jnp

from r3gan_jax.errors import UserError

WINDOW, SIGMA = 11, 1.5
"""The side and the standard deviation, in pixels, of SSIM's Gaussian window."""

_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def psnr(images: jax.Array, targets: jax.Array) -> jax.Array:
  """Returns the peak signal-to-noise ratio in dB: uint8 [N, H, W, C], twice -> float32 [N].

  It is 10 log10(255^2 / MSE), at most that of one level in one value of the image, which equal images get as well.
  """
  squares = jnp.square(images.astype(jnp.float32) - targets.astype(jnp.float32))
  total = jnp.maximum(jnp.sum(squares, axis=(1, 2, 3)), 1)
  return 10 * jnp.log10(255.0**2 * targets[0].size / total)


def ssim(images: jax.Array, targets: jax.Array) -> jax.Array:
  """Returns the structural similarity (Wang et al. 2004, IEEE TIP 13(4), equation 13) in [-1, 1], 1 of equal images.

  Moments are weighted by a Gaussian window; the mean is over all windows inside the image, and over channels. Equal to
  scikit-image's `structural_similarity(..., gaussian_weights=True, sigma=1.5, use_sample_covariance=False)`.

  Args:
    images, targets: uint8 [N, H, W, C].

  Returns:
    float32 [N].

  Raises:
    UserError: a side is smaller than the window.
  """
  if min(images.shape[1:3]) < WINDOW:
    size = "x".join(map(str, images.shape[2:0:-1]))
    raise UserError(f"SSIM has a window of {WINDOW} pixels, but images are {size}: leave it out")
  x, y = images.astype(jnp.float32), targets.astype(jnp.float32)
  mean_x, mean_y = _windowed(x), _windowed(y)
  var_x, var_y = _windowed(x * x) - mean_x**2, _windowed(y * y) - mean_y**2
  covariance = _windowed(x * y) - mean_x * mean_y
  similarity = (2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)
  similarity /= (mean_x**2 + mean_y**2 + _C1) * (var_x + var_y + _C2)
  return jnp.mean(similarity, axis=(1, 2, 3))


def _windowed(x: jax.Array) -> jax.Array:
  """Returns the Gaussian mean of every window inside the image: [N, H, W, C] -> [N, H - 10, W - 10, C]."""
  at = jnp.arange(WINDOW) - WINDOW // 2
  weights = jax.nn.softmax(-(at.astype(x.dtype) ** 2) / (2 * SIGMA**2))
  for axis in (1, 2):
    size = x.shape[axis] - WINDOW + 1
    parts = (jax.lax.slice_in_dim(x, start, start + size, axis=axis) for start in range(WINDOW))
    x = sum(weight * part for weight, part in zip(weights, parts, strict=True))
  return x
