"""Skips images that cannot be read."""

import numpy as np
from absl import logging

from r3gan_jax.data.images import CorruptImage
from r3gan_jax.data.source import Examples, Source
from r3gan_jax.errors import UserError


class SkippingSource:
  """Replaces each image of `source` that cannot be read by the next readable one, and logs it once.

  The replacement depends only on the data, so resumed runs and all processes see the same images.
  """

  def __init__(self, source: Source):
    self._source = source
    self.classes = source.classes
    self._corrupt: set[int] = set()

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, indices: np.ndarray) -> Examples:
    try:
      return self._source[indices]
    except CorruptImage:
      readable = [self._readable(index) for index in indices.tolist()]
    return {name: np.concatenate([examples[name] for examples in readable]) for name in readable[0]}

  def fingerprint(self) -> str:
    return self._source.fingerprint()

  def _readable(self, index: int) -> Examples:
    for candidate in ((index + step) % len(self) for step in range(len(self))):
      if candidate not in self._corrupt:
        try:
          return self._source[np.array([candidate])]
        except CorruptImage as error:
          self._corrupt.add(candidate)
          logging.warning("replaced by the next image: %s", error)
    raise UserError("none of the images can be read: prepare the data again")
