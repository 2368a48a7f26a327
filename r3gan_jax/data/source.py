"""The interface of data sources: images by index."""

import hashlib
from typing import Protocol

import numpy as np

Examples = dict[str, np.ndarray]
"""'image' uint8 [n, H, W, C] and, with classes, 'label' int32 [n]."""


class Source(Protocol):
  """A data set with random access; `source[i]` is always the same image, on every process.

  Attributes:
    classes: the names of the classes, by number; () without classes or names.
  """

  @property
  def classes(self) -> tuple[str, ...]: ...

  def __len__(self) -> int: ...

  def __getitem__(self, indices: np.ndarray) -> Examples:
    """Returns the examples at `indices`, int64 [n]."""

  def fingerprint(self) -> str:
    """Identifies the images by their content, not by place, names or dates; may read all files."""


class Subset:
  """The examples of `source` at `indices`, int64 [n]."""

  def __init__(self, source: Source, indices: np.ndarray):
    self._source, self._indices = source, indices
    self.classes = source.classes

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, indices: np.ndarray) -> Examples:
    return self._source[self._indices[indices]]

  def fingerprint(self) -> str:
    return digest(np.frombuffer(self._source.fingerprint().encode(), np.uint8), self._indices)


def digest(*arrays: np.ndarray) -> str:
  """Returns the SHA-256 of the shapes, dtypes and values of arrays."""
  found = hashlib.sha256()
  for array in arrays:
    found.update(f"{array.shape} {array.dtype} ".encode())
    found.update(np.ascontiguousarray(array).data)
  return found.hexdigest()
