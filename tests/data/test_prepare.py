import json

import numpy as np
import pytest
import tensorflow_datasets as tfds
from image_files import idx, write_idx_files, write_images, zip_directory
from PIL import Image

from r3gan_jax.data import prepare
from r3gan_jax.data.folder import ImageFiles
from r3gan_jax.data.images import CorruptImage, fit, to_array
from r3gan_jax.data.prepare import prepare_idx, prepare_images
from r3gan_jax.data.tfds import TfdsSource
from r3gan_jax.errors import UserError


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
  monkeypatch.setattr(prepare, "IMAGES_PER_SHARD", 4)


def run(path, data_dir, **changed):
  arguments = {
    "name": "pictures",
    "resolution": 4,
    "channels": 3,
    "class_directories": False,
    "processes": 1,
    "skip_corrupt": False,
  }
  return prepare_images(ImageFiles(path), data_dir=data_dir, **arguments | changed)


def read_by_tfds(directory, split):
  """By the reader of TFDS, which shares no code with ours: images [n, H, W, C], records."""
  records = list(tfds.builder_from_directory(directory).as_data_source(split))
  return np.stack([record["image"] for record in records]), records


def shards(directory):
  """Each finished shard and the file it is: a shard written again is another file."""
  return {path.name: path.stat().st_ino for path in directory.glob("pictures-*")}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("processes", [1, 2])
def test_images_are_resized_labelled_and_packed(tmp_path, packed, processes):
  images = [write_images(tmp_path / "images" / name, 5, first=first) for name, first in (("b", 0), ("a", 5))]
  path = zip_directory(tmp_path / "images", tmp_path / "images.zip") if packed else tmp_path / "images"
  prepared = run(path, tmp_path, class_directories=True, processes=processes)
  assert (prepared.images, prepared.left_out) == (10, 0)
  assert prepared.directory == tmp_path / "pictures" / "1.0.0"
  assert len(shards(prepared.directory)) == 3
  expected = np.stack(
    [to_array(fit(Image.fromarray(image), 4, "crop_resize", "")) for image in np.concatenate(images[::-1])]
  )
  actual, records = read_by_tfds(prepared.directory, "train")
  np.testing.assert_array_equal(actual, expected)
  assert [record["label"] for record in records] == [0] * 5 + [1] * 5
  assert tfds.builder_from_directory(prepared.directory).info.features["label"].names == ["a", "b"]
  ours = TfdsSource("pictures", "train", str(tmp_path), (4, 4, 3), "crop_resize", 2)[np.arange(10)]
  np.testing.assert_array_equal(ours["image"], expected)
  np.testing.assert_array_equal(ours["label"], [0] * 5 + [1] * 5)


def test_listed_labels_are_kept(tmp_path):
  write_images(tmp_path / "images", 3)
  labels = {"labels": [[f"{index:05}.png", label] for index, label in enumerate([4, 0, 2])]}
  (tmp_path / "images" / "dataset.json").write_text(json.dumps(labels))
  prepared = run(tmp_path / "images", tmp_path)
  assert [record["label"] for record in read_by_tfds(prepared.directory, "train")[1]] == [4, 0, 2]
  assert tfds.builder_from_directory(prepared.directory).info.features["label"].num_classes == 5
  labels["labels"][1][1] = 3
  (tmp_path / "images" / "dataset.json").write_text(json.dumps(labels))
  with pytest.raises(UserError, match="holds another data set"):
    run(tmp_path / "images", tmp_path)


def test_a_corrupt_image_stops_and_the_rest_goes_on_from_there(tmp_path, caplog):
  images = tmp_path / "images"
  write_images(images, 14, side=4)
  good = (images / "00009.png").read_bytes()
  (images / "00009.png").write_bytes(b"x" * len(good))
  with pytest.raises(CorruptImage, match=r"00009.png in .* or leave such images out with --skip_corrupt$"):
    run(images, tmp_path)
  unfinished = tmp_path / "pictures" / "1.0.0.unfinished"
  finished = shards(unfinished)
  assert len(finished) == 2
  with pytest.raises(UserError, match="'pictures' is not prepared under"):
    TfdsSource("pictures", "train", str(tmp_path), (4, 4, 3), "crop_resize")

  prepared = run(images, tmp_path, skip_corrupt=True)
  assert (prepared.images, prepared.left_out) == (13, 1)
  assert "left out: 00009.png in" in caplog.text
  assert finished.items() < shards(prepared.directory).items()  # not written again
  assert not unfinished.exists() and not list(prepared.directory.glob("writing-*"))
  expected = np.stack([np.asarray(Image.open(images / f"{index:05}.png")) for index in range(14) if index != 9])
  np.testing.assert_array_equal(read_by_tfds(prepared.directory, "train")[0], expected)


