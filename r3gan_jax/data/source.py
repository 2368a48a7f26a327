"""What the loader reads from: images by index."""

from typing import Protocol

import numpy as np

Examples = dict[str, np.ndarray]
"""'image' uint8 [n, H, W, C] and, where there are classes, 'label' int32 [n]."""


class Source(Protocol):
  """A data set with random access; `source[i]` is the same image whenever and wherever it is asked for.

  Attributes:
    classes: the names of the classes, by number; () where there are none, or they have no names.
  """

  @property
  def classes(self) -> tuple[str, ...]: ...

  def __len__(self) -> int: ...

  def __getitem__(self, indices: np.ndarray) -> Examples:
    """The examples at `indices`, int64 [n]."""
