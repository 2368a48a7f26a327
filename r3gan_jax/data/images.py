"""Decodes the images in files and records, and fits them to the configured size."""

import struct
import zlib
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image, ImageColor, ImageOps, PngImagePlugin

from r3gan_jax.errors import UserError, one_line

FITS = ("crop_resize", "pad")
"""The ways to fit images of another size: see `fit`."""

Image.init()
FORMATS = tuple(
  name for name in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "QOI") if name in Image.OPEN
)
"""Pillow's names of the supported formats; only the first page or frame of an image is read."""

SUFFIXES = frozenset(
  suffix for suffix, name in Image.registered_extensions().items() if name in (*FORMATS, "MPO")
)  # MPO, written by many cameras: a JPEG followed by another
"""File suffixes of these formats, in lower case, with the dot."""

LARGEST_MEGAPIXELS = 1000
"""The largest image that is decoded, 3 GB as RGB; Pillow's own limit, 179, excludes panoramas and scans."""

Image.MAX_IMAGE_PIXELS = LARGEST_MEGAPIXELS * 500_000  # Pillow warns here, and refuses twice as many
PngImagePlugin.MAX_TEXT_CHUNK = 2**26  # bytes unpacked; ICC profiles of printers exceed Pillow's 1 MiB
PngImagePlugin.MAX_TEXT_MEMORY = 2**27

_MODES = {1: "L", 3: "RGB"}
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_EXIF_ORIENTATION = 0x0112


class CorruptImage(UserError):
  """Raised for bytes that cannot be read as an image."""


@dataclass(frozen=True)
class Decoder:
  """Decodes bytes to 8-bit images of one kind.

  Attributes:
    channels: 1 (grey) or 3 (RGB).
    background: the colour under transparent pixels, by name or #rrggbb.

  Raises:
    UserError: another number of channels, or an unknown colour.
  """

  channels: int
  background: str = "white"

  def __post_init__(self) -> None:
    if self.channels not in _MODES:
      raise UserError(f"config.data.channels = {self.channels}: images are read as grey (1) or RGB (3)")
    try:
      ImageColor.getcolor(self.background, "RGB")
    except ValueError:
      raise UserError(f"background {self.background!r} is not a colour: give a name or #rrggbb") from None

  def __call__(self, data: bytes, name: str) -> Image.Image:
    """Returns the image, rotated by its EXIF orientation, over the background, grey or RGB as configured.

    Args:
      data: an encoded image.
      name: for error messages.

    Raises:
      CorruptImage: it cannot be decoded to the end, or a checksum in it is wrong.
      UserError: a colour image where `channels` is 1, more than 8 bits per channel, or too many pixels.
    """
    image = open_image(data, name)
    try:
      image.load()
      if image.format == "PNG":
        _check_png(data)
      ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
      raise
    except Exception as error:  # a broken file can raise anything in Pillow's readers
      raise CorruptImage(f"{name} is damaged or cut short ({one_line(error)}): replace or remove it") from None
    if image.mode.startswith(("I", "F")):
      raise UserError(f"{name} has more than 8 bits per channel ({image.mode}): convert it to 8 bits")
    if self.channels == 1 and image.mode not in ("1", "L", "LA"):
      raise UserError(f"{name} is a colour image ({image.mode}), but grey images are expected: set the channels to 3")
    if image.has_transparency_data:
      ground = Image.new("RGBA", image.size, ImageColor.getcolor(self.background, "RGB"))
      image = Image.alpha_composite(ground, image.convert("RGBA"))
    return image if image.mode == _MODES[self.channels] else image.convert(_MODES[self.channels])


def open_image(data: bytes, name: str) -> Image.Image:
  """Returns an image of which only the header has been read; `name` is for error messages.

  Raises:
    CorruptImage: the header is not of any of `FORMATS`.
    UserError: it has too many pixels to decode.
  """
  try:
    return Image.open(BytesIO(data), formats=FORMATS)
  except MemoryError:
    raise
  except Image.DecompressionBombError:
    raise UserError(f"{name} has more than {LARGEST_MEGAPIXELS} megapixels: make it smaller or remove it") from None
  except Image.UnidentifiedImageError:
    what = "is empty" if not data else f"is not an image of a supported format ({', '.join(FORMATS)})"
    raise CorruptImage(f"{name} {what}: replace or remove it") from None
  except Exception as error:
    raise CorruptImage(f"{name} has a damaged header ({one_line(error)}): replace or remove it") from None


def upright_size(image: Image.Image) -> tuple[int, int]:
  """Returns (width, height) of an opened image after rotation by its EXIF orientation."""
  width, height = image.size
  # Pillow itself rotates TIFF. EXIF, which in PNG may follow the pixels, does not matter to squares.
  turned = width != height and image.format != "TIFF" and image.getexif().get(_EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
  return (height, width) if turned else (width, height)


def _check_png(data: bytes) -> None:
  """Raises a ValueError if the checksum of a chunk is wrong; Pillow does not verify those of pixels."""
  start, kind = len(_PNG_SIGNATURE), b""
  while kind != b"IEND":
    length, kind = struct.unpack_from(">I4s", data, start)
    end = start + 8 + length
    if struct.unpack_from(">I", data, end) != (zlib.crc32(memoryview(data)[start + 4 : end]),):
      raise ValueError(f"the checksum of its {kind.decode('latin-1')} chunk is wrong")
    start = end + 4


def fit(image: Image.Image, resolution: int, how: str, name: str) -> Image.Image:
  """Returns `image` at `resolution` x `resolution`; unchanged if it has that size.

  Args:
    image: 8 bits per channel.
    resolution: pixels.
    how: "crop_resize" crops the largest centred square and resizes it with Pillow's antialiased Lanczos filter, as the
      data tools of StyleGAN and EDM do, which made the FFHQ of published scores. "pad" surrounds a smaller image with
      zeros, the convention for MNIST, 28 -> 32.
    name: for error messages.

  Raises:
    UserError: an image to pad is larger than `resolution`.
  """
  size = (resolution, resolution)
  if image.size == size:
    return image
  width, height = image.size
  if how == "crop_resize":
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side)).resize(size, Image.Resampling.LANCZOS)
  if max(width, height) > resolution:
    raise UserError(f"{name} is {width}x{height}, too large to pad to {resolution}: set config.data.resolution")
  left, top = (resolution - width) // 2, (resolution - height) // 2
  return ImageOps.expand(image, (left, top, resolution - width - left, resolution - height - top))


def to_array(image: Image.Image) -> np.ndarray:
  """Returns uint8 [H, W, 1 or 3]."""
  return np.asarray(image).reshape(image.height, image.width, -1)
