from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from r3gan_jax.data.images import (
  CorruptImage,
  Decoder,
  fit,
  open_image,
  to_8_bits,
  to_array,
  to_straight_alpha,
  upright_size,
)
from r3gan_jax.errors import UserError

RANDOM = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def encoded(array, format="PNG", **options):
  buffer = BytesIO()
  Image.fromarray(array).save(buffer, format, **options)
  return buffer.getvalue()


@pytest.mark.parametrize("format, options", [("PNG", {}), ("WEBP", {"lossless": True})])
def test_decoding_is_exact(format, options):
  np.testing.assert_array_equal(to_array(Decoder(3)(encoded(RANDOM, format, **options), "x")), RANDOM)


def test_jpeg_is_decoded():
  smooth = np.broadcast_to(np.arange(0, 256, 32, np.uint8)[:, None, None], (8, 8, 3))
  assert np.abs(to_array(Decoder(3)(encoded(smooth, "JPEG", quality=95), "x")).astype(int) - smooth).max() < 8


def test_grey_becomes_rgb_but_colour_is_refused_as_grey():
  grey = RANDOM[..., 0]
  np.testing.assert_array_equal(to_array(Decoder(3)(encoded(grey), "x")), grey[..., None].repeat(3, -1))
  np.testing.assert_array_equal(to_array(Decoder(1)(encoded(grey), "x")), grey[..., None])
  with pytest.raises(UserError, match="x is a colour image"):
    Decoder(1)(encoded(RANDOM), "x")


@pytest.mark.parametrize("background, colour", [("white", (255,) * 3), ("#102030", (16, 32, 48))])
def test_transparent_pixels_get_the_background(background, colour):
  """Black pixels: opaque, half transparent, transparent."""
  pixels = np.zeros((1, 3, 4), np.uint8)
  pixels[0, :, 3] = 255, 128, 0
  actual = to_array(Decoder(3, background)(encoded(pixels), "x"))
  half = [round(value * 127 / 255) for value in colour]
  np.testing.assert_allclose(actual[0], [(0, 0, 0), half, colour], atol=1)


def test_an_opaque_alpha_channel_changes_nothing():
  with_alpha = np.concatenate([RANDOM, np.full_like(RANDOM[..., :1], 255)], -1)
  np.testing.assert_array_equal(to_array(Decoder(3)(encoded(with_alpha), "x")), RANDOM)


@pytest.mark.parametrize("mode", ["P", "L", "1", "RGB"])
def test_transparent_colours(mode):
  """PNG and GIF can mark one colour or palette entry as transparent."""
  image = Image.new(mode, (2, 2))
  if mode == "P":
    image.putpalette([0, 0, 0, 9, 9, 9])
  image.putpixel((0, 0), (9, 9, 9) if mode == "RGB" else 1)
  buffer = BytesIO()
  image.save(buffer, "PNG", transparency=(0, 0, 0) if mode == "RGB" else 0)
  decoded = to_array(Decoder(3)(buffer.getvalue(), "x"))
  assert (decoded[1] == 255).all() and (decoded[0, 1] == 255).all()
  if mode != "1":
    assert (decoded[0, 0] == decoded[0, 0, 0]).all() and decoded[0, 0, 0] < 10


