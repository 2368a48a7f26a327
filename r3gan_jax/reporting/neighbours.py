"""The picture of samples beside the real images that are nearest to them."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from r3gan_jax.sampling import over_checkerboard

_SMALLEST_SIDE = 96
"""Smaller images are enlarged, in pixels."""
_GAP = 8
_FONT_SIZE = 14


def picture(images: np.ndarray, captions: Sequence[Sequence[str]]) -> np.ndarray:
  """Returns rows of images on white, each above its caption: uint8 [height, width, 3].

  The first image of a row, a sample, stands apart.

  Args:
    images: uint8 [rows, columns, H, W, C]; RGBA is premultiplied.
    captions: a text for each image.
  """
  rows, columns, *shape = images.shape
  scale = -(-_SMALLEST_SIDE // shape[0])
  flat = over_checkerboard(images.reshape(-1, *shape)).repeat(scale, axis=1).repeat(scale, axis=2)
  height, width = flat.shape[1:3]
  tiles = np.broadcast_to(flat, (*flat.shape[:3], 3)).reshape(rows, columns, height, width, 3)
  line = _FONT_SIZE + _GAP
  canvas = Image.new("RGB", (_GAP + columns * (width + _GAP) + _GAP, _GAP + rows * (height + line + _GAP)), "white")
  draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(_FONT_SIZE)
  for row in range(rows):
    for column in range(columns):
      x, y = _GAP + column * (width + _GAP) + (_GAP if column else 0), _GAP + row * (height + line + _GAP)
      canvas.paste(Image.fromarray(tiles[row, column]), (x, y))
      draw.text((x + width / 2, y + height + _GAP / 2), captions[row][column], "black", font, anchor="ma")
  return np.asarray(canvas)
