"""Mode coverage of stacked digits: how many of the 1000 modes are hit, and how evenly (SPEC section 7)."""

from collections.abc import Callable
from typing import Protocol

import numpy as np

MODES = 1000


class Classifier(Protocol):
  """Names digits: uint8 [n, h, w] -> int [n] in 0..9."""

  def __call__(self, digits: np.ndarray) -> np.ndarray: ...


class ModeCoverage:
  """Scores a sampler by a digit classifier on each channel.

  Args:
    classifier: of single digits.
    num_samples: 26 000 in the literature.
  """

  def __init__(self, classifier: Classifier, num_samples: int):
    self._classifier = classifier
    self._num_samples = num_samples

  def __call__(self, sample: Callable[[np.ndarray], np.ndarray]) -> dict[str, float]:
    """`sample`: seeds [n] -> uint8 [n, H, W, 3]. Returns 'modes', 'modes_kl' (nats) and 'modes_samples'."""
    images = sample(np.arange(self._num_samples))
    digits = self._classifier(np.moveaxis(images, -1, 1).reshape(-1, *images.shape[1:3])).reshape(-1, 3)
    modes, kl = mode_statistics(digits @ np.array([100, 10, 1]))
    return {"modes": modes, "modes_kl": kl, "modes_samples": self._num_samples}


def mode_statistics(modes: np.ndarray, num_modes: int = MODES) -> tuple[int, float]:
  """Of samples' modes, int [n]: how many differ, and KL(samples || uniform) in nats."""
  counts = np.bincount(modes, minlength=num_modes)
  hit = counts[counts > 0] / len(modes)
  return len(hit), float(np.sum(hit * np.log(hit * num_modes)))
