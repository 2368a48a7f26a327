"""Images as files: a directory tree, or a zip, of PNG, JPEG or WebP, as they are or as StyleGAN's and EDM's tools make.

Labels come from `dataset.json`, `{"labels": [[name, label], ...]}`, beside the images (the format of those tools), or,
without it, from the names of the directories. A folder is read as it is: every image must have the configured size.
`prepare_data` crops and resizes.
"""

import json
import struct
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from etils import epath

from r3gan_jax import storage
from r3gan_jax.data.images import decode, open_image, to_array
from r3gan_jax.data.source import Examples
from r3gan_jax.errors import UserError

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_LABELS = "dataset.json"
_CHECKED_AT_START = 2000
_READ_AT_ONCE = 16
_LONG_HEADER = 512
"""Of a zip's member; it and the data come in one read unless it is longer, and from an object store a read is slow."""


class ImageFiles:
  """The image files under a directory or in a zip, in the order of their names. Safe to read in threads; picklable.

  Either may lie in an object store.

  Attributes:
    path: the directory or zip.
    names: of the images, relative to it, with forward slashes.
    sizes: bytes of each file as it is stored.

  Raises:
    UserError: `path` is neither, is damaged, cannot be read, or holds no image.
  """

  def __init__(self, path: epath.PathLike):
    self.path = storage.as_path(path)
    self._zipped: dict[str, zipfile.ZipInfo] | None = None
    with storage.failing_as(f"cannot read {self.path}", self.path):
      if self.path.is_dir():
        names = storage.list_files(self.path)
      elif self.path.exists():
        self._zipped = _members(self.path)
        names = list(self._zipped)
      else:
        raise UserError(f"{self.path} is neither a directory nor a zip: name the images' folder or zip")
    self.names = sorted(name for name in names if name.lower().endswith(_SUFFIXES))
    if not self.names:
      raise UserError(f"{self.path} holds no image: put files named {', '.join('*' + s for s in _SUFFIXES)} there")

  @property
  def sizes(self) -> list[int]:
    if self._zipped:
      return [self._zipped[name].compress_size for name in self.names]
    return storage.file_sizes(self.path, self.names)

  def __len__(self) -> int:
    return len(self.names)

  def title(self, index: int) -> str:
    """What an error calls an image."""
    return f"{self.names[index]} in {self.path}"

  def read(self, index: int) -> bytes:
    """The bytes of one file."""
    return self._read(self.names[index])

  def _read(self, name: str) -> bytes:
    with storage.failing_as(f"cannot read {name} in {self.path}", self.path):
      if self._zipped is None:
        return storage.read(self.path / name)
      # Not through zipfile, whose readers share one file position: threads would wait for each other.
      member = self._zipped[name]
      start, stop = member.header_offset, member.header_offset + member.compress_size
      data = storage.read(self.path, start, stop + _LONG_HEADER)
      header = 30 + sum(struct.unpack_from("<HH", data, 26))  # with the name and the extra field
      if header > _LONG_HEADER:
        data = storage.read(self.path, start, stop + header)
    data = data[header : header + member.compress_size]
    try:
      return data if member.compress_type == zipfile.ZIP_STORED else zlib.decompress(data, -zlib.MAX_WBITS)
    except zlib.error:
      return b""  # which is no image either

  def listed_labels(self) -> np.ndarray | None:
    """int32 [n], of dataset.json; None where there is no such file, or it says that there are no labels.

    Raises:
      UserError: it is not of the format, or lacks an image.
    """
    if not (_LABELS in self._zipped if self._zipped is not None else (self.path / _LABELS).exists()):
      return None
    where = f"{_LABELS} in {self.path}"
    try:
      pairs = json.loads(self._read(_LABELS))["labels"]
      labels = {name.replace("\\", "/"): label for name, label in pairs} if pairs is not None else None
    except (ValueError, KeyError, TypeError, AttributeError):
      raise UserError(f'{where} is not of the form {{"labels": [[name, label], ...]}}: mend or remove it') from None
    if labels is None:
      return None
    for name in self.names:
      label = labels.get(name)
      if not isinstance(label, int) or not 0 <= label < 2**31:
        raise UserError(f"{where} labels {name} {json.dumps(label)}: give each image a class number from 0")
    return np.array([labels[name] for name in self.names], np.int32)

  def directory_labels(self) -> tuple[np.ndarray, list[str]]:
    """(int32 [n], names of the classes): the directories below the one that all images share, in order.

    Raises:
      UserError: an image lies in none of them.
    """
    parts = [name.split("/") for name in self.names]
    first, last = parts[0][:-1], parts[-1][:-1]  # the names are sorted, so what these two share, all do
    depth = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    for name, part in zip(self.names, parts, strict=True):
      if len(part) < depth + 2:
        raise UserError(
          f"{name} in {self.path} has no label: list it in {_LABELS}, or sort the images into one directory a class"
        )
    classes, labels = np.unique([part[depth] for part in parts], return_inverse=True)
    return labels.astype(np.int32), classes.tolist()


