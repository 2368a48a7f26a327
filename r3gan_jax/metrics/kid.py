"""The kernel inception distance."""

import numpy as np

from r3gan_jax.errors import UserError


def kid(
  real: np.ndarray, fake: np.ndarray, seed: int = 0, num_subsets: int = 100, subset_size: int = 1000
) -> dict[str, float]:
  """Computes the mean of `mmd2_unbiased` over random subsets of real [n, d] and fake [m, d] features; not times 1000.

  Estimator and subset size are those of the official code, which draws from the first 1,000,000 real images in file
  order; `Evaluation` passes at most `MAX_FEATURES`.

  Returns:
    'kid', 'kid_std' (over the subsets), 'kid_subsets', 'kid_subset_size', 'kid_num_real' and 'kid_num_fake'.

  Raises:
    UserError: fewer than `subset_size` images per side.

  References:
    Binkowski et al., Demystifying MMD GANs, 2018.
  """
  check_sizes(len(real), len(fake), subset_size)
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


def check_sizes(num_real: int, num_fake: int, subset_size: int = 1000) -> None:
  """Raises the UserError of `kid`; for use before any other work."""
  if min(num_real, num_fake) < subset_size:
    raise UserError(
      f"KID needs at least {subset_size} images per side (its subset size), but has {num_real} real and {num_fake} "
      "fake ones: give more images"
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
