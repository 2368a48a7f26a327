"""The kernel inception distance."""

import numpy as np
from absl import logging

from r3gan_jax.errors import UserError


def kid(
  real: np.ndarray, fake: np.ndarray, seed: int = 0, num_subsets: int = 100, max_subset_size: int = 1000
) -> dict[str, float]:
  """Computes the mean of `mmd2_unbiased` over random subsets of real [n, d] and fake [m, d] features; not times 1000.

  Estimator and subset size, min(n, m, `max_subset_size`), are those of the official code and clean-fid. The official
  code draws from the first 1,000,000 real images in file order; `Evaluation` passes at most `MAX_FEATURES`.

  Returns:
    'kid', 'kid_std' (over the subsets), 'kid_subsets', 'kid_subset_size', 'kid_num_real' and 'kid_num_fake'.

  Raises:
    UserError: fewer than 2 images per side.

  References:
    Binkowski et al., Demystifying MMD GANs, 2018.
  """
  check_sizes(len(real), len(fake))
  subset_size = min(len(real), len(fake), max_subset_size)
  if subset_size < max_subset_size:
    logging.warning(
      "KID of %d real and %d fake images has subsets of %d, not %d", len(real), len(fake), subset_size, max_subset_size
    )
  rng = np.random.default_rng(seed)
  distances = [
    mmd2_unbiased(*(features[rng.choice(len(features), subset_size, replace=False)] for features in (real, fake)))
    for _ in range(num_subsets)
  ]
  return {
    "kid": float(np.mean(distances)),
    "kid_std": float(np.std(distances)),
    "kid_subsets": num_subsets,
    "kid_subset_size": subset_size,
    "kid_num_real": len(real),
    "kid_num_fake": len(fake),
  }


def check_sizes(num_real: int, num_fake: int) -> None:
  """Raises the UserError of `kid`; for use before any other work."""
  if min(num_real, num_fake) < 2:
    raise UserError(
      f"KID needs at least 2 images per side, but has {num_real} real and {num_fake} fake ones: give more images"
    )


def mmd2_unbiased(x: np.ndarray, y: np.ndarray) -> float:
  """Returns the unbiased squared MMD of [m, d] and [n, d] with kernel (x . y / d + 1)^3; m, n >= 2."""
  x, y = x.astype(np.float64), y.astype(np.float64)
  return _mean_off_diagonal(_kernel(x, x)) + _mean_off_diagonal(_kernel(y, y)) - 2.0 * float(_kernel(x, y).mean())


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  products = x @ y.T / x.shape[1] + 1.0
  return products * products * products  # numpy's ** 3 is 20 times as slow


def _mean_off_diagonal(kernel: np.ndarray) -> float:
  return float(kernel.sum() - np.trace(kernel)) / (len(kernel) * (len(kernel) - 1))
