"""Prepares data sets: from image files, from MNIST's idx files, or by TFDS's own recipes. See cli/prepare_data.py."""

import gzip
import hashlib
import importlib.util
import math
import re
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from r3gan_jax.data.files import LISTS, ImageFiles
from r3gan_jax.data.images import Decoder, fit, for_png
from r3gan_jax.data.labels import directory_labels, listed_labels
from r3gan_jax.data.shards import Prepared, Records, write_data_set
from r3gan_jax.data.survey import describe, name_classes, number_classes, survey
from r3gan_jax.data.tfds import IDX_DATA_SETS
from r3gan_jax.errors import UserError, one_line
from r3gan_jax.storage import failing_as

MAX_SHARDS = 512
"""Readers keep all shards open, and systems commonly allow 1024 open files."""

IMAGES_PER_SHARD = 256
"""More if there would be more than `MAX_SHARDS` shards."""


class ImageRecords:
  """Image files, cropped and resized to `size`, (height, width), with `labels` int32 [n] or None."""

  def __init__(self, files: ImageFiles, labels: np.ndarray | None, size: tuple[int, int], decoder: Decoder):
    self._files = files
    self._labels = labels
    self._size = size
    self._decoder = decoder

  def __len__(self) -> int:
    return len(self._files)

  def example(self, index: int) -> dict[str, Any]:
    title = self._files.title(index)
    image = self._decoder(self._files.read(index), title)
    example = {"image": for_png(fit(image, self._size, "crop_resize", title))}
    return example if self._labels is None else example | {"label": int(self._labels[index])}

  def digest(self) -> str:
    """Returns a hash of the names, contents and labels of the files, and of the background."""
    labels = [None] * len(self) if self._labels is None else self._labels.tolist()
    described = zip(self._files.names, self._files.fingerprints(), labels, strict=True)
    return hashlib.sha256("\n".join(map(str, (self._decoder.background, *described))).encode()).hexdigest()


class ArrayRecords:
  """Images uint8 [n, H, W] and labels int [n]."""

  def __init__(self, images: np.ndarray, labels: np.ndarray):
    self._images = images
    self._labels = labels

  def __len__(self) -> int:
    return len(self._images)

  def example(self, index: int) -> dict[str, Any]:
    return {"image": Image.fromarray(self._images[index]), "label": int(self._labels[index])}

  def digest(self) -> str:
    return hashlib.sha256(self._images.tobytes() + self._labels.tobytes()).hexdigest()


def check_name(name: str) -> None:
  """Raises a UserError if a data set cannot have this name."""
  if not re.fullmatch("[a-z][a-z0-9_]*", name):
    raise UserError(f"--name={name}: use lower-case letters, digits and _, starting with a letter")


def prepare_images(
  files: ImageFiles,
  name: str,
  data_dir: Path,
  size: tuple[int, int],
  decoder: Decoder,
  class_directories: bool,
  processes: int,
  skip_corrupt: bool,
) -> Prepared:
  """Prepares `files`: the largest centred part of the right shape, resized to `size` (`images.fit`), as PNG.

  They become the split "train" of version 1.0.0 of data set `name`. Labels come from a `dataset.json`, if it has any,
  or with `class_directories` from the directories. Prints one line about what it finds.
  """
  import tensorflow_datasets as tfds

  check_name(name)
  labels = listed_labels(files, class_directories)
  dtype = {8: np.uint8, 16: np.uint16}[decoder.bits]
  features = {"image": tfds.features.Image(shape=(*size, decoder.channels), dtype=dtype, encoding_format="png")}
  in_directories = any("/" in name for name in files.names)
  classes = "no classes" + " (with --class_directories, each directory is one)" * in_directories
  if class_directories:
    if labels is not None:
      raise UserError(f"{files.path} has labels in a {LISTS}: leave out --class_directories, or remove the file")
    labels, names = directory_labels(files)
    features["label"] = tfds.features.ClassLabel(names=names)
    classes = name_classes(names)
  elif labels is not None:
    features["label"] = tfds.features.ClassLabel(num_classes=int(labels.max()) + 1)
    classes = number_classes(labels)
  print(describe(files, survey(files), classes, decoder), flush=True)
  records = ImageRecords(files, labels, size, decoder)
  description = f"The images of {files.path.name} at {size[1]}x{size[0]}"
  return write_new(name, data_dir, description, features, records, processes, skip_corrupt)


