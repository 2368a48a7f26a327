"""Mode coverage of stacked digits: how many of the 1000 modes are hit, and how evenly (Metz et al. 2017)."""

from typing import Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils

from r3gan_jax.metrics.feature_extractor import ImageSet
from r3gan_jax.progress_bar import progress_bar

MODES = 1000

_BATCH = 2000


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
    self._real = real
    self._of_real: dict[str, float] = {}

  def __call__(self, fake: ImageSet) -> dict[str, float]:
    """Returns 'modes', 'modes_kl' (nats) and 'modes_samples', and 'real_modes' etc. for the real images."""
    if not self._of_real:
      self._of_real = {f"real_{name}": value for name, value in self._score(self._real).items()}
    return self._score(fake) | self._of_real

  def _score(self, images: ImageSet) -> dict[str, float]:
    # Each process classifies a share.
    share = np.array_split(np.arange(images.size), jax.process_count())[jax.process_index()]
    counts = np.zeros(MODES, np.int64)
    with progress_bar(total=len(share), title=images.name, quiet=jax.process_index() > 0) as bar:
      for start in range(0, len(share), _BATCH):
        channels = np.moveaxis(images.images(share[start : start + _BATCH]), -1, 1)
        digits = self._classifier(channels.reshape(-1, *channels.shape[2:])).reshape(-1, 3)
        counts += np.bincount(digits @ np.array([100, 10, 1]), minlength=MODES)
        bar.update(len(digits))
    modes, kl = mode_statistics(multihost_utils.process_allgather(counts).reshape(-1, MODES).sum(axis=0))
    return {"modes": modes, "modes_kl": kl, "modes_samples": images.size}


def mode_statistics(counts: np.ndarray) -> tuple[int, float]:
  """Returns the number of modes hit, and KL(samples || uniform) in nats; `counts` int [modes]."""
  hit = counts[counts > 0] / counts.sum()
  return len(hit), float(np.sum(hit * np.log(hit * len(counts))))
