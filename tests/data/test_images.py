from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from r3gan_jax.data.images import CorruptImage, decode, fit, to_array
from r3gan_jax.errors import UserError

RANDOM = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def encoded(array, format="PNG", **options):
  buffer = BytesIO()
  Image.fromarray(array).save(buffer, format, **options)
  return buffer.getvalue()


@pytest.mark.parametrize("format, options", [("PNG", {}), ("WEBP", {"lossless": True})])
def test_decoding_is_exact(format, options):
  np.testing.assert_array_equal(to_array(decode(encoded(RANDOM, format, **options), "x", 3)), RANDOM)


def test_jpeg_is_decoded():
  smooth = np.broadcast_to(np.arange(0, 256, 32, np.uint8)[:, None, None], (8, 8, 3))
  assert np.abs(to_array(decode(encoded(smooth, "JPEG", quality=95), "x", 3)).astype(int) - smooth).max() < 8


def test_grey_becomes_rgb_and_colour_never_grey():
  grey = RANDOM[..., 0]
  np.testing.assert_array_equal(to_array(decode(encoded(grey), "x", 3)), grey[..., None].repeat(3, -1))
  np.testing.assert_array_equal(to_array(decode(encoded(grey), "x", 1)), grey[..., None])
  with pytest.raises(UserError, match="x is a colour image"):
    decode(encoded(RANDOM), "x", 1)


def test_alpha_is_dropped_and_16_bits_refused():
  with_alpha = np.concatenate([RANDOM, RANDOM[..., :1]], -1)
  np.testing.assert_array_equal(to_array(decode(encoded(with_alpha), "x", 3)), RANDOM)
  with pytest.raises(UserError, match="x has more than 8 bits"):
    decode(encoded(RANDOM[..., 0].astype(np.uint16) * 256), "x", 3)


@pytest.mark.parametrize("data", [b"", b"no image", encoded(RANDOM)[:60], encoded(RANDOM, "JPEG")[:-100]])
def test_what_is_no_image_is_named(data):
  with pytest.raises(CorruptImage, match=r"^the file (is no PNG|is damaged)"):
    decode(data, "the file", 3)


def test_an_image_of_the_right_size_is_untouched():
  image = Image.fromarray(RANDOM)
  assert fit(image, 8, "crop_resize", "x") is image and fit(image, 8, "pad", "x") is image


def test_the_centred_square_is_kept():
  wide = np.zeros((32, 64, 3), np.uint8)
  wide[:, 16:48] = 200
  np.testing.assert_array_equal(to_array(fit(Image.fromarray(wide), 8, "crop_resize", "x")), 200)
  np.testing.assert_array_equal(to_array(fit(Image.fromarray(wide.swapaxes(0, 1)), 8, "crop_resize", "x")), 200)


def test_resizing_does_not_alias():
  """Stripes one pixel wide are their mean at a quarter of the size; every fourth pixel would be black or white."""
  stripes = np.broadcast_to((np.arange(64) % 2 * 255).astype(np.uint8)[None, :, None], (64, 64, 3))
  resized = to_array(fit(Image.fromarray(stripes), 16, "crop_resize", "x"))
  assert np.abs(resized[:, 2:-2].astype(int) - 127.5).max() < 3


def test_padding_is_of_zeros_all_round():
  padded = to_array(fit(Image.fromarray(np.full((28, 28), 9, np.uint8)), 32, "pad", "x"))
  assert padded.shape == (32, 32, 1) and (padded[2:30, 2:30] == 9).all() and padded.sum() == 9 * 28 * 28
  with pytest.raises(UserError, match="x is 28x28, which no padding fits to 16"):
    fit(Image.fromarray(np.zeros((28, 28), np.uint8)), 16, "pad", "x")
