"""Encoded images, as files and records hold them: decoded, and fitted to the configured size."""

import struct
import zlib
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image, ImageColor, ImageOps, PngImagePlugin

from r3gan_jax.errors import UserError, one_line

FITS = ("crop_resize", "pad")
"""How images of another size come to the configured one: see `fit`."""

Image.init()
FORMATS = tuple(
  name for name in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "QOI") if name in Image.OPEN
)
"""The formats of Pillow's that are read; of several pages or frames, the first."""

SUFFIXES = frozenset(
  suffix for suffix, name in Image.registered_extensions().items() if name in (*FORMATS, "MPO")
)  # MPO: what many cameras make, a JPEG with another one behind it
"""Suffixes of files in these formats, in small letters, dot included."""

LARGEST_MEGAPIXELS = 1000
"""The largest image to decode, 3 GB as RGB. Pillow's own limit, 179, refuses panoramas and scans."""

Image.MAX_IMAGE_PIXELS = LARGEST_MEGAPIXELS * 500_000  # Pillow warns here, and refuses twice as many
PngImagePlugin.MAX_TEXT_CHUNK = 2**26  # of an ICC profile or text, unpacked; Pillow's 1 MiB refuses printers' profiles
PngImagePlugin.MAX_TEXT_MEMORY = 2**27

_MODES = {1: "L", 3: "RGB"}
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_EXIF_ORIENTATION = 0x0112


class CorruptImage(UserError):
  """The bytes are no image that can be read."""


@dataclass(frozen=True)
class Decoder:
  """Encoded bytes to 8-bit images of one kind.

  Attributes:
    channels: 1 (grey) or 3 (RGB).
    background: the colour under transparent pixels, by name or #rrggbb.

  Raises:
    UserError: there are other channels, or the background is no colour.
  """

  channels: int
  background: str = "white"

  def __post_init__(self) -> None:
    if self.channels not in _MODES:
      raise UserError(f"config.data.channels = {self.channels}: images are read as grey (1) or RGB (3)")
    try:
      ImageColor.getcolor(self.background, "RGB")
    except ValueError:
      raise UserError(f"background {self.background!r} is no colour: give a name or #rrggbb") from None

  def __call__(self, data: bytes, name: str) -> Image.Image:
    """The image, upright by its EXIF orientation, over the background; grey is made RGB where wanted.

    Args:
      data: an encoded image.
      name: what an error calls it.

    Raises:
      CorruptImage: it cannot be decoded to its end, or a checksum in it is wrong.
      UserError: it has colours and `channels` is 1, more than 8 bits a channel, or too many pixels.
    """
    image = open_image(data, name)
    try:
      image.load()
      if image.format == "PNG":
        _check_png(data)
      ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
      raise
    except Exception as error:  # Pillow's readers raise whatever a broken file makes of them
      raise CorruptImage(f"{name} is damaged or cut short ({one_line(error)}): replace or remove it") from None
    if image.mode.startswith(("I", "F")):
      raise UserError(f"{name} has more than 8 bits a channel ({image.mode}): convert it to 8 bits")
    if self.channels == 1 and image.mode not in ("1", "L", "LA"):
      raise UserError(f"{name} is a colour image ({image.mode}), but one channel is asked for: ask for 3 channels")
    if image.has_transparency_data:
      ground = Image.new("RGBA", image.size, ImageColor.getcolor(self.background, "RGB"))
      image = Image.alpha_composite(ground, image.convert("RGBA"))
    return image if image.mode == _MODES[self.channels] else image.convert(_MODES[self.channels])


def open_image(data: bytes, name: str) -> Image.Image:
  """An image of which only the header is read yet; `name` is what an error calls it.

  Raises:
    CorruptImage: the header is that of none of `FORMATS`.
    UserError: it has too many pixels to decode.
  """
  try:
    return Image.open(BytesIO(data), formats=FORMATS)
  except MemoryError:
    raise
  except Image.DecompressionBombError:
    raise UserError(f"{name} has more than {LARGEST_MEGAPIXELS} megapixels: make it smaller or remove it") from None
  except Image.UnidentifiedImageError:
    what = "is empty" if not data else f"is no image of {', '.join(FORMATS)}"
    raise CorruptImage(f"{name} {what}: replace or remove it") from None
  except Exception as error:
    raise CorruptImage(f"{name} has a damaged header ({one_line(error)}): replace or remove it") from None


def upright_size(image: Image.Image) -> tuple[int, int]:
  """(width, height) of an opened image, once it is turned by its EXIF orientation."""
  width, height = image.size
  # Pillow itself turns TIFF. Squares stay squares, whose EXIF need not be searched for, in PNG behind the pixels.
  turned = width != height and image.format != "TIFF" and image.getexif().get(_EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
  return (height, width) if turned else (width, height)


def _check_png(data: bytes) -> None:
  """Raises ValueError where a chunk's checksum is wrong: of the pixels' chunks Pillow does not look at it."""
  start, kind = len(_PNG_SIGNATURE), b""
  while kind != b"IEND":
    length, kind = struct.unpack_from(">I4s", data, start)
    end = start + 8 + length
    if struct.unpack_from(">I", data, end) != (zlib.crc32(memoryview(data)[start + 4 : end]),):
      raise ValueError(f"the checksum of its {kind.decode('latin-1')} chunk is wrong")
    start = end + 4


def fit(image: Image.Image, resolution: int, how: str, name: str) -> Image.Image:
  """`image` at `resolution` x `resolution`, untouched if it is so already.

  Args:
    how: "crop_resize" takes the largest centred square and resizes it with Pillow's Lanczos filter, which widens with
      the factor and so does not alias: what the data tools of StyleGAN and EDM do, hence how the FFHQ of published
      scores was made. "pad" puts zeros around a smaller image: MNIST's 28 -> 32 by convention.
    name: what an error calls the image.

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
    raise UserError(f"{name} is {width}x{height}, which no padding fits to {resolution}: set config.data.resolution")
  left, top = (resolution - width) // 2, (resolution - height) // 2
  return ImageOps.expand(image, (left, top, resolution - width - left, resolution - height - top))


def to_array(image: Image.Image) -> np.ndarray:
  """uint8 [H, W, 1 or 3]."""
  return np.asarray(image).reshape(image.height, image.width, -1)
