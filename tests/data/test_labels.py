import json

import numpy as np
import pytest
from helpers.image_files import write_images, zip_directory

from r3gan_jax.data.files import ImageFiles
from r3gan_jax.data.labels import directory_labels, listed_labels
from r3gan_jax.errors import UserError


def write_list(path, labels):
  path.write_text(labels if isinstance(labels, str) else json.dumps({"labels": labels}))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
  "labels",
  [
    [["a/00000.png", 3], ["a/00001.png", 0]],
    {"a/00000.png": 3, "a/00001.png": 0},  # the official loader accepts this form too
    [["a\\00000.png", 3], ["a\\00001.png", 0]],
  ],
)
def test_listed_labels(tmp_path, packed, labels):
  write_images(tmp_path / "images" / "a", 2)
  write_list(tmp_path / "images" / "dataset.json", labels)
  path = zip_directory(tmp_path / "images", tmp_path / "images.zip") if packed else tmp_path / "images"
  np.testing.assert_array_equal(listed_labels(ImageFiles(path)), [3, 0])


def test_names_are_relative_to_the_directory_of_the_list(tmp_path):
  """So a zip of a whole folder, with `images/dataset.json` and `images/a/00000.png`, can be read."""
  write_images(tmp_path / "images" / "a", 2)
  write_list(tmp_path / "images" / "dataset.json", [["a/00000.png", 1], ["a/00001.png", 2], ["a/00002.png", 9]])
  files = ImageFiles(tmp_path)
  np.testing.assert_array_equal(listed_labels(files), [1, 2])
  assert files.passed_over == {"listed in images/dataset.json but missing": 1}
  write_list(tmp_path / "images" / "a" / "dataset.json", [["00000.png", 5], ["00001.png", 5]])
  np.testing.assert_array_equal(listed_labels(ImageFiles(tmp_path)), [1, 2])  # the upper one is read


def test_a_list_below_some_images_is_refused(tmp_path):
  write_images(tmp_path / "a", 1)
  write_images(tmp_path / "b", 1)
  write_list(tmp_path / "b" / "dataset.json", [["00000.png", 1]])
  files = ImageFiles(tmp_path)
  with pytest.raises(UserError, match=r"b/dataset.json in .* is not above all images"):
    listed_labels(files)
  assert listed_labels(files, or_directories=True) is None  # as the directories are the classes
  assert files.passed_over == {"dataset.json of some of the images": 1}


def test_null_labels_are_none(tmp_path):
  write_images(tmp_path, 1)
  assert listed_labels(ImageFiles(tmp_path)) is None
  write_list(tmp_path / "dataset.json", None)
  assert listed_labels(ImageFiles(tmp_path)) is None


@pytest.mark.parametrize(
  "labels, message",
  [
    ('{"labels": [\n["00000.png", 1],\n["a\\b.png", 1 1]]}', "JSON: line 3, column 15: "),
    ('{"labels": [["a\\i.png", 1]]}', r"JSON, in which \\ is written \\\\: line 1, column 16"),
    ("[]", "has no 'labels'"),
    ("{}", "has no 'labels'"),
    ([["00000.png"]], r"entry 0 is \[\"00000.png\"\], not \[name, class number\]"),
    ("5", "has no 'labels'"),
    ('{"labels": 5}', "neither a list nor an object"),
    ([["00000.png", 1.5]], "labels 00000.png 1.5: give each image a class number"),
    ([["00000.png", True]], "labels 00000.png true"),
    ([["00000.png", -1]], "labels 00000.png -1"),
    ([["00000.png", [0, 1]]], r"labels 00000.png \[0, 1\]"),
    ([["00000.png", 1], ["00000.png", 2]], "labels 00000.png both 1 and 2"),
    ([["x/00000.png", 1]], r"does not list 00000.png \(it lists x/00000.png and others\)"),
    ([], "does not list 00000.png: list it, or remove"),
  ],
)
def test_bad_lists_are_refused(tmp_path, labels, message):
  write_images(tmp_path, 1)
  write_list(tmp_path / "dataset.json", labels)
  with pytest.raises(UserError, match=r"^dataset.json in .*" + message) as error:
    listed_labels(ImageFiles(tmp_path))
  assert "\n" not in str(error.value)


def test_a_list_that_is_not_utf8(tmp_path):
  write_images(tmp_path, 1)
  (tmp_path / "dataset.json").write_bytes(b'{"labels": [["caf\xe9.png", 1]]}')
  with pytest.raises(UserError, match="is not UTF-8"):
    listed_labels(ImageFiles(tmp_path))


@pytest.mark.parametrize("below", ["", "train/all"])
@pytest.mark.parametrize("packed", [False, True])
def test_directories_are_classes_in_the_order_of_their_names(tmp_path, below, packed):
  """Except for hidden and system directories; directories inside a class belong to it."""
  images = tmp_path / "images"
  write_images(images / below / "dog", 1)
  write_images(images / below / "dog" / "brown", 1, first=1)
  write_images(images / below / "cat", 3, suffix="webp", first=7)
  write_images(images / below / ".trash", 1)
  write_images(images / "__MACOSX" / below / "cat", 1)
  path = zip_directory(images, tmp_path / "images.zip") if packed else images
  labels, classes = directory_labels(ImageFiles(path))
  assert classes == ["cat", "dog"] and labels.dtype == np.int32
  np.testing.assert_array_equal(labels, [0, 0, 0, 1, 1])


@pytest.mark.parametrize(
  "names, message",
  [
    (("train/cat", "train/dog", "val/cat"), r"train in .* would be a class, but has directories.* such as train,"),
    (("cat", "more/dog"), "more in .* would be a class, but has directories"),
    (("train", "val"), "train, val in .* the names of splits"),
    (("Test", "train"), "Test, train in .* splits"),
    (("cat", "dog "), "'dog ' in .* cannot be the name of a class"),
    (("cat", "d\nog"), "'d.nog' in .* cannot be the name of a class"),
    (("", "cat"), "00000.png in .* has no label: list it in dataset.json"),
  ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_bad_class_directories_are_refused(tmp_path, names, message, packed):
  for name in names:
    write_images(tmp_path / "images" / name, 1)
  path = zip_directory(tmp_path / "images", tmp_path / "images.zip") if packed else tmp_path / "images"
  with pytest.raises(UserError, match=message):
    directory_labels(ImageFiles(path))


@pytest.mark.parametrize("what", ["without suffix", "other suffix", "empty", "a link to a class"])
@pytest.mark.parametrize("above", ["", "photos"])
def test_a_class_without_images_is_refused(tmp_path, above, what):
  """Ignoring it would renumber the other classes."""
  for name in ("cat", "fish"):
    write_images(tmp_path / above / name, 1)
  if what == "a link to a class":
    (tmp_path / above / "dog").symlink_to("cat")
  else:
    (tmp_path / above / "dog").mkdir()
    if what != "empty":
      (tmp_path / above / "dog" / ("1" if what == "without suffix" else "1.heic")).write_bytes(b"x")
  with pytest.raises(UserError, match=r"dog in .* would be a class, but has no readable image"):
    directory_labels(ImageFiles(tmp_path))
