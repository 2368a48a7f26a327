"""TFDS data sets prepared as ArrayRecord, read by index and without TensorFlow."""

from typing import Any

import numpy as np

from r3gan_jax.data.source import Examples
from r3gan_jax.errors import UserError


class TfdsSource:
  """One split of a prepared TFDS image data set.

  Args:
    name: as TFDS knows it, e.g. "cifar10" or "imagenet_resized/64x64".
    split: e.g. "train" or "train+test".
    directory: where it is prepared; "" for TFDS's own default.
    image_shape: (H, W, C) that every record must have.
    label_key: the feature to take labels from, or None.
    prepare: the one line to run where the data set is not there yet, for the error.

  Raises:
    UserError: where the data set is unknown, not prepared, or of another shape.
  """

  def __init__(
    self, name: str, split: str, directory: str, image_shape: tuple[int, int, int], label_key: str | None, prepare: str
  ):
    import tensorflow_datasets as tfds

    missing = f"data set '{name}' is not prepared under {directory or 'the default TFDS directory'}: {prepare}"
    try:
      builder = tfds.builder(name, data_dir=directory or None, file_format="array_record")
    except tfds.core.DatasetNotFoundError:
      raise UserError(missing) from None
    if not builder.data_path.exists():
      raise UserError(missing)
    self._records: Any = builder.as_data_source(split)
    self._label_key = label_key
    shape = self._records[0]["image"].shape
    if shape != image_shape:
      raise UserError(
        f"data set '{name}' holds images of shape {shape}, but the configuration says {image_shape}: "
        "set config.data.resolution and config.data.channels to match"
      )

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, indices: np.ndarray) -> Examples:
    records = self._records.__getitems__(indices.tolist())
    examples = {"image": np.stack([record["image"] for record in records])}
    if self._label_key is None:
      return examples
    return examples | {"label": np.array([record[self._label_key] for record in records], np.int32)}
