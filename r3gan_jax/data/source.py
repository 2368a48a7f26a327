"""The interface of data sources: images by index."""

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