def test_all_corrupt_is_no_data_set(tmp_path):
  write_images(tmp_path / "images", 2)
  for file in (tmp_path / "images").iterdir():
    file.write_bytes(b"x")
  with pytest.raises(UserError, match="would hold no image"):
    run(tmp_path / "images", tmp_path, skip_corrupt=True)


def test_another_data_set_is_never_written_over(tmp_path):
  write_images(tmp_path / "images", 5)
  prepared = run(tmp_path / "images", tmp_path)
  before = shards(prepared.directory)
  assert run(tmp_path / "images", tmp_path) == prepared and shards(prepared.directory) == before
  with pytest.raises(UserError, match="holds another data set: choose another --name"):
    run(tmp_path / "images", tmp_path, resolution=8)
  write_images(tmp_path / "images", 1, first=5)
  with pytest.raises(UserError, match="holds another data set: choose another --name"):
    run(tmp_path / "images", tmp_path)
  assert shards(prepared.directory) == before


@pytest.mark.parametrize("name", ["FFHQ", "ffhq-64", "a/b", ""])
def test_names_that_tfds_would_not_find_are_refused(tmp_path, name):
  write_images(tmp_path / "images", 1)
  with pytest.raises(UserError, match=f"^--name={name}: a data set's name"):
    run(tmp_path / "images", tmp_path, name=name)


@pytest.fixture
def idx_files(tmp_path):
  return tmp_path, write_idx_files(tmp_path)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_idx_files_become_what_tfds_itself_prepares(idx_files, tmp_path, name):
  directory, splits = idx_files
  prepared = prepare_idx(directory, name, tmp_path / "data")
  assert prepared.images == 17 and prepared.directory == tmp_path / "data" / name / "3.0.1"
  builder = tfds.builder(name, data_dir=tmp_path / "data", file_format="array_record")
  for split, prefix in (("train", "train"), ("test", "t10k")):
    records = list(builder.as_data_source(split))
    np.testing.assert_array_equal(np.stack([record["image"][..., 0] for record in records]), splits[prefix][0])
    np.testing.assert_array_equal([record["label"] for record in records], splits[prefix][1])


@pytest.mark.parametrize(
  "change, message",
  [
    (lambda directory: (directory / "t10k-labels-idx1-ubyte").unlink(), "holds neither t10k-labels-idx1-ubyte nor"),
    (
      lambda directory: (directory / "train-images-idx3-ubyte.gz").write_bytes(b"\x1f\x8b"),
      "train-images-idx3-ubyte.gz is no idx file of bytes, or one cut short: fetch it again",
    ),
    (
      lambda directory: (directory / "t10k-images-idx3-ubyte").write_bytes(idx(np.zeros((5, 28, 28), np.uint8))[:-1]),
      "t10k-images-idx3-ubyte is no idx file",
    ),
    (
      lambda directory: (directory / "t10k-labels-idx1-ubyte").write_bytes(idx(np.zeros(4, np.uint8))),
      r"t10k images of shape \(5, 28, 28\) and 4 labels",
    ),
    (
      lambda directory: (directory / "t10k-labels-idx1-ubyte").write_bytes(idx(np.full(5, 10, np.uint8))),
      "holds a t10k label 10, but mnist has not as many classes",
    ),
  ],
)
def test_bad_idx_files_are_named(idx_files, tmp_path, change, message):
  change(idx_files[0])
  with pytest.raises(UserError, match=message):
    prepare_idx(idx_files[0], "mnist", tmp_path / "data")


def test_idx_files_are_of_known_data_sets(idx_files, tmp_path):
  with pytest.raises(UserError, match="--name=emnist: idx files make one of mnist"):
    prepare_idx(idx_files[0], "emnist", tmp_path / "data")
