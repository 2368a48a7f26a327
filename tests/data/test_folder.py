import json
import zipfile

import numpy as np
import pytest
from absl import logging
from helpers.image_files import write_images, zip_directory
from PIL import Image

from r3gan_jax.data.folder import FolderSource
from r3gan_jax.data.images import CorruptImage, Decoder
from r3gan_jax.data.skipping import SkippingSource
from r3gan_jax.errors import UserError


def folder(path, num_classes=0, channels=3, **changed):
  return FolderSource(str(path), (8, 8), Decoder(channels), num_classes, **changed)


def everything(source):
  return source[np.arange(len(source))]


@pytest.fixture
def labelled(tmp_path):
  """(directory, images, labels), in the format of StyleGAN's and EDM's tools."""
  directory = tmp_path / "images"
  images = write_images(directory / "00000", 6)
  labels = [2, 0, 1, 1, 0, 2]
  pairs = [[f"00000/{index:05}.png", label] for index, label in enumerate(labels)]
  (directory / "dataset.json").write_text(json.dumps({"labels": pairs[::-1]}))
  return directory, images, labels


@pytest.mark.parametrize("kind", ["directory", zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_directory_and_a_zip_are_read_alike(labelled, tmp_path, kind):
  directory, images, labels = labelled
  path = directory if kind == "directory" else zip_directory(directory, tmp_path / "images.zip", kind)
  examples = everything(folder(path, 3))
  np.testing.assert_array_equal(examples["image"], images)
  np.testing.assert_array_equal(examples["label"], labels)
  assert examples["image"].dtype == np.uint8 and examples["label"].dtype == np.int32
  unlabelled = folder(path)[np.array([4, 1])]
  assert set(unlabelled) == {"image"}
  np.testing.assert_array_equal(unlabelled["image"], images[[4, 1]])


def test_grey_files_become_rgb(tmp_path):
  grey = write_images(tmp_path / "images", 2, channels=1)
  np.testing.assert_array_equal(everything(folder(tmp_path / "images"))["image"], grey.repeat(3, -1))
  np.testing.assert_array_equal(everything(folder(tmp_path / "images", channels=1))["image"], grey)


def test_long_names_in_a_zip(tmp_path):
  images = write_images(tmp_path / "images" / ("a" * 200) / ("b" * 200) / ("c" * 200), 3)
  path = zip_directory(tmp_path / "images", tmp_path / "images.zip", zipfile.ZIP_DEFLATED)
  np.testing.assert_array_equal(everything(folder(path))["image"], images)


def broken(directory, how):
  """Damages the directory in one way; returns the path to open."""
  file = directory / "00000" / "00003.png"
  labels = directory / "dataset.json"
  if how == "empty":
    (directory.parent / "empty").mkdir()
    return directory.parent / "empty"
  if how == "absent":
    return directory.parent / "absent"
  if how == "mixed":
    write_images(directory / "00000", 1, side=16, first=3)
  if how == "no image":
    file.write_text("no image")
  if how == "cut short":
    file.write_bytes(file.read_bytes()[:-40])
  if how == "out of range":
    labels.write_text(labels.read_text().replace(" 2]", " 7]"))
  if how == "unlisted":
    write_images(directory / "00000", 1, first=6)
  if how == "vector":
    labels.write_text(labels.read_text().replace(" 2]", " [2, 1]]"))
  if how == "no labels":
    labels.unlink()
    file.rename(directory / "00003.png")
  if how == "fewer classes":
    labels.unlink()
    write_images(directory / "00001", 1)
  if how == "null":
    labels.write_text('{"labels": null}')
  if how == "zip cut short":
    path = zip_directory(directory, directory.parent / "images.zip")
    path.write_bytes(path.read_bytes()[:-100])
    return path
  return directory


@pytest.mark.parametrize(
  "how, message",
  [
    ("empty", "empty has no images: put files named"),
    ("absent", "absent is neither a directory nor a zip"),
    ("mixed", r"00003.png in .*images is 16x16, but config.data asks for 8x8: .*prepare_data --images=.*images "),
    ("no image", "00003.png in .*images is not an image of .*PNG, .*: replace or remove it"),
    ("cut short", r"00003.png in .*images is damaged or cut short \(.*\): replace or remove it"),
    ("out of range", "0000[05].png in .*images has label 7, but config.data.num_classes = 3: set it to match"),
    ("unlisted", "dataset.json in .*images does not list 00000/00006.png"),
    ("vector", r"dataset.json in .*images labels 00000/0000[05].png \[2, 1\]: give"),
    ("no labels", "00003.png in .*images has no label: list it in dataset.json"),
    ("fewer classes", "images has 2 classes: 0 = 00000, 1 = 00001, by its directories, but .*num_classes = 3"),
    ("null", "dataset.json in .*images has no labels: set config.data.num_classes = 0"),
    ("zip cut short", "images.zip is not a zip"),
  ],
)
def test_bad_folders_are_named(labelled, how, message):
  path = broken(labelled[0], how)
  with pytest.raises(UserError, match=message) as error:
    everything(folder(path, 3))
  assert "\n" not in str(error.value)


def test_classes_have_names(tmp_path, caplog):
  write_images(tmp_path / "dog", 1)
  write_images(tmp_path / "cat", 2)
  logging.use_absl_handler()
  with caplog.at_level("INFO", logger="absl"):
    source = folder(tmp_path, 2)
  assert source.classes == ("cat", "dog") and "2 classes: 0 = cat, 1 = dog" in caplog.text
  np.testing.assert_array_equal(everything(source)["label"], [0, 0, 1])


def test_transparent_images_get_the_background(tmp_path):
  Image.new("LA", (8, 8), (0, 0)).save(tmp_path / "logo.png")
  assert (everything(folder(tmp_path))["image"] == 255).all()
  red = FolderSource(str(tmp_path), (8, 8), Decoder(3, "#ff0000"), 0)
  assert (everything(red)["image"] == [255, 0, 0]).all()


def test_corrupt_images_can_be_skipped(tmp_path, caplog):
  """The next readable image replaces them, with its own label, in any batch; after the last comes the first."""
  images = np.concatenate([write_images(tmp_path / "a", 3), write_images(tmp_path / "b", 3, first=3)])
  for name in ("a/00002.png", "b/00003.png", "b/00005.png"):
    (tmp_path / name).write_bytes(b"")
  with pytest.raises(CorruptImage, match=r"a/00002.png in .* is empty"):
    folder(tmp_path, 2)
  source = SkippingSource(folder(tmp_path, 2, skip_corrupt=True))
  logging.use_absl_handler()
  with caplog.at_level("WARNING", logger="absl"):
    for indices in ([0, 1, 2, 3, 4, 5], [5], [2, 3]):
      examples = source[np.array(indices)]
      instead = np.array([0, 1, 4, 4, 4, 0])[indices]
      np.testing.assert_array_equal(examples["image"], images[instead])
      np.testing.assert_array_equal(examples["label"], instead >= 3)
  assert len(caplog.records) == 3 and source.classes == ("a", "b")
  for file in tmp_path.rglob("*.png"):
    file.write_bytes(b"")
  with pytest.raises(UserError, match="none of the images can be read"):
    source[np.arange(6)]
