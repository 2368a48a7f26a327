"""The Monge inception distance."""

import numpy as np

from r3gan_jax.errors import UserError

PROJECTIONS = 1000

_AT_ONCE = 50
"""Directions at a time: 200 bytes an image and side."""


def mind(real: np.ndarray, fake: np.ndarray, seed: int = 0) -> dict[str, float]:
  """Computes 3 d times the squared sliced Wasserstein distance of real [n, d] and fake [m, d] features.

  That is the mean over random directions of the squared Wasserstein distance along each, which is the mean squared
  difference of sorted projections. Of Gaussians that differ in their means alone it is 3 times their FID. It is biased
  upwards, so it compares only at the same number of images; the larger side is thinned at random to the smaller one's.

  Returns:
    'mind', 'mind_projections' (directions) and 'mind_images' (of each side).

  Raises:
    UserError: fewer than 2 images per side.

  References:
    Berthet et al., MIND: Monge Inception Distance for Generative Models Evaluation, 2026, arXiv 2605.06797.
  """
  check_sizes(len(real), len(fake))
  random = np.random.default_rng(seed)
  images, dimension = min(len(real), len(fake)), real.shape[1]
  real, fake = (
    side if len(side) == images else side[random.choice(len(side), images, replace=False)] for side in (real, fake)
  )
  directions = random.standard_normal((PROJECTIONS, dimension)).astype(np.float32)
  directions /= np.linalg.norm(directions, axis=1, keepdims=True)
  total = 0.0
  for start in range(0, PROJECTIONS, _AT_ONCE):
    part = directions[start : start + _AT_ONCE]
    sorted_real, sorted_fake = (np.sort(part @ side.T, axis=1) for side in (real, fake))
    total += float(np.sum(np.square(sorted_real - sorted_fake), dtype=np.float64))
  return {
    "mind": 3 * dimension * total / (PROJECTIONS * images),
    "mind_projections": PROJECTIONS,
    "mind_images": images,
  }


def check_sizes(num_real: int, num_fake: int) -> None:
  """Raises the UserError of `mind`; for use before any other work."""
  if min(num_real, num_fake) < 2:
    raise UserError(
      f"MIND needs at least 2 images per side, but has {num_real} real and {num_fake} fake ones: give more images"
    )
