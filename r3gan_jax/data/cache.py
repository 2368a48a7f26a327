"""Keeps a data set that fits into memory there, as uint8, so that every image is decoded once."""

import numpy as np

from r3gan_jax.data.source import Examples, Source

_GIB = 2**30


def cached(source: Source, limit_gib: float) -> Source:
  """Returns `source`, cached if it takes at most `limit_gib` GiB.

  The cache fills as training reads, so the first step does not wait for the whole data set.
  """
  example = source[np.arange(1)]
  size_gib = len(source) * sum(values.nbytes for values in example.values()) / _GIB
  return CachedSource(source, example) if size_gib <= limit_gib else source


class CachedSource:
  """Caches `source`, reading every example once; thread-safe. `example` has one example's shapes and dtypes."""

  def __init__(self, source: Source, example: Examples):
    self._source = source
    self.classes = source.classes
    # The system allocates memory page by page, as it is written.
    self._values = {name: np.empty((len(source), *values.shape[1:]), values.dtype) for name, values in example.items()}
    self._present = np.zeros(len(source), np.bool_)

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, indices: np.ndarray) -> Examples:
    missing = np.unique(indices[~self._present[indices]])
    if len(missing):
      for name, values in self._source[missing].items():
        self._values[name][missing] = values
      self._present[missing] = True  # last, for other threads
    return {name: values[indices] for name, values in self._values.items()}

  def fingerprint(self) -> str:
    return self._source.fingerprint()
