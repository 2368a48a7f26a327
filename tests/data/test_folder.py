import json
import pickle
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from image_files import write_images, zip_directory

from r3gan_jax.data.folder import FolderSource, ImageFiles
from r3gan_jax.errors import UserError

SHAPE = (8, 8, 3)


def everything(source):
  return source[np.arange(len(source))]


@pytest.fixture
def labelled(tmp_path):
  """As the tools of StyleGAN and EDM write it: (directory, images, labels)."""
  directory = tmp_path / "images"
  images = write_images(directory / "00000", 6)
  labels = [2, 0, 1, 1, 0, 2]
  pairs = [[f"00000/{index:05}.png", label] for index, label in enumerate(labels)]
  (directory / "dataset.json").write_text(json.dumps({"labels": pairs[::-1]}))
  return directory, images, labels


@pytest.mark.parametrize("kind", ["directory", zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_directory_and_a_zip_hold_the_same(labelled, tmp_path, kind):
  directory, images, labels = labelled
  path = directory if kind == "directory" else zip_directory(directory, tmp_path / "images.zip", kind)
  examples = everything(FolderSource(str(path), SHAPE, 3))
  np.testing.assert_array_equal(examples["image"], images)
  np.testing.assert_array_equal(examples["label"], labels)
  assert examples["image"].dtype == np.uint8 and examples["label"].dtype == np.int32
  unlabelled = FolderSource(str(path), SHAPE, 0)[np.array([4, 1])]
  assert set(unlabelled) == {"image"}
  np.testing.assert_array_equal(unlabelled["image"], images[[4, 1]])


@pytest.mark.parametrize("below", ["", "train/all"])
def test_directories_are_classes_in_the_order_of_their_names(tmp_path, below):
  dogs = write_images(tmp_path / below / "dog" / "brown", 2)
  cats = write_images(tmp_path / below / "cat", 3, suffix="webp", first=7)
  files = ImageFiles(tmp_path)
  assert files.directory_labels()[1] == ["cat", "dog"]
  examples = everything(FolderSource(str(tmp_path), SHAPE, 2))
  np.testing.assert_array_equal(examples["label"], [0, 0, 0, 1, 1])
  np.testing.assert_array_equal(examples["image"], np.concatenate([cats, dogs]))


def test_null_labels_are_none(labelled):
  directory, _, _ = labelled
  (directory / "dataset.json").write_text('{"labels": null}')
  assert ImageFiles(directory).listed_labels() is None


def test_grey_files_become_rgb(tmp_path):
  grey = write_images(tmp_path / "images", 2, channels=1)
  np.testing.assert_array_equal(
    everything(FolderSource(str(tmp_path / "images"), SHAPE, 0))["image"], grey.repeat(3, -1)
  )
  np.testing.assert_array_equal(everything(FolderSource(str(tmp_path / "images"), (8, 8, 1), 0))["image"], grey)


def test_threads_and_processes_read_a_zip_at_once(tmp_path):
  images = write_images(tmp_path / "images", 64)
  files = pickle.loads(pickle.dumps(ImageFiles(zip_directory(tmp_path / "images", tmp_path / "images.zip"))))
  expected = [files.read(index) for index in range(64)]
  with ThreadPoolExecutor(8) as threads:
    assert list(threads.map(files.read, [*range(64)] * 20)) == expected * 20
  assert len(images) == len(files)


def test_long_names_in_a_zip(tmp_path):
  images = write_images(tmp_path / "images" / ("a" * 200) / ("b" * 200) / ("c" * 200), 3)
  path = zip_directory(tmp_path / "images", tmp_path / "images.zip", zipfile.ZIP_DEFLATED)
  np.testing.assert_array_equal(everything(FolderSource(str(path), SHAPE, 0))["image"], images)


def broken(directory, how):
  """The path to a folder that is wrong in one way."""
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
  if how == "not json":
    labels.write_text("labels")
  if how == "zip cut short":
    path = zip_directory(directory, directory.parent / "images.zip")
    path.write_bytes(path.read_bytes()[:-100])
    return path
  return directory


@pytest.mark.parametrize(
  "how, message",
  [
    ("empty", "empty holds no image: put files named"),
    ("absent", "absent is neither a directory nor a zip"),
    ("mixed", r"00003.png in .*images is 16x16, but config.data.resolution = 8: .*prepare_data --images=.*images "),
    ("no image", "00003.png in .*images is no PNG, JPEG or WebP image: replace or remove it"),
    ("cut short", "00003.png in .*images is damaged or cut short: replace or remove it"),
    ("out of range", "0000[05].png in .*images has label 7, but config.data.num_classes = 3: set it to match"),
    ("unlisted", "dataset.json in .*images labels 00000/00006.png null: give each image a class number"),
    ("vector", r"dataset.json in .*images labels 00000/00000.png \[2, 1\]: give"),
    ("no labels", "00003.png in .*images has no label: list it in dataset.json, or sort"),
    ("fewer classes", "images has 2 directories of images, but config.data.num_classes = 3"),
    ("not json", "dataset.json in .*images is not of the form"),
    ("zip cut short", "images.zip is no zip, or one cut short: fetch or make it again"),
  ],
)
def test_bad_folders_are_named(labelled, how, message):
  path = broken(labelled[0], how)
  with pytest.raises(UserError, match=message) as error:
    everything(FolderSource(str(path), SHAPE, 3))
  assert "\n" not in str(error.value)


def test_a_file_that_goes_away_is_named(tmp_path):
  write_images(tmp_path, 2)
  files = ImageFiles(tmp_path)
  (tmp_path / "00001.png").unlink()
  with pytest.raises(UserError, match=r"^cannot read 00001.png in .*: No such file or directory$"):
    files.read(1)
