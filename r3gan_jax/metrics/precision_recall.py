"""Improved precision and recall."""

import numpy as np
from jax.sharding import Mesh

from r3gan_jax.errors import UserError
from r3gan_jax.metrics.neighbourhoods import BLOCK, Neighbourhoods


def precision_recall(
  real: np.ndarray, fake: np.ndarray, mesh: Mesh, neighbours: int = 3, block: int = BLOCK
) -> dict[str, float]:
  """Computes `of_neighbourhoods` of features, float32 [n, d] and [m, d]; 3 neighbours in the literature.

  Raises:
    UserError: a side has no more than `neighbours` images.
  """
  check_sizes(len(real), len(fake), neighbours)
  return of_neighbourhoods(Neighbourhoods(real, fake, mesh, closed=neighbours, block=block))


def of_neighbourhoods(sides: Neighbourhoods) -> dict[str, float]:
  """Computes the fraction of fake images on the manifold of real ones (precision), and the reverse (recall).

  The manifold of a set is the union of the closed balls around its points, whose radii are the distances to the k-th
  nearest other point. Features, distances and radii are float32; in the official code they are float16. In a numpy
  emulation, float16 features change nothing; float16 distances raise precision and recall by 0.002 and 0.001 on
  tests/golden/metrics.npz (1,500 real, 1,200 fake), and by at most 0.004 and 0.002 on synthetic features of VGG16's
  4,096 dimensions (4,000 each).

  Returns:
    'precision', 'recall', 'neighbours' (k), 'precision_recall_num_real' and '..._num_fake'.

  References:
    Kynkäänniemi et al., Improved Precision and Recall Metric for Assessing Generative Models, 2019.
  """
  return {
    "precision": float(np.mean(sides.of_fake.balls[:, 0] > 0)),
    "recall": float(np.mean(sides.of_real.balls[:, 0] > 0)),
    "neighbours": sides.closed,
    "precision_recall_num_real": sides.num_real,
    "precision_recall_num_fake": sides.num_fake,
  }


def check_sizes(num_real: int, num_fake: int, neighbours: int = 3) -> None:
  """Raises the UserError of `precision_recall`; for use before any other work."""
  if min(num_real, num_fake) <= neighbours:
    raise UserError(
      f"precision and recall need at least {neighbours + 1} images per side (neighbours + 1), but have {num_real} real "
      f"and {num_fake} fake ones: give more images"
    )
