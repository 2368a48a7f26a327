"""Pairs of images by two folders and by halves: read alike, moved alike, and clear errors."""

import numpy as np
import pytest
from helpers.image_files import zip_directory
from PIL import Image

from r3gan_jax.data import prepare
from r3gan_jax.data.files import ImageFiles
from r3gan_jax.data.images import Decoder, fit, to_array
from r3gan_jax.data.loader import Loader
from r3gan_jax.data.pairs import PairSource, prepare_pairs
from r3gan_jax.data.prepare import prepare_images
from r3gan_jax.errors import UserError

HEIGHT, WIDTH = 6, 8


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
  monkeypatch.setattr(prepare, "IMAGES_PER_SHARD", 2)


def write(path, image):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(image).save(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """`folders` with A and B, `halves`, and `halves.zip` have the same five pairs; returns (directory, A, B)."""
  root = tmp_path_factory.mktemp("pairs")
  random = np.random.default_rng(0)
  a, b = (random.integers(0, 256, (5, HEIGHT, WIDTH, 3), np.uint8) for _ in range(2))
  for index in range(5):
    write(root / "folders" / "A" / "some" / f"{index}.png", a[index])
    write(root / "folders" / "B" / "some" / f"{index}.{'bmp' if index == 3 else 'png'}", b[index])
    write(root / "halves" / f"{index}.png", np.concatenate([a[index], b[index]], axis=1))
  zip_directory(root / "halves", root / "halves.zip")
  return root, a, b


def prepared(path, data_dir, size=(HEIGHT, WIDTH), channels=3, grey=False, direction="AtoB", skip=False):
  files, decoder = ImageFiles(path), Decoder(channels)
  return prepare_pairs(files, "facades", data_dir, size, decoder, grey, direction, processes=1, skip_corrupt=skip)


def source(data_dir, size=(HEIGHT, WIDTH), channels=3, condition_channels=3, name="facades"):
  return PairSource(name, "train", str(data_dir), size, Decoder(channels), "crop_resize", condition_channels)


def everything(some):
  return some[np.arange(len(some))]["image"]


@pytest.mark.parametrize("layout", ["folders", "halves", "halves.zip"])
@pytest.mark.parametrize("direction", ["AtoB", "BtoA"])
def test_pairs_are_the_same_in_any_layout(made, tmp_path, layout, direction, capsys):
  root, a, b = made
  assert prepared(root / layout, tmp_path, direction=direction).images == 5
  image_and_condition = (b, a) if direction == "AtoB" else (a, b)
  np.testing.assert_array_equal(everything(source(tmp_path)), np.concatenate(image_and_condition, axis=-1))
  kind = "of the folders A and B" if layout == "folders" else "left and right halves"
  assert f"5 pairs, {kind}, {direction}" in capsys.readouterr().out


def test_conditions_may_be_grey(made, tmp_path):
  """And images: a data set of grey pairs has two channels."""
  _, a, b = made
  for index in range(5):
    write(tmp_path / "maps" / "A" / f"{index}.png", a[index, ..., 0])
    write(tmp_path / "maps" / "B" / f"{index}.png", b[index])
    write(tmp_path / "grey" / f"{index}.png", np.concatenate([a[index, ..., 0], b[index, ..., 1]], axis=1))
  prepared(tmp_path / "maps", tmp_path / "one", grey=True)
  expected = np.concatenate([b, a[..., :1]], axis=-1)
  np.testing.assert_array_equal(everything(source(tmp_path / "one", condition_channels=1)), expected)
  prepared(tmp_path / "grey", tmp_path / "two", channels=1)
  expected = np.stack([b[..., 1], a[..., 0]], axis=-1)
  np.testing.assert_array_equal(everything(source(tmp_path / "two", channels=1, condition_channels=1)), expected)


@pytest.mark.parametrize("layout", ["folders", "halves"])
def test_both_images_are_cropped_and_resized_alike(made, tmp_path, layout):
  root, a, b = made
  prepared(root / layout, tmp_path, size=(3, 3))
  expected = [[to_array(fit(Image.fromarray(image), (3, 3), "crop_resize", "")) for image in side] for side in (b, a)]
  np.testing.assert_array_equal(everything(source(tmp_path, size=(3, 3))), np.concatenate(expected, axis=-1))


def test_both_images_are_mirrored_alike(made, tmp_path):
  root, a, b = made
  prepared(root / "folders", tmp_path)
  drawn = Loader(source(tmp_path), seed=0, x_flip=True).examples(np.arange(10))["image"]
  joined = np.concatenate([b, a], axis=-1)
  expected = np.concatenate([joined, joined[:, :, ::-1]])
  order = [np.lexsort(images.reshape(10, -1).T) for images in (drawn, expected)]
  np.testing.assert_array_equal(drawn[order[0]], expected[order[1]])


def test_a_pair_with_a_damaged_image_is_left_out(made, tmp_path):
  _, a, b = made
  for index in range(2):
    write(tmp_path / "folders" / "A" / f"{index}.png", a[index])
    write(tmp_path / "folders" / "B" / f"{index}.png", b[index])
  (tmp_path / "folders" / "B" / "0.png").write_bytes(b"no image")
  with pytest.raises(UserError, match=r"B/0\.png in .* is not an image"):
    prepared(tmp_path / "folders", tmp_path)
  assert prepared(tmp_path / "folders", tmp_path, skip=True).left_out == 1
  np.testing.assert_array_equal(everything(source(tmp_path)), np.concatenate([b[1:2], a[1:2]], axis=-1))


BLANK = np.zeros((4, 4, 3), np.uint8)


@pytest.mark.parametrize(
  "files, message",
  [
    ({"A/1.png": BLANK, "A/2.png": BLANK, "B/1.png": BLANK}, r"^A/2\.png in .* has no partner B/2\.\*: add it"),
    ({"A/1.png": BLANK, "B/1.png": BLANK, "B/2.jpg": BLANK}, r"^B/2\.jpg in .* has no partner A/2\.\*: add it"),
    ({"A/1.png": BLANK}, r"^A/1\.png in .* has no partner B/1\.\*"),
    ({"A/1.png": BLANK, "A/1.jpg": BLANK, "B/1.png": BLANK}, r"^A/1\.png in .* and A/1\.jpg would have the same part"),
    ({"A/1.png": BLANK, "B/1.png": BLANK, "C/1.png": BLANK}, r"^C/1\.png in .* is neither in A nor in B"),
    ({"A/1.png": BLANK, "B/1.png": BLANK[:3]}, r"^A/1\.png in .* is 4x4, but B/1\.png is 4x3: crop or resize one"),
    ({"1.png": BLANK, "2.png": BLANK[:, :3]}, r"^2\.png in .* is 3x4: an odd width has no halves"),
  ],
)
def test_files_that_are_no_pairs_are_named(tmp_path, files, message):
  for name, image in files.items():
    write(tmp_path / "files" / name, image)
  with pytest.raises(UserError, match=message):
    prepared(tmp_path / "files", tmp_path, size=(4, 4))
  assert not (tmp_path / "facades" / "1.0.0").exists()


def test_settings_that_do_not_fit_are_refused(made, tmp_path):
  root, *_ = made
  with pytest.raises(UserError, match="leave out --grey_conditions"):
    prepared(root / "halves", tmp_path, grey=True)
  with pytest.raises(UserError, match="is a colour image"):
    prepared(root / "folders", tmp_path, grey=True)
  prepared(root / "folders", tmp_path / "data")
  with pytest.raises(UserError, match=r"of 3 channels, but config\.data.condition_channels = 1: set it"):
    source(tmp_path / "data", condition_channels=1)
  with pytest.raises(UserError, match=r"set config\.data\.channels = 3"):
    source(tmp_path / "data", channels=1)
  prepare_images(ImageFiles(root / "halves"), "alone", tmp_path, (4, 4), Decoder(3), False, 1, False)
  with pytest.raises(UserError, match="has no pairs: prepare them by prepare_data --pairs"):
    source(tmp_path, (4, 4), name="alone")


def test_another_direction_is_another_data_set(made, tmp_path):
  root, *_ = made
  prepared(root / "folders", tmp_path)
  with pytest.raises(UserError):
    prepared(root / "folders", tmp_path, direction="BtoA")
