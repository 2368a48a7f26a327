"""Describes image files in one line: their number, sizes, channels and classes, and what is skipped."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from r3gan_jax.data.files import ImageFiles, counted, in_threads
from r3gan_jax.data.images import CorruptImage, Decoder, open_image, upright_size

MAX_HEADERS = 2000

_MODES = {"1": "black and white", "L": "grey", "LA": "grey with alpha", "P": "palette", "RGBA": "RGB with alpha"}


@dataclass(frozen=True)
class Header:
  """The header of an image.

  Attributes:
    index: the number of the file.
    size: (width, height) after rotation by EXIF.
    mode: Pillow's name of the channels.
    transparent: whether it has an alpha channel or a transparent colour.
  """

  index: int
  size: tuple[int, int]
  mode: str
  transparent: bool


class Survey(NamedTuple):
  """Headers of images, and an error for each image without a valid one."""

  headers: list[Header]
  corrupt: list[CorruptImage]


def survey(files: ImageFiles) -> Survey:
  """Reads the headers of all files, or of `MAX_HEADERS` of them, evenly spread."""

  def look(index: int) -> Header | CorruptImage:
    try:
      image = open_image(files.read(index), files.title(index))
    except CorruptImage as error:
      return error
    return Header(index, upright_size(image), image.mode, image.has_transparency_data)

  indices = np.linspace(0, len(files) - 1, min(len(files), MAX_HEADERS)).astype(int)
  seen = list(in_threads(look, indices.tolist()))
  return Survey(
    [header for header in seen if isinstance(header, Header)],
    [error for error in seen if isinstance(error, CorruptImage)],
  )


def describe(files: ImageFiles, found: Survey, classes: str, decoder: Decoder) -> str:
  """Returns the line; `classes` is its part about classes, `decoder` tells what becomes of transparent pixels."""
  examined = len(found.headers) + len(found.corrupt)
  sizes = sorted({header.size for header in found.headers}, key=lambda size: (size[0] * size[1], size))
  ends = dict.fromkeys([*sizes[:1], *sizes[-1:]])
  modes = Counter(_MODES.get(header.mode, header.mode) for header in found.headers)
  transparent = sum(header.transparent for header in found.headers)
  kept = "kept so" if decoder.channels == 4 else f"put over {decoder.background}"
  seen = [
    " to ".join(f"{width}x{height}" for width, height in ends),
    *(f"{count:,} {mode}" for mode, count in modes.most_common()),
    f"{transparent:,} transparent, {kept}" if transparent else "",
    f"{len(found.corrupt):,} damaged" if found.corrupt else "",
  ]
  some = f"of {examined:,} examined: " if examined < len(files) else ""
  return (
    f"{len(files):,} images in {files.path}: {some}{', '.join(filter(None, seen))}; {classes}; "
    f"passed over: {counted(files.passed_over) or 'nothing'}"
  )


def name_classes(names: Sequence[str]) -> str:
  """Returns '3 classes: 0 = cat, 1 = dog, 2 = fish', with at most ten names."""
  shown = ", ".join(f"{index} = {name}" for index, name in enumerate(names[:10]))
  return f"{len(names):,} class{'es' * (len(names) != 1)}: {shown}{', ...' * (len(names) > 10)}"


def number_classes(labels: np.ndarray) -> str:
  """Returns '3 classes, numbered' for classes without names; `labels` int [n]."""
  count, present = int(labels.max()) + 1, len(np.unique(labels))
  missing = f", {count - present:,} of them without images" if present < count else ""
  return f"{count:,} class{'es' * (count != 1)}, numbered{missing}"
