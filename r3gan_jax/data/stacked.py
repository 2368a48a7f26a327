"""Stacked digits: three independent grey digits are the R, G and B of one image, so there are 1000 modes.

StackedMNIST (Metz et al. 2017, arXiv 1611.02163) stacks MNIST, padded to 32x32; the quickstart stacks scikit-learn's
1,797 8x8 digits.
"""

import numpy as np

from r3gan_jax.data.source import Examples, digest


class StackedSource:
  """`size` random triples of `digits`.

  Args:
    digits: uint8 [n, h, w].
    size: the number of triples, drawn with a fixed seed.
  """

  classes: tuple[str, ...] = ()

  def __init__(self, digits: np.ndarray, size: int = 1_000_000):
    self._digits = digits
    self._triples = np.random.default_rng(0).integers(0, len(digits), (size, 3), dtype=np.int32)

  def __len__(self) -> int:
    return len(self._triples)

  def __getitem__(self, indices: np.ndarray) -> Examples:
    return {"image": np.moveaxis(self._digits[self._triples[indices]], 1, -1)}

  def fingerprint(self) -> str:
    return digest(self._digits, self._triples)


class DigitsSource:
  """The digits themselves, grey, with their labels.

  Args:
    digits: uint8 [n, h, w].
    labels: int32 [n] in 0..9.
  """

  classes = tuple("0123456789")

  def __init__(self, digits: np.ndarray, labels: np.ndarray):
    self._digits, self._labels = digits[..., None], labels

  def __len__(self) -> int:
    return len(self._digits)

  def __getitem__(self, indices: np.ndarray) -> Examples:
    return {"image": self._digits[indices], "label": self._labels[indices]}

  def fingerprint(self) -> str:
    return digest(self._digits, self._labels)


def load_small_digits() -> tuple[np.ndarray, np.ndarray]:
  """Returns scikit-learn's 1,797 handwritten digits: images uint8 [n, 8, 8] in [0, 255], labels int32 [n]."""
  from sklearn import datasets  # takes most of a second, and few runs need it

  digits = datasets.load_digits()
  return np.round(digits.images * (255 / 16)).astype(np.uint8), digits.target.astype(np.int32)
