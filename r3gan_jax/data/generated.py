"""Random images for the `:smoke` variants."""

import numpy as np

from r3gan_jax.data.source import Examples, digest


class GeneratedSource:
  """A fixed set of `size` random images of coloured blocks, of any resolution, channels and number of classes."""

  classes: tuple[str, ...] = ()

  def __init__(self, resolution: int, channels: int, num_classes: int, size: int = 256):
    random = np.random.default_rng(0)
    blocks = random.integers(0, 256, (size, 4, 4, channels), dtype=np.uint8)
    side = resolution // 4
    self._images = blocks.repeat(side, axis=1).repeat(side, axis=2)
    self._labels = random.integers(0, num_classes, size, dtype=np.int32) if num_classes else None

  def __len__(self) -> int:
    return len(self._images)

  def __getitem__(self, indices: np.ndarray) -> Examples:
    examples = {"image": self._images[indices]}
    return examples if self._labels is None else examples | {"label": self._labels[indices]}

  def fingerprint(self) -> str:
    return digest(self._images)
