"""Density and coverage."""

import numpy as np

from r3gan_jax.errors import UserError
from r3gan_jax.metrics.neighbourhoods import NEIGHBOURS, Neighbourhoods


def density_coverage(sides: Neighbourhoods) -> dict[str, float]:
  """Computes in how many balls around real images a fake one lies, and the fraction of balls with a fake image.

  Each ball reaches to the k-th nearest other real image, and is open, as in the authors' code. Density is the number of
  balls over k, and coverage the fraction that the nearest fake image lies in. Unlike precision and recall they have no
  balls around fake images, and outliers among the real ones, whose balls are large, count little. Samples of the real
  distribution have an expected density of 1, and for many images a coverage of 1 - 2^-k; a density above 1 means that
  samples crowd where real images are dense.

  Returns:
    'density', 'coverage', 'density_coverage_neighbours' (k), '..._num_real' and '..._num_fake'.

  References:
    Naeem et al., Reliable Fidelity and Diversity Metrics for Generative Models, 2020, equations 3 and 4.
  """
  radii = sides.real_distances[:, sides.opened - 1]
  return {
    "density": float(np.mean(sides.of_fake.balls[:, 1])) / sides.opened,
    "coverage": float(np.mean(sides.of_real.distances < radii)),
    "density_coverage_neighbours": sides.opened,
    "density_coverage_num_real": sides.num_real,
    "density_coverage_num_fake": sides.num_fake,
  }


def check_sizes(num_real: int, num_fake: int) -> None:
  """Raises a UserError unless there are enough images; for use before any other work."""
  del num_fake  # one is enough
  if num_real <= NEIGHBOURS:
    raise UserError(
      f"density and coverage need at least {NEIGHBOURS + 1} real images (neighbours + 1), but have {num_real}: give "
      "more images"
    )