class FolderSource:
  """The images of a directory or zip, which must all have the configured size.

  Args:
    path: the directory or zip.
    image_shape: (H, W, C); grey images become RGB where C is 3.
    num_classes: 0 for images without labels.

  Raises:
    UserError: there are no images, or of another size, or labels are missing or out of range. What is wrong with
      single files is raised at start for up to 2000 of them, else when they are first read.
  """

  def __init__(self, path: str, image_shape: tuple[int, int, int], num_classes: int):
    self._files = ImageFiles(path)
    self._shape = image_shape
    self._labels = _labels(self._files, num_classes) if num_classes else None
    spread = np.linspace(0, len(self) - 1, min(len(self), _CHECKED_AT_START)).astype(int)

    def check(index: int) -> None:
      self._check_size(open_image(self._files.read(index), self._files.title(index)).size, index)

    with ThreadPoolExecutor(_READ_AT_ONCE) as threads:
      list(threads.map(check, spread.tolist()))

  def __len__(self) -> int:
    return len(self._files)

  def __getitem__(self, indices: np.ndarray) -> Examples:
    examples = {"image": np.stack([self._image(index) for index in indices.tolist()])}
    return examples if self._labels is None else examples | {"label": self._labels[indices]}

  def _image(self, index: int) -> np.ndarray:
    image = decode(self._files.read(index), self._files.title(index), self._shape[-1])
    self._check_size(image.size, index)
    return to_array(image)

  def _check_size(self, size: tuple[int, int], index: int) -> None:
    height, width, _ = self._shape
    if size != (width, height):
      raise UserError(
        f"{self._files.title(index)} is {size[0]}x{size[1]}, but config.data.resolution = {height}: make a data set of "
        f"that size: python -m r3gan_jax.cli.prepare_data --images={self._files.path} --name=NAME --resolution={height}"
      )


def _labels(files: ImageFiles, num_classes: int) -> np.ndarray:
  labels = files.listed_labels()
  if labels is None:
    labels, classes = files.directory_labels()
    if len(classes) != num_classes:
      raise UserError(
        f"{files.path} has {len(classes)} directories of images, but config.data.num_classes = {num_classes}: "
        f"set it to match, or list the labels in {_LABELS}"
      )
  index = int(labels.argmax())
  if labels[index] >= num_classes:
    raise UserError(
      f"{files.title(index)} has label {labels[index]}, but config.data.num_classes = {num_classes}: set it to match"
    )
  return labels


def _members(path: epath.Path) -> dict[str, zipfile.ZipInfo]:
  try:
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
      members = {member.filename: member for member in archive.infolist() if not member.is_dir()}
  except zipfile.BadZipFile:
    raise UserError(f"{path} is no zip, or one cut short: fetch or make it again") from None
  for member in members.values():
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.flag_bits & 1:
      raise UserError(f"{member.filename} in {path} is encrypted or of a rare compression: pack it again with `zip`")
  return members
