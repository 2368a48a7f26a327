"""Pairs of images, A and B, one of which is the condition of the other: prepared from files, and read (as pix2pix's,
Isola et al. 2017, arXiv 1611.07004).

    A/NAME.png, B/NAME.jpg   two folders; suffixes may differ, and there may be folders in them
    NAME.png                 both in one image: A is the left half, B the right

A prepared data set has the features "condition" and "image", of one size.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from r3gan_jax.data.files import ImageFiles
from r3gan_jax.data.images import Decoder, fit, for_png, to_array
from r3gan_jax.data.prepare import check_name, write_new
from r3gan_jax.data.shards import Prepared
from r3gan_jax.data.survey import describe, survey
from r3gan_jax.data.tfds import TfdsSource
from r3gan_jax.errors import UserError

DIRECTIONS = ("AtoB", "BtoA")
"""The condition, then the image that is to be drawn."""

_FOLDERS = ("A", "B")


@dataclass(frozen=True)
class PairRecords:
  """Pairs of image files, each cropped and resized to `size` (`shards.Records`).

  Attributes:
    files: all of them.
    pairs: the numbers of the files A and B of each pair; the same number twice: the halves of one file.
    size: (height, width).
    decoder: of images.
    condition_decoder: of conditions.
    direction: one of `DIRECTIONS`.
  """

  files: ImageFiles
  pairs: list[tuple[int, int]]
  size: tuple[int, int]
  decoder: Decoder
  condition_decoder: Decoder
  direction: str

  def __len__(self) -> int:
    return len(self.pairs)

  def example(self, index: int) -> dict[str, Any]:
    a, b = self.pairs[index]
    if a == b:
      opened = _halves(self._open(a, self.decoder), self.files.title(a))
    else:
      decoders = self._of_sides(self.condition_decoder, self.decoder)
      opened = self._open(a, decoders[0]), self._open(b, decoders[1])
      if opened[0].size != opened[1].size:
        first, second = (f"{image.width}x{image.height}" for image in opened)
        raise UserError(
          f"{self.files.title(a)} is {first}, but {self.files.names[b]} is {second}: crop or resize one of them, so "
          "that both show the same part"
        )
    condition, image = self._of_sides(*opened)
    title = self.files.title(b)
    fitted = {"condition": fit(condition, self.size, "crop_resize", title)}
    fitted |= {"image": fit(image, self.size, "crop_resize", title)}
    return {name: for_png(half) for name, half in fitted.items()}

  def digest(self) -> str:
    """Returns a hash of the names and contents of the files, of the background and the direction."""
    described = zip(self.files.names, self.files.fingerprints(), strict=True)
    parts = (self.decoder.background, self.direction, *described)
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()

  def _open(self, index: int, decoder: Decoder) -> Image.Image:
    return decoder(self.files.read(index), self.files.title(index))

  def _of_sides(self, first: Any, second: Any) -> tuple[Any, Any]:
    """Reorders (A, B) to (condition, image), or back."""
    return (first, second) if self.direction == "AtoB" else (second, first)


def _halves(image: Image.Image, title: str) -> tuple[Image.Image, Image.Image]:
  _check_width(image.size, title)
  middle = image.width // 2
  return image.crop((0, 0, middle, image.height)), image.crop((middle, 0, image.width, image.height))


def _check_width(size: tuple[int, int], title: str) -> None:
  if size[0] % 2:
    raise UserError(
      f"{title} is {size[0]}x{size[1]}: an odd width has no halves: give images with A on the left and B on the right, "
      "or put them into the folders A and B"
    )


def matched(files: ImageFiles) -> list[tuple[int, int]]:
  """Returns the numbers of the files A and B of each pair, by name.

  If no file is in a folder A or B, each is the pair of its halves, the same number twice.

  Raises:
    UserError: a file has no partner, or two have the same.
  """
  found: dict[str, dict[str, int]] = {folder: {} for folder in _FOLDERS}
  if not any(name.startswith(tuple(f"{folder}/" for folder in _FOLDERS)) for name in files.names):
    return [(index, index) for index in range(len(files))]
  for index, name in enumerate(files.names):
    folder, _, rest = name.partition("/")
    if folder not in found:
      raise UserError(f"{files.title(index)} is neither in A nor in B, as others are: move or remove it")
    stem = os.path.splitext(rest)[0]
    if (other := found[folder].setdefault(stem, index)) != index:
      raise UserError(
        f"{files.title(index)} and {files.names[other]} would have the same partner: rename or remove one of them"
      )
  for folder, other_folder in (_FOLDERS, _FOLDERS[::-1]):
    for stem, index in found[folder].items():
      if stem not in found[other_folder]:
        raise UserError(
          f"{files.title(index)} has no partner {other_folder}/{stem}.*: add it, or remove {files.names[index]}"
        )
  return [(index, found["B"][stem]) for stem, index in found["A"].items()]


def prepare_pairs(
  files: ImageFiles,
  name: str,
  data_dir: Path,
  size: tuple[int, int],
  decoder: Decoder,
  grey_conditions: bool,
  direction: str,
  processes: int,
  skip_corrupt: bool,
) -> Prepared:
  """Prepares the pairs among `files` as `prepare.prepare_images` prepares images; the two of a pair are cropped alike.

  Args:
    size: the height and width of each.
    decoder: of the images, and, but for `grey_conditions`, of the conditions.
    grey_conditions: conditions have one channel.
    direction: one of `DIRECTIONS`.

  Raises:
    UserError: pairs are not complete, the images of one have different sizes, or an image with two halves an odd width.
      Up to 2000 widths are checked at the start, the others when they are read.
  """
  import tensorflow_datasets as tfds

  check_name(name)
  pairs = matched(files)
  split = pairs[0][0] == pairs[0][1]
  if split and grey_conditions and decoder.channels != 1:
    raise UserError(
      f"{files.path}: halves of one image have the same channels: leave out --grey_conditions, or put the images into "
      "the folders A and B"
    )
  found = survey(files)
  for header in found.headers if split else ():
    _check_width(header.size, files.title(header.index))
  kind = "left and right halves" if split else "of the folders A and B"
  print(describe(files, found, f"{len(pairs):,} pairs, {kind}, {direction}", decoder), flush=True)
  condition_decoder = replace(decoder, channels=1) if grey_conditions else decoder
  features = {
    name: tfds.features.Image(shape=(*size, channels), encoding_format="png")
    for name, channels in (("condition", condition_decoder.channels), ("image", decoder.channels))
  }
  records = PairRecords(files, pairs, size, decoder, condition_decoder, direction)
  description = f"The pairs of {files.path.name} at {size[1]}x{size[0]}, {direction}"
  return write_new(name, data_dir, description, features, records, processes, skip_corrupt)


class PairSource(TfdsSource):
  """One split of a prepared data set of pairs: 'image' is [n, H, W, C + c], the image's channels, then the condition's.

  So whatever moves, mirrors or keeps images does it to both.

  Args:
    condition_channels: c.
    others: as of `TfdsSource`, and so are the errors.
  """

  def __init__(
    self,
    name: str,
    split: str,
    data_path: str,
    size: tuple[int, int],
    decoder: Decoder,
    fit_by: str,
    condition_channels: int,
  ):
    self._conditions = replace(decoder, channels=condition_channels)
    super().__init__(name, split, data_path, size, decoder, fit_by)

  def _image(self, record: Any, title: str) -> np.ndarray:
    condition = self._conditions(record["condition"].bytes_list.value[0], f"the condition of {title}")
    fitted = to_array(fit(condition, self._size, self._fit_by, title))
    return np.concatenate([super()._image(record, title), fitted], axis=-1)

  def _described(self) -> str:
    return f"{super()._described()} {self._conditions}"

  def _check_images(self, features: Mapping[str, Any]) -> None:
    super()._check_images(features)
    shape = getattr(features.get("condition"), "shape", None)
    if shape is None:
      raise UserError(
        f"{self._title} has no pairs: prepare them by prepare_data --pairs, or set config.data.condition_channels = 0 "
        "and config.gan.condition to what is made of images"
      )
    if shape[-1] != self._conditions.channels:
      raise UserError(
        f"{self._title} has conditions of {shape[-1]} channels, but config.data.condition_channels = "
        f"{self._conditions.channels}: set it to match"
      )