def test_grey_with_alpha_stays_grey():
  pixels = np.stack([RANDOM[..., 0], RANDOM[..., 1]], -1)
  grey, alpha = pixels[..., 0].astype(float), pixels[..., 1] / 255.0
  actual = to_array(Decoder(1)(encoded(pixels), "x"))[..., 0]
  np.testing.assert_allclose(actual, grey * alpha + 255 * (1 - alpha), atol=1)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_rotated_by_exif(format, orientation):
  """EXIF defines at which edges row 0 and column 0 of the stored pixels are displayed."""
  upright = np.zeros((16, 24, 3), np.uint8)
  upright[:8, :8] = 255  # the top left corner
  upright[:8, 16:] = 100
  stored = {
    1: upright,
    2: upright[:, ::-1],
    3: upright[::-1, ::-1],
    4: upright[::-1],
    5: upright.swapaxes(0, 1),
    6: upright.swapaxes(0, 1)[::-1],  # displayed after a quarter turn clockwise
    7: upright.swapaxes(0, 1)[::-1, ::-1],
    8: upright.swapaxes(0, 1)[:, ::-1],
  }[orientation]
  exif = Image.Exif()
  exif[0x0112] = orientation
  data = encoded(stored, format, exif=exif, **({"quality": 95} if format == "JPEG" else {"lossless": True}))
  assert upright_size(open_image(data, "x")) == (24, 16)
  assert np.abs(to_array(Decoder(3)(data, "x")).astype(int) - upright).mean() < 4


def test_16_bits_are_refused():
  with pytest.raises(UserError, match="x has more than 8 bits"):
    Decoder(3)(encoded(RANDOM[..., 0].astype(np.uint16) * 256), "x")


@pytest.mark.parametrize("channels", [0, 2, 5])
def test_other_channels_are_refused(channels):
  with pytest.raises(UserError, match=f"config.data.channels = {channels}: images are read as grey"):
    Decoder(channels)


def test_an_unknown_background_is_refused():
  with pytest.raises(UserError, match="background 'whyte' is not a colour"):
    Decoder(3, "whyte")


def test_any_flipped_bit_of_a_png_is_noticed():
  """Pillow itself ignores the checksums of pixels."""
  data = encoded(RANDOM)
  for place in range(8, len(data)):
    damaged = bytearray(data)
    damaged[place] ^= 16
    with pytest.raises(CorruptImage, match=r"^x (is|has)"):
      Decoder(3)(bytes(damaged), "x")


def test_large_images_and_profiles_are_read(monkeypatch):
  """180 megapixels or an ICC profile of 3 MB are valid; an image too large to decode is not reported as corrupt."""
  with_profile = encoded(RANDOM, icc_profile=bytes(3_000_000))
  np.testing.assert_array_equal(to_array(Decoder(3)(with_profile, "x")), RANDOM)
  panorama = encoded(np.zeros((10_000, 18_000), np.uint8))
  assert open_image(panorama, "x").size == (18_000, 10_000)
  monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
  with pytest.raises(UserError, match="more than 1000 megapixels: make it smaller") as error:
    open_image(panorama, "x")
  assert not isinstance(error.value, CorruptImage)  # --skip_corrupt does not drop it


@pytest.mark.parametrize("data", [b"", b"no image", encoded(RANDOM)[:60], encoded(RANDOM, "JPEG")[:-100]])
def test_corrupt_images_are_named(data):
  with pytest.raises(CorruptImage, match=r"^the file (is|has)"):
    Decoder(3)(data, "the file")


def test_an_image_of_the_right_size_is_untouched():
  image = Image.fromarray(RANDOM)
  assert fit(image, (8, 8), "crop_resize", "x") is image and fit(image, (8, 8), "pad", "x") is image


def test_the_centred_square_is_kept():
  wide = np.zeros((32, 64, 3), np.uint8)
  wide[:, 16:48] = 200
  np.testing.assert_array_equal(to_array(fit(Image.fromarray(wide), (8, 8), "crop_resize", "x")), 200)
  np.testing.assert_array_equal(to_array(fit(Image.fromarray(wide.swapaxes(0, 1)), (8, 8), "crop_resize", "x")), 200)


def test_resizing_does_not_alias():
  """At a quarter of the size, stripes of one pixel become their mean; every fourth pixel would be black or white."""
  stripes = np.broadcast_to((np.arange(64) % 2 * 255).astype(np.uint8)[None, :, None], (64, 64, 3))
  resized = to_array(fit(Image.fromarray(stripes), (16, 16), "crop_resize", "x"))
  assert np.abs(resized[:, 2:-2].astype(int) - 127.5).max() < 3