def write_new(
  name: str,
  data_dir: Path,
  description: str,
  features: Mapping[str, Any],
  records: Records,
  processes: int = 1,
  skip_corrupt: bool = False,
) -> Prepared:
  """Writes the split "train" of version 1.0.0 of a data set of ours; the rest is as of `shards.write_data_set`.

  Args:
    features: the tfds.features of a record, by name.
  """
  import tensorflow_datasets as tfds

  identity = tfds.core.dataset_info.DatasetIdentity(
    name=name, version=tfds.core.Version("1.0.0"), data_dir=str(data_dir), module_name=__name__
  )
  info = tfds.core.DatasetInfo(
    builder=identity,
    description=f"{description}, prepared by r3gan_jax.",
    features=tfds.features.FeaturesDict(features),
  )
  images_per_shard = max(IMAGES_PER_SHARD, math.ceil(len(records) / MAX_SHARDS))
  return write_data_set(info, data_dir, {"train": records}, images_per_shard, processes, skip_corrupt)


def prepare_idx(directory: epath.Path, name: str, data_dir: Path) -> Prepared:
  """Prepares MNIST or a data set in its format from its four idx files, as TFDS does but without TensorFlow."""
  import tensorflow_datasets as tfds

  if name not in IDX_DATA_SETS:
    raise UserError(f"--name={name}: with --idx, choose from {', '.join(IDX_DATA_SETS)}")
  info = tfds.builder(name, data_dir=data_dir, file_format="array_record").info
  splits = {}
  for split, prefix in (("train", "train"), ("test", "t10k")):
    images, labels = (_read_idx(directory, f"{prefix}-{kind}") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"))
    height, width, _ = info.features["image"].shape
    if images.shape != (len(labels), height, width):
      raise UserError(
        f"{directory} has {prefix} images of shape {images.shape} and {len(labels)} labels, but {name} has one label "
        f"per image of {height}x{width}: download the files again"
      )
    if labels.max() >= info.features["label"].num_classes:
      raise UserError(
        f"{directory} has a {prefix} label {labels.max()}, but {name} has {info.features['label'].num_classes} classes"
      )
    splits[split] = ArrayRecords(images, labels)
  return write_data_set(info, data_dir, splits, images_per_shard=len(splits["train"]))


def prepare_tfds(name: str, data_dir: Path, manual_dir: Path | None) -> Prepared:
  """Prepares a data set of TFDS's catalogue by TFDS's own code; needs TensorFlow.

  Args:
    name: the name in the catalogue.
    data_dir: the directory of prepared data sets.
    manual_dir: files that are already downloaded, under their published names. TFDS uses them instead of the network
      and verifies the checksums that it has.
  """
  if not importlib.util.find_spec("tensorflow"):
    raise UserError(f"--tfds={name} needs TensorFlow to run TFDS's recipe: pip install -e '.[tfds]'")
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

  try:
    builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
  except tfds.core.DatasetNotFoundError:
    raise UserError(
      f"--tfds={name}: TFDS has no such data set: choose from https://www.tensorflow.org/datasets/catalog"
    ) from None
  config = tfds.download.DownloadConfig(
    manual_dir=manual_dir,
    # TFDS's default is named after the file alone, which is the same for MNIST and Fashion-MNIST.
    extract_dir=data_dir / "downloads" / "extracted" / name,
    try_download_gcs=False,
  )
  try:
    builder.download_and_prepare(download_config=config)
  except NonMatchingChecksumError as error:
    raise UserError(f"--tfds={name}: {one_line(error)}: download the file again") from None
  except (AssertionError, OSError) as error:  # no manual directory; no network, no space
    cure = "download the files by other means and give their directory with --manual_dir"
    raise UserError(f"--tfds={name}: {one_line(error)}: {cure}") from None
  return Prepared(Path(builder.data_path), builder.info.splits.total_num_examples, 0)


def _read_idx(directory: epath.Path, name: str) -> np.ndarray:
  """Reads an idx file of unsigned bytes, plain or gzipped: uint8 of any shape."""
  with failing_as(f"cannot read {directory}", directory):
    path = next((path for path in (directory / name, directory / f"{name}.gz") if path.exists()), None)
    if path is None:
      raise UserError(f"{directory} has neither {name} nor {name}.gz: download it, and give its directory with --idx")
    data = path.read_bytes()
  try:
    data = gzip.decompress(data) if path.suffix == ".gz" else data
    zeros, kind, rank = struct.unpack_from(">HBB", data)
    shape = struct.unpack_from(f">{rank}I", data, 4)
    if (zeros, kind) != (0, 8):
      raise ValueError
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)
  except (OSError, EOFError, zlib.error, struct.error, ValueError):
    raise UserError(f"{path} is not an idx file of bytes or is cut short: download it again") from None
