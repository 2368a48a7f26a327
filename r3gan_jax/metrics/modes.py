"""Mode coverage of stacked digits: how many of the 1000 modes are hit, and how evenly (Metz et al. 2017)."""

from typing import Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils

from r3gan_jax.metrics.feature_extractor import ImageSet

MODES = 1000


class Classifier(Protocol):
  """Classifies digits: uint8 [n, h, w] -> int [n] in 0..9."""

  def __call__(self, digits: np.ndarray) -> np.ndarray: ...


class ModeCoverage:
  """Scores images by classifying the digit in each channel.

  Args:
    classifier: classifies single digits.
    real: real images for reference, uint8 [n, h, w, 3]; as many as the fake ones, since KL depends on their number
      (26,000 in the literature).
  """

  def __init__(self, classifier: Classifier, real: ImageSet):
    self._classifier = classifier
    self._real = {f"real_{name}": value for name, value in self._score(real).items()}

  def __call__(self, fake: ImageSet) -> dict[str, float]:
    """Returns 'modes', 'modes_kl' (nats) and 'modes_samples', and 'real_modes' etc. for the real images."""
    return self._score(fake) | self._real

  def _score(self, images: ImageSet) -> dict[str, float]:
    # Each process classifies a share.
    share = np.array_split(np.arange(images.size), jax.process_count())[jax.process_index()]
    channels = np.moveaxis(images.images(share), -1, 1)
    digits = self._classifier(channels.reshape(-1, *channels.shape[2:])).reshape(-1, 3)
    counts = np.bincount(digits @ np.array([100, 10, 1]), minlength=MODES)
    modes, kl = mode_statistics(multihost_utils.process_allgather(counts).reshape(-1, MODES).sum(axis=0))
    return {"modes": modes, "modes_kl": kl, "modes_samples": images.size}


def mode_statistics(counts: np.ndarray) -> tuple[int, float]:
  """Returns the number of modes hit, and KL(samples || uniform) in nats; `counts` int [modes]."""
  hit = counts[counts > 0] / counts.sum()
  return len(hit), float(np.sum(hit * np.log(hit * len(counts))))
