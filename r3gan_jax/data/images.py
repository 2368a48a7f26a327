"""Encoded images, as files and records hold them: decoded, and fitted to the configured size."""

from io import BytesIO

import numpy as np
from PIL import Image, ImageOps

from r3gan_jax.errors import UserError

FITS = ("crop_resize", "pad")
"""How images of another size come to the configured one: see `fit`."""

_FORMATS = ("PNG", "JPEG", "WEBP")
_MODES = {1: "L", 3: "RGB"}


class CorruptImage(UserError):
  """The bytes are no image that can be read."""


def open_image(data: bytes, name: str) -> Image.Image:
  """An image of which only the header is read yet; `name` is what an error calls it.

  Raises:
    CorruptImage: the header is that of no PNG, JPEG or WebP.
  """
  try:
    return Image.open(BytesIO(data), formats=_FORMATS)
  except Exception:  # Pillow's readers raise whatever a broken file makes of them
    raise CorruptImage(f"{name} is no PNG, JPEG or WebP image: replace or remove it") from None


def decode(data: bytes, name: str, channels: int) -> Image.Image:
  """The image, decoded: 8-bit grey (`channels` = 1) or RGB (3), an alpha channel dropped, grey made RGB where wanted.

  Raises:
    CorruptImage: it cannot be decoded to its end.
    UserError: it has colours and `channels` is 1, or more than 8 bits a channel.
  """
  image = open_image(data, name)
  try:
    image.load()
  except Exception:
    raise CorruptImage(f"{name} is damaged or cut short: replace or remove it") from None
  if image.mode == _MODES[channels]:
    return image
  if image.mode.startswith(("I", "F")):
    raise UserError(f"{name} has more than 8 bits a channel ({image.mode}): convert it to 8 bits")
  if channels == 1 and image.mode not in ("1", "LA"):
    raise UserError(f"{name} is a colour image ({image.mode}), but one channel is asked for: ask for 3 channels")
  return image.convert(_MODES[channels])


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
