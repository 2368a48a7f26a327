"""Decodes the images in files and records, and fits them to the configured size.

Colours of images with alpha are premultiplied by it, as resampling, augmentation and metrics need: what is transparent
has no colour. `to_straight_alpha` undoes it, for files.
"""

import struct
import zlib
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image, ImageColor, ImageOps, PngImagePlugin

from r3gan_jax.errors import UserError, one_line

FITS = ("crop_resize", "pad")
"""The ways to fit images of another size: see `fit`."""

_WHITE_16 = 2**16 - 1

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

_MODES = {1: "L", 3: "RGB", 4: "RGBa"}
DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")
"""Pillow's modes of grey images with 16 bits, some of them stored in 32."""
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_EXIF_ORIENTATION = 0x0112


class CorruptImage(UserError):
  """Raised for bytes that cannot be read as an image."""


@dataclass(frozen=True)
class Decoder:
  """Decodes bytes to images of one kind.

  Attributes:
    channels: 1 (grey), 3 (RGB) or 4 (RGBA, premultiplied).
    background: the colour under transparent pixels of grey and RGB images, by name or #rrggbb.
    bits: of a channel, 8 or, for grey images, 16.

  Raises:
    UserError: another number of channels or bits, or an unknown colour.
  """

  channels: int
  background: str = "white"
  bits: int = 8

  def __post_init__(self) -> None:
    if self.channels not in _MODES:
      raise UserError(f"config.data.channels = {self.channels}: images are read as grey (1), RGB (3) or RGBA (4)")
    if self.bits != 8 and (self.bits, self.channels) != (16, 1):
      raise UserError(
        f"config.data.bits = {self.bits} with config.data.channels = {self.channels}: only grey images are read with "
        "16 bits: set bits to 8, or channels to 1"
      )
    try:
      ImageColor.getcolor(self.background, "RGB")
    except ValueError:
      raise UserError(f"background {self.background!r} is not a colour: give a name or #rrggbb") from None

  def __call__(self, data: bytes, name: str) -> Image.Image:
    """Returns the image, rotated by its EXIF orientation, over the background, of Pillow's mode L, RGB or RGBa.

    With 16 bits its mode is F, with values from 0 to 65535; 8-bit images have 257 times theirs.

    Args:
      data: an encoded image.
      name: for error messages.

    Raises:
      CorruptImage: it cannot be decoded to the end, or a checksum in it is wrong.
      UserError: a colour image where `channels` is 1, more bits per channel than `bits`, or too many pixels.
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
    if image.mode.startswith("F") or (image.mode in DEEP_MODES and self.bits == 8):
      cure = "set config.data.bits = 16 and channels = 1, or " * (image.mode in DEEP_MODES)
      raise UserError(f"{name} has more than {self.bits} bits per channel ({image.mode}): {cure}convert it")
    if image.mode in DEEP_MODES:
      return _sixteen_bits(np.asarray(image), name)
    if self.channels == 1 and image.mode not in ("1", "L", "LA"):
      raise UserError(f"{name} is a colour image ({image.mode}), but grey images are expected: set the channels to 3")
    if self.channels == 4:
      return image.convert("RGBA").convert("RGBa")
    if image.has_transparency_data:
      ground = Image.new("RGBA", image.size, ImageColor.getcolor(self.background, "RGB"))
      image = Image.alpha_composite(ground, image.convert("RGBA"))
    image = image if image.mode == _MODES[self.channels] else image.convert(_MODES[self.channels])
    return image if self.bits == 8 else Image.fromarray(np.asarray(image, np.float32) * 257)


def _sixteen_bits(levels: np.ndarray, name: str) -> Image.Image:
  """Returns an image of mode F; `levels` [H, W] are integers.

  Raises:
    UserError: they do not fit into 16 bits.
  """
  if levels.min() < 0 or levels.max() > _WHITE_16:
    raise UserError(f"{name} has values from {levels.min()} to {levels.max()}: scale it to 16 bits, 0 to {_WHITE_16}")
  return Image.fromarray(levels.astype(np.float32))


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


def fit(image: Image.Image, size: tuple[int, int], how: str, name: str) -> Image.Image:
  """Returns `image` at `size`; unchanged if it has that size.

  Args:
    image: of a `Decoder`.
    size: (height, width) in pixels.
    how: "crop_resize" crops the largest centred part of that shape and resizes it with Pillow's antialiased Lanczos
      filter, as the data tools of StyleGAN and EDM do, which made the FFHQ of published scores. "pad" surrounds a
      smaller image with zeros, the convention for MNIST, 28 -> 32.
    name: for error messages.

  Raises:
    UserError: an image to pad is larger than `size`.
  """
  height, width = size
  if image.size == (width, height):
    return image
  if how == "crop_resize":
    cut = (
      min(image.width, max(1, image.height * width // height)),
      min(image.height, max(1, image.width * height // width)),
    )
    left, top = (image.width - cut[0]) // 2, (image.height - cut[1]) // 2
    part = image.crop((left, top, left + cut[0], top + cut[1]))
    return part.resize((width, height), Image.Resampling.LANCZOS)
  if image.width > width or image.height > height:
    raise UserError(
      f"{name} is {image.width}x{image.height}, too large to pad to {width}x{height}: set config.data.resolution"
    )
  left, top = (width - image.width) // 2, (height - image.height) // 2
  return ImageOps.expand(image, (left, top, width - image.width - left, height - image.height - top))


def to_array(image: Image.Image) -> np.ndarray:
  """Returns uint8 [H, W, 1, 3 or 4], or uint16 [H, W, 1] of an image of mode F."""
  array = np.asarray(image).reshape(image.height, image.width, -1)
  if image.mode == "F":
    return np.rint(array.clip(0, _WHITE_16)).astype(np.uint16)
  if image.mode == "RGBa":  # the resampling filter overshoots
    return np.minimum(array, array[..., 3:])
  return array


def for_png(image: Image.Image) -> Image.Image:
  """Converts an image of a `Decoder` to one that PNG can hold, which the same `Decoder` reads as the same."""
  if image.mode not in ("F", "RGBa"):
    return image
  array = to_array(image)
  return Image.fromarray(array[..., 0] if image.mode == "F" else to_straight_alpha(array))


def to_8_bits(images: np.ndarray) -> np.ndarray:
  """Rounds uint16 images to uint8; returns uint8 ones as they are."""
  return images if images.dtype == np.uint8 else ((images.astype(np.uint32) + 128) // 257).astype(np.uint8)


def to_straight_alpha(images: np.ndarray) -> np.ndarray:
  """Divides premultiplied colours by alpha, as files have them: uint8 [..., 4]; returns other images as they are.

  Premultiplied again and rounded, they are the same.
  """
  if images.shape[-1] != 4:
    return images
  alpha = images[..., 3:].astype(np.uint32)
  colours = (images[..., :3] * np.uint32(255) + alpha // 2) // np.maximum(alpha, 1)
  return np.concatenate([np.minimum(colours, 255).astype(np.uint8), images[..., 3:]], axis=-1)
