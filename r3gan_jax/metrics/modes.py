"""Mode coverage of stacked digits: how many of the 1000 modes are hit, and how evenly (SPEC section 7)."""

from typing import Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils

from r3gan_jax.metrics.feature_extractor import ImageSet

MODES = 1000


class Classifier(Protocol):
  """Names digits: uint8 [n, h, w] -> int [n] in 0..9."""

  def __call__(self, digits: np.ndarray) -> np.ndarray: ...


class ModeCoverage:
  """Scores images by a digit classifier on each channel.

  Args:
    classifier: of single digits.
    real: uint8 [n, h, w, 3]: the yardstick; as many as are to be scored, since KL depends on the number (26 000 in the
      literature). Scored once, here.
  """

  def __init__(self, classifier: Classifier, real: ImageSet):
    self._classifier = classifier
    self._real = {f"real_{name}": value for name, value in self._score(real).items()}

  def __call__(self, fake: ImageSet) -> dict[str, float]:
    """'modes', 'modes_kl' (nats) and 'modes_samples', and the same of the real images as 'real_modes' and so on."""
    return self._score(fake) | self._real

  def _score(self, images: ImageSet) -> dict[str, float]:
    # Of several processes each takes a share.
    share = np.array_split(np.arange(images.size), jax.process_count())[jax.process_index()]
    channels = np.moveaxis(images.images(share), -1, 1)
    digits = self._classifier(channels.reshape(-1, *channels.shape[2:])).reshape(-1, 3)
    counts = np.bincount(digits @ np.array([100, 10, 1]), minlength=MODES)
    modes, kl = mode_statistics(multihost_utils.process_allgather(counts).reshape(-1, MODES).sum(axis=0))
    return {"modes": modes, "modes_kl": kl, "modes_samples": images.size}


def mode_statistics(counts: np.ndarray) -> tuple[int, float]:
  """Of samples of each mode, int [modes]: how many modes are hit, and KL(samples || uniform) in nats."""
  hit = counts[counts > 0] / counts.sum()
  return len(hit), float(np.sum(hit * np.log(hit * len(counts))))
