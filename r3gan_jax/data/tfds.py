"""Reads TFDS data sets prepared as ArrayRecord, by index and without TensorFlow."""

import hashlib
import re
import resource
from abc import ABC, abstractmethod
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from r3gan_jax.data.files import in_threads
from r3gan_jax.data.images import Decoder, fit, to_array
from r3gan_jax.data.source import Examples
from r3gan_jax.data.survey import name_classes
from r3gan_jax.errors import UserError, one_line
from r3gan_jax.progress_bar import progress_bar
from r3gan_jax.storage import as_path, failing_as, is_remote

_IF_DAMAGED = "if it is damaged, remove it and prepare it again"

IDX_DATA_SETS = ("mnist", "fashion_mnist", "kmnist")
"""The data sets that `prepare_data` makes from idx files."""


class PreparedSource(ABC):
  """One split of a prepared data set: what the sources of images and of latents have in common.

  Args:
    name: in TFDS, e.g. "cifar10" or "imagenet_resized/64x64", or the --name given to `prepare_data`.
    split: e.g. "train" or "train+test".
    data_path: the local directory of prepared data sets ("": TFDS's default), or of this one.
    num_classes: 0 for images without labels.
    label_key: the feature with the labels.

  Raises:
    UserError: the data set is not prepared, is damaged, or lacks the split, feature or number of classes.
  """

  def __init__(self, name: str, split: str, data_path: str, num_classes: int, label_key: str):
    import tensorflow_datasets as tfds

    builder = opened(name, data_path)
    self._title = f"data set '{name}' in {builder.data_path}"
    self._num_classes = num_classes
    self._label_key = label_key if num_classes else None
    self.classes: tuple[str, ...] = ()
    features = dict(builder.info.features.items())
    self._check_images(features)
    self._check_labels(features)
    try:
      self._files = builder.info.splits[split].file_instructions
    except (KeyError, ValueError):
      known = sorted(builder.info.splits)
      raise UserError(f"config.data.split = {split!r}: {self._title} has the splits {known}") from None
    if not self._files:
      raise UserError(f"config.data.split = {split!r}: {self._title} has no images in it")
    _allow_open_files(len(self._files), self._title)
    # Raw records: TFDS would decode every feature, and images at half the speed.
    self._records: Any = builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    first_of_each_file = [0, *accumulate(file.take for file in self._files)][:-1]
    self._read(first_of_each_file)

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, indices: np.ndarray) -> Examples:
    records = self._read(indices.tolist())
    titles = [f"record {index} of {self._title}" for index in indices.tolist()]
    examples = {"image": np.stack([self._image(*pair) for pair in zip(records, titles, strict=True)])}
    if self._label_key is None:
      return examples
    return examples | {"label": np.array([self._label(*pair) for pair in zip(records, titles, strict=True)], np.int32)}

  def fingerprint(self) -> str:
    def of_file(index: int) -> str:
      part = self._files[index]
      with failing_as(f"cannot read {part.filename}", part.filename, _IF_DAMAGED), open(part.filename, "rb") as file:
        return f"{hashlib.file_digest(file, 'sha256').hexdigest()} {part.skip} {part.take}"

    count = len(self._files)
    with progress_bar(in_threads(of_file, range(count)), total=count, title="checksums", unit="files") as found:
      parts = [*found, self._described()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()

  def _read(self, indices: list[int]) -> list[Any]:
    from tensorflow_datasets.proto import tf_example_pb2

    try:
      # In one call: 8 us per record of a large file, instead of 64 us.
      records = self._records.__getitems__(indices)
    except (RuntimeError, OSError) as error:
      raise UserError(f"cannot read {self._title}: {one_line(error)}: {_IF_DAMAGED}") from None
    return [tf_example_pb2.Example.FromString(record).features.feature for record in records]

  @abstractmethod
  def _image(self, record: Any, title: str) -> np.ndarray:
    """Returns 'image' of one record."""

  @abstractmethod
  def _described(self) -> str:
    """Describes what 'image' depends on besides the files."""

  @abstractmethod
  def _check_images(self, features: Mapping[str, Any]) -> None:
    """Raises a UserError if the data set has no feature for 'image', or another one than asked for."""

  def _label(self, record: Any, title: str) -> int:
    (label,) = record[self._label_key].int64_list.value or (-1,)
    if not 0 <= label < self._num_classes:
      raise UserError(f"{title} has label {label}, but config.data.num_classes = {self._num_classes}: set it to match")
    return label

  def _check_labels(self, features: Mapping[str, Any]) -> None:
    import tensorflow_datasets as tfds

    if self._label_key is None:
      return
    label = features.get(self._label_key)
    if label is None or label.shape != () or not np.issubdtype(label.np_dtype, np.integer):
      raise UserError(
        f"config.data.label_key = {self._label_key!r} is not a feature of class numbers of {self._title}: choose from "
        f"{sorted(features)}, or set config.data.num_classes = 0"
      )
    if isinstance(label, tfds.features.ClassLabel) and label.num_classes != self._num_classes:
      raise UserError(
        f"{self._title} has {label.num_classes} classes, but config.data.num_classes = {self._num_classes}: "
        "set it to match"
      )
    if isinstance(label, tfds.features.ClassLabel):
      self.classes = tuple(label.names)


class TfdsSource(PreparedSource):
  """One split of a prepared image data set.

  Args:
    size: height and width of the result, in pixels.
    decoder: decodes the images; has the number of channels.
    fit_by: how images of another size are fitted: see `images.fit`.
    others: as of `PreparedSource`, and so are the errors.
  """

  def __init__(
    self,
    name: str,
    split: str,
    data_path: str,
    size: tuple[int, int],
    decoder: Decoder,
    fit_by: str,
    num_classes: int = 0,
    label_key: str = "label",
  ):
    self._size = size
    self._decoder = decoder
    self._fit_by = fit_by
    super().__init__(name, split, data_path, num_classes, label_key)

  def _image(self, record: Any, title: str) -> np.ndarray:
    image = self._decoder(record["image"].bytes_list.value[0], title)
    return to_array(fit(image, self._size, self._fit_by, title))

  def _described(self) -> str:
    return str((self._decoder, self._size, self._fit_by))

  def _check_images(self, features: Mapping[str, Any]) -> None:
    import tensorflow_datasets as tfds

    image = features.get("image")
    if not isinstance(image, tfds.features.Image):
      raise UserError(
        f"{self._title} has no feature 'image' with images, only {sorted(features)}: choose another data set"
      )
    bits = {np.dtype(np.uint8): 8, np.dtype(np.uint16): 16}.get(np.dtype(image.np_dtype))
    if bits is None:
      raise UserError(f"{self._title} has images of {np.dtype(image.np_dtype).name} instead of uint8: convert them")
    if bits > self._decoder.bits:
      raise UserError(f"{self._title} has images of 16 bits: set config.data.bits = 16 and config.data.channels = 1")
    if self._decoder.channels == 1 and image.shape[-1] in (3, 4):
      raise UserError(f"{self._title} has colour images: set config.data.channels = {image.shape[-1]}")


def default_data_dir() -> Path:
  """Returns TFDS's default directory of prepared data sets."""
  import tensorflow_datasets as tfds

  return Path(tfds.core.constants.DATA_DIR).expanduser()


def splits(name: str, data_path: str) -> list[str]:
  """Returns the names of the splits of a prepared data set; arguments and errors as of `number_of_classes`."""
  return sorted(opened(name, data_path).info.splits)


def number_of_classes(name: str, data_path: str, label_key: str) -> int:
  """Returns how many classes a prepared data set says it has.

  Args:
    name, data_path, label_key: as of `TfdsSource`.

  Raises:
    UserError: the data set is not prepared, or says nothing.
  """
  import tensorflow_datasets as tfds

  label = dict(opened(name, data_path).info.features.items()).get(label_key)
  if not isinstance(label, tfds.features.ClassLabel):
    raise UserError(f"data set '{name}' has no classes in its feature {label_key!r} (config.data.label_key)")
  return int(label.num_classes)


def describe_directory(directory: Path) -> str:
  """Describes a prepared data set: sizes, channels and classes."""
  features = dict(open_directory(directory).info.features.items())
  parts = []
  if shape := getattr(features.get("moments"), "shape", None):
    mirrored = " and of mirror images" * (shape[0] == 2)
    parts.append(f"latents{mirrored}, {shape[2]}x{shape[1]}, {shape[3] // 2} channels")
  elif shape := getattr(features.get("image"), "shape", None):
    height, width, channels = shape
    size = f"{width}x{height}" if height and width else "of several sizes"
    parts.append(f"{size}, { {1: 'grey', 3: 'RGB', 4: 'RGBA'}.get(channels, f'{channels} channels') }")
  names = getattr(features.get("label"), "names", None)
  parts.append(name_classes(names) if names else "no classes")
  return "; ".join(parts)


def prepared_directory(name: str, data_path: Path) -> Path | None:
  """Returns the directory that `TfdsSource` would read; None if there is none."""
  try:
    return Path(opened(name, str(data_path)).data_path)
  except UserError:
    return None


def opened(name: str, data_path: str) -> Any:
  """Returns the TFDS builder, from the files alone; the code that prepared them may need TensorFlow.

  Arguments and errors are as of `TfdsSource`.
  """
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core.read_only_builder import builder_from_files

  if is_remote(data_path):
    raise UserError(
      f"config.run.data_path = {data_path}: prepared data sets are read from local disks only: copy it to one, e.g. by "
      "`gcloud storage cp --recursive`"
    )
  data_path = str(as_path(data_path)) if data_path else ""
  if data_path and is_prepared(as_path(data_path)):
    return open_directory(Path(data_path))
  if not re.fullmatch(r"\w+(/[\w.+-]+)?(:[\d.*]+)?", name):
    raise UserError(f"config.data.name = {name!r}: give the name of a prepared data set, NAME or NAME/CONFIG")
  try:
    return builder_from_files(name, data_dir=data_path or None, file_format="array_record")
  except tfds.core.DatasetNotFoundError:
    where = data_path or default_data_dir()
    raise UserError(f"data set '{name}' is not prepared under {where}: run {_how_to_prepare(name)}") from None
  except Exception as error:  # TFDS can raise anything for files that it did not write
    where = f"data set '{name}' in {data_path or default_data_dir()}"
    if "file format" in str(error).lower():
      raise UserError(
        f"{where} is prepared in another format: run {_how_to_prepare(name)} --data_dir=ANOTHER ({one_line(error)})"
      ) from None
    raise UserError(f"{where} cannot be read ({one_line(error)}): {_IF_DAMAGED}") from None


def is_prepared(path: epath.Path) -> bool:
  """Whether `path` is the directory of a prepared data set, NAME/VERSION."""
  return not is_remote(path) and (path / "dataset_info.json").is_file()


def open_directory(directory: Path) -> Any:
  """Returns the TFDS builder of one prepared data set; raises a UserError if its description cannot be read."""
  import tensorflow_datasets as tfds

  try:
    return tfds.builder_from_directory(directory, file_format="array_record")
  except Exception as error:
    raise UserError(f"{directory} cannot be read ({one_line(error)}): {_IF_DAMAGED}") from None


_OTHER_FILES = 128
"""Files that a process may have open besides a data set's."""


def _allow_open_files(count: int, title: str) -> None:
  """Raises the limit of open files, which is 256 on macOS, if the shards of a data set need more."""
  limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
  needed = count + _OTHER_FILES
  if limit == resource.RLIM_INFINITY or limit >= needed:
    return
  if most != resource.RLIM_INFINITY and most < needed:
    raise UserError(f"{title} has {count} files, but a process may open only {most}: run ulimit -n {needed}")
  resource.setrlimit(resource.RLIMIT_NOFILE, (needed, most))


def _how_to_prepare(name: str) -> str:
  import tensorflow_datasets as tfds

  command = "python -m r3gan_jax.cli.prepare_data"
  if name in IDX_DATA_SETS:
    return f"{command} --idx=DIRECTORY --name={name}"
  if name.partition("/")[0] in tfds.list_builders(with_community_datasets=False):
    return f"{command} --tfds={name}"
  return f"{command} --images=FOLDER_OR_ZIP --name={name} --resolution=N"
