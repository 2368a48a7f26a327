"""Reads image files for training from a directory tree or a zip, including those of StyleGAN's and EDM's tools.

Every image must have the configured size; `prepare_data` crops and resizes.
"""

import numpy as np
from absl import logging

from r3gan_jax.data.files import LISTS, ImageFiles
from r3gan_jax.data.images import Decoder, to_array
from r3gan_jax.data.labels import directory_labels, list_above_all, listed_labels
from r3gan_jax.data.source import Examples
from r3gan_jax.data.survey import describe, name_classes, number_classes, survey
from r3gan_jax.errors import UserError


class FolderSource:
  """The images of a directory or zip, all of the configured size; logs what it finds.

  Args:
    path: the directory or zip.
    size: the height and width of the images, in pixels.
    decoder: decodes the images; has the number of channels.
    num_classes: 0 for images without labels.
    skip_corrupt: raises no error at the start for images that cannot be read.

  Raises:
    UserError: there are no images, an image has another size, or labels are missing or out of range. Up to 2000 files
      are checked at the start, the others when they are read.
  """

  def __init__(self, path: str, size: tuple[int, int], decoder: Decoder, num_classes: int, skip_corrupt: bool = False):
    self._files = ImageFiles(path)
    self._height, self._width = size
    self._decoder = decoder
    self.classes: tuple[str, ...] = ()
    self._labels: np.ndarray | None = None
    classes = "no classes"
    if num_classes:
      self._labels, self.classes = _labels(self._files, num_classes)
      classes = name_classes(self.classes) if self.classes else number_classes(self._labels)
    found = survey(self._files)
    if found.corrupt and not skip_corrupt:
      raise found.corrupt[0]
    for header in found.headers:
      self._check_size(header.size, header.index)
    logging.info("%s", describe(self._files, found, classes, decoder))

  def __len__(self) -> int:
    return len(self._files)

  def __getitem__(self, indices: np.ndarray) -> Examples:
    examples = {"image": np.stack([self._image(index) for index in indices.tolist()])}
    return examples if self._labels is None else examples | {"label": self._labels[indices]}

  def fingerprint(self) -> str:
    return f"{self._files.digest()} {self._decoder}"

  def _image(self, index: int) -> np.ndarray:
    image = self._decoder(self._files.read(index), self._files.title(index))
    self._check_size(image.size, index)
    return to_array(image)

  def _check_size(self, size: tuple[int, int], index: int) -> None:
    height, width = self._height, self._width
    if size != (width, height):
      other = f" --width={width}" * (width != height)
      raise UserError(
        f"{self._files.title(index)} is {size[0]}x{size[1]}, but config.data asks for {width}x{height}: resize with "
        f"python -m r3gan_jax.cli.prepare_data --images={self._files.path} --name=NAME --resolution={height}{other}"
      )


def _labels(files: ImageFiles, num_classes: int) -> tuple[np.ndarray, tuple[str, ...]]:
  """Returns (int32 [n], names of the classes, empty for listed labels)."""
  labels = listed_labels(files, or_directories=True)
  if labels is not None:
    index = int(labels.argmax())
    if labels[index] >= num_classes:
      raise UserError(
        f"{files.title(index)} has label {labels[index]}, but config.data.num_classes = {num_classes}: set it to match"
      )
    return labels, ()
  if above := list_above_all(files):
    raise UserError(f"{above} in {files.path} has no labels: set config.data.num_classes = 0")
  labels, classes = directory_labels(files)
  if len(classes) != num_classes:
    raise UserError(
      f"{files.path} has {name_classes(classes)}, by its directories, but config.data.num_classes = {num_classes}: "
      f"set it to match, or list the labels in {LISTS}"
    )
  return labels, tuple(classes)