def test_padding_surrounds_with_zeros():
  padded = to_array(fit(Image.fromarray(np.full((28, 28), 9, np.uint8)), (32, 32), "pad", "x"))
  assert padded.shape == (32, 32, 1) and (padded[2:30, 2:30] == 9).all() and padded.sum() == 9 * 28 * 28
  with pytest.raises(UserError, match=r"x is 28x28, .* 16"):
    fit(Image.fromarray(np.zeros((28, 28), np.uint8)), (16, 16), "pad", "x")


@pytest.mark.parametrize("size, kept", [((16, 8), np.s_[:, 24:40]), ((8, 64), np.s_[12:20, :]), ((6, 10), None)])
def test_the_largest_centred_part_of_the_shape_is_kept(size, kept):
  """Of 32 x 64 pixels."""
  wide = np.zeros((32, 64, 3), np.uint8)
  wide[kept if kept else np.s_[:, 5:58]] = 200
  fitted = to_array(fit(Image.fromarray(wide), size, "crop_resize", "x"))
  assert fitted.shape == (*size, 3) and (fitted[:, 1:-1] == 200).all()


def test_sixteen_bits_are_kept():
  levels = np.array([[0, 1, 257], [40000, 65534, 65535]], np.uint16)
  deep = Decoder(1, bits=16)
  image = deep(encoded(levels), "x")
  read = to_array(image)
  assert read.dtype == np.uint16
  np.testing.assert_array_equal(read[..., 0], levels)
  np.testing.assert_array_equal(to_array(deep(encoded(RANDOM[..., 0]), "x"))[..., 0], RANDOM[..., 0] * np.uint16(257))
  constant = deep(encoded(np.full((8, 12), 40001, np.uint16)), "x")
  np.testing.assert_array_equal(to_array(fit(constant, (4, 4), "crop_resize", "x")), 40001)
  np.testing.assert_array_equal(to_8_bits(read)[..., 0], [[0, 0, 1], [156, 255, 255]])
  with pytest.raises(UserError, match=r"set config\.data\.bits = 16"):
    Decoder(1)(encoded(levels), "x")
  with pytest.raises(UserError, match="values from -5 to 70000"):
    deep(encoded(np.array([[-5, 70000]], np.int32), "TIFF"), "x")
  with pytest.raises(UserError, match="only grey images"):
    Decoder(3, bits=16)


def test_alpha_is_premultiplied():
  straight = np.random.default_rng(0).integers(0, 256, (64, 64, 4), dtype=np.uint8)
  read = to_array(Decoder(4)(encoded(straight), "x"))
  expected = np.rint(straight[..., :3] * (straight[..., 3:] / 255.0))
  assert np.abs(read[..., :3] - expected).max() <= 1  # Pillow's rounding of halves
  np.testing.assert_array_equal(read[..., 3], straight[..., 3])
  # What is written to a file is read as the same.
  np.testing.assert_array_equal(to_array(Decoder(4)(encoded(to_straight_alpha(read)), "x")), read)
  np.testing.assert_array_equal(to_array(Decoder(4)(encoded(RANDOM), "x"))[..., 3], 255)
  # Colours of transparent pixels do not bleed into their neighbours.
  half = np.zeros((8, 8, 4), np.uint8)
  half[:, :4], half[:, 4:] = (255, 0, 0, 255), (0, 255, 0, 0)
  resized = to_array(fit(Decoder(4)(encoded(half), "x"), (4, 4), "crop_resize", "x"))
  assert not resized[..., 1].any()
  # The resampling filter overshoots, of colours more than of alpha.
  larger = to_array(fit(Decoder(4)(encoded(straight), "x"), (160, 160), "crop_resize", "x"))
  assert (larger[..., :3] <= larger[..., 3:]).all()
