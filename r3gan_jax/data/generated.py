"""Random images for the `:smoke` variants."""

import numpy as np

from r3gan_jax.data.source import Examples, digest


class GeneratedSource:
  """A fixed set of `count` random images of coloured blocks, [*size, channels], of any number of classes."""

  classes: tuple[str, ...] = ()

  def __init__(self, size: tuple[int, int], channels: int, num_classes: int, count: int = 256, bits: int = 8):
    random = np.random.default_rng(0)
    blocks = random.integers(0, 256, (count, 4, 4, channels), dtype=np.uint8)
    rows, columns = (np.arange(side) * 4 // side for side in size)
    images = blocks[:, rows][:, :, columns]
    if channels == 4:
      images[..., :3] = np.minimum(images[..., :3], images[..., 3:])
    self._images = images if bits == 8 else images.astype(np.uint16) * 257
    self._labels = random.integers(0, num_classes, count, dtype=np.int32) if num_classes else None

  def __len__(self) -> int:
    return len(self._images)

  def __getitem__(self, indices: np.ndarray) -> Examples:
    examples = {"image": self._images[indices]}
    return examples if self._labels is None else examples | {"label": self._labels[indices]}

  def fingerprint(self) -> str:
    return digest(self._images)
