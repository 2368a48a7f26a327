import json
import os
import resource
from contextlib import contextmanager, redirect_stdout

import numpy as np
import pytest
import tensorflow_datasets as tfds
from helpers.image_files import idx, write_idx_files, write_images, zip_directory
from PIL import Image

from r3gan_jax.data import prepare
from r3gan_jax.data.files import ImageFiles
from r3gan_jax.data.images import CorruptImage, Decoder, fit, to_array
from r3gan_jax.data.prepare import prepare_idx, prepare_images
from r3gan_jax.data.tfds import TfdsSource
from r3gan_jax.errors import UserError
from r3gan_jax.locks import locked


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
  monkeypatch.setattr(prepare, "IMAGES_PER_SHARD", 4)


def run(path, data_dir, **changed):
  arguments = {
    "name": "pictures",
    "size": (4, 4),
    "decoder": Decoder(3),
    "class_directories": False,
    "processes": 1,
    "skip_corrupt": False,
  }
  return prepare_images(ImageFiles(path), data_dir=data_dir, **arguments | changed)


def read_by_tfds(directory, split):
  """Reads a split with TFDS's own reader: images [n, H, W, C], records."""
  records = list(tfds.builder_from_directory(directory).as_data_source(split))
  return np.stack([record["image"] for record in records]), records


def shards(directory):
  """Returns name -> inode of the finished shards; a rewritten shard has another inode."""
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
    [to_array(fit(Image.fromarray(image), (4, 4), "crop_resize", "")) for image in np.concatenate(images[::-1])]
  )
  actual, records = read_by_tfds(prepared.directory, "train")
  np.testing.assert_array_equal(actual, expected)
  assert [record["label"] for record in records] == [0] * 5 + [1] * 5
  assert tfds.builder_from_directory(prepared.directory).info.features["label"].names == ["a", "b"]
  source = TfdsSource("pictures", "train", str(tmp_path), (4, 4), Decoder(3), "crop_resize", 2)
  assert source.classes == ("a", "b")
  ours = source[np.arange(10)]
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
  with pytest.raises(UserError, match="has another data set"):
    run(tmp_path / "images", tmp_path)


def test_a_preparation_stopped_by_a_corrupt_image_continues(tmp_path, caplog):
  images = tmp_path / "images"
  write_images(images, 14, side=4)
  good = (images / "00009.png").read_bytes()
  (images / "00009.png").write_bytes(b"x" * len(good))
  with pytest.raises(CorruptImage, match=r"00009.png in .* --skip_corrupt$"):
    run(images, tmp_path)
  unfinished = tmp_path / "pictures" / "1.0.0.unfinished"
  finished = shards(unfinished)
  assert len(finished) == 2
  with pytest.raises(UserError, match="'pictures' is not prepared under"):
    TfdsSource("pictures", "train", str(tmp_path), (4, 4), Decoder(3), "crop_resize")

  prepared = run(images, tmp_path, skip_corrupt=True)
  assert (prepared.images, prepared.left_out) == (13, 1)
  assert "left out: 00009.png in" in caplog.text
  assert finished.items() < shards(prepared.directory).items()  # not written again
  assert not unfinished.exists() and not list(prepared.directory.glob("writing-*"))
  expected = np.stack([np.asarray(Image.open(images / f"{index:05}.png")) for index in range(14) if index != 9])
  np.testing.assert_array_equal(read_by_tfds(prepared.directory, "train")[0], expected)


def test_only_corrupt_images_are_refused(tmp_path):
  write_images(tmp_path / "images", 2)
  for file in (tmp_path / "images").iterdir():
    file.write_bytes(b"x")
  with pytest.raises(UserError, match="would have no images"):
    run(tmp_path / "images", tmp_path, skip_corrupt=True)


def test_another_data_set_is_never_overwritten(tmp_path):
  write_images(tmp_path / "images", 5)
  prepared = run(tmp_path / "images", tmp_path)
  before = shards(prepared.directory)
  assert run(tmp_path / "images", tmp_path) == prepared and shards(prepared.directory) == before
  with pytest.raises(UserError, match=r"has another data set \(.*\): choose another --name"):
    run(tmp_path / "images", tmp_path, size=(8, 8))
  write_images(tmp_path / "images", 1, first=5)
  with pytest.raises(UserError, match=r"has another data set \(.*\): choose another --name"):
    run(tmp_path / "images", tmp_path)
  assert shards(prepared.directory) == before


def test_a_corrupt_image_can_be_removed_as_advised(tmp_path, caplog):
  images = write_images(tmp_path / "images", 9, side=4)
  (tmp_path / "images" / "00006.png").write_bytes(b"")
  with pytest.raises(CorruptImage, match=r"00006.png in .* is empty: replace or remove it"):
    run(tmp_path / "images", tmp_path)
  (tmp_path / "images" / "00006.png").unlink()
  prepared = run(tmp_path / "images", tmp_path)
  assert "starting over in" in caplog.text and "9 images in split train, now 8" in caplog.text
  np.testing.assert_array_equal(read_by_tfds(prepared.directory, "train")[0], np.delete(images, 6, axis=0))


def test_edited_images_of_equal_sizes_are_another_data_set(tmp_path):
  write_images(tmp_path / "images", 3, suffix="bmp")
  prepared = run(tmp_path / "images", tmp_path)
  for file in (tmp_path / "images").iterdir():
    file.touch()
  assert run(tmp_path / "images", tmp_path) == prepared
  file.write_bytes(file.read_bytes()[:-1] + b"x")
  with pytest.raises(UserError, match=r"another data set .the images or labels of split train have changed.: choose"):
    run(tmp_path / "images", tmp_path)


def test_renamed_classes_are_another_data_set(tmp_path):
  for name in ("a", "b"):
    write_images(tmp_path / "images" / name, 2)
  run(tmp_path / "images", tmp_path, class_directories=True)
  (tmp_path / "images" / "a").rename(tmp_path / "images" / "c")
  with pytest.raises(UserError, match="has another data set"):
    run(tmp_path / "images", tmp_path, class_directories=True)


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b'{"splits": 5}', b'{"splits": {"train": {}}}', None])
def test_a_damaged_recipe(tmp_path, content):
  """An unfinished preparation starts over; a finished data set is refused."""
  write_images(tmp_path / "images", 5)
  unfinished = tmp_path / "pictures" / "1.0.0.unfinished"
  unfinished.mkdir(parents=True)
  if content is not None:
    (unfinished / "prepare.json").write_bytes(content)
  (unfinished / "pictures-train.array_record-00000-of-00002").write_bytes(b"of something else")
  prepared = run(tmp_path / "images", tmp_path)
  assert prepared.images == 5 and not unfinished.exists()
  (prepared.directory / "prepare.json").write_bytes(content or b"")
  with pytest.raises(UserError, match=r"prepare.json is missing or damaged"):
    run(tmp_path / "images", tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xff{", None])
@pytest.mark.parametrize("name", ["dataset_info.json", "features.json", "pictures-train.array_record-00001-of-00002"])
def test_a_damaged_data_set_is_refused(tmp_path, name, content):
  write_images(tmp_path / "images", 5)
  file = run(tmp_path / "images", tmp_path).directory / name
  file.unlink()
  if content is not None:
    file.write_bytes(content)
  with pytest.raises(UserError, match=r"pictures/1.0.0.* prepare it again$") as error:
    run(tmp_path / "images", tmp_path)
  assert "\n" not in str(error.value)
  with pytest.raises(UserError, match=r"prepare it again$|is not prepared under"):
    TfdsSource("pictures", "train", str(tmp_path), (4, 4), Decoder(3), "crop_resize")


def test_a_higher_version_is_refused(tmp_path):
  write_images(tmp_path / "images", 1)
  (tmp_path / "pictures" / "3.0.1").mkdir(parents=True)
  (tmp_path / "pictures" / "0.9.0").mkdir()
  with pytest.raises(UserError, match=r"pictures/3.0.1 exists and would be read instead of 1.0.0"):
    run(tmp_path / "images", tmp_path)
  (tmp_path / "pictures" / "3.0.1").rmdir()
  assert run(tmp_path / "images", tmp_path).images == 1


def test_two_preparations_at_the_same_time(tmp_path):
  write_images(tmp_path / "images", 1)
  (tmp_path / "pictures").mkdir()
  lock = locked(tmp_path / "pictures" / "1.0.0.lock", "unexpected")
  with lock, pytest.raises(UserError, match=rf"pictures/1.0.0 is in use by process {os.getpid()} on .*: wait until"):
    run(tmp_path / "images", tmp_path)
  (tmp_path / "pictures" / "1.0.0.lock").touch()  # as a killed process leaves it
  assert run(tmp_path / "images", tmp_path).images == 1
  assert os.listdir(tmp_path / "pictures") == ["1.0.0"]


def test_an_unwritable_directory(tmp_path):
  write_images(tmp_path / "images", 1)
  (tmp_path / "file").touch()
  with pytest.raises(UserError, match=r"cannot write .*file/pictures/1.0.0: Not a directory"):
    run(tmp_path / "images", tmp_path / "file")


@contextmanager
def largest_file(size):
  """Limits the size of files, like a full disk."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 100_000])
def test_a_preparation_stopped_by_a_full_disk_continues(tmp_path, capsys, size):
  images = write_images(tmp_path / "images", 12, side=128)
  message = "cannot write .*: .*File too large.*: the same command continues"
  with capsys.disabled(), redirect_stdout(None), largest_file(size), pytest.raises(UserError, match=message):
    run(tmp_path / "images", tmp_path, size=(128, 128))
  unfinished = tmp_path / "pictures" / "1.0.0.unfinished"
  assert not list(unfinished.glob("writing-*")) and not list(unfinished.glob("*.tmp"))
  prepared = run(tmp_path / "images", tmp_path, size=(128, 128))
  np.testing.assert_array_equal(read_by_tfds(prepared.directory, "train")[0], images)


def test_the_background_is_part_of_the_data(tmp_path, capsys):
  (tmp_path / "images").mkdir()
  Image.new("RGBA", (4, 4)).save(tmp_path / "images" / "logo.png")
  prepared = run(tmp_path / "images", tmp_path)
  assert (read_by_tfds(prepared.directory, "train")[0] == 255).all()
  assert "1 transparent, put over white" in capsys.readouterr().out
  with pytest.raises(UserError, match="has another data set"):
    run(tmp_path / "images", tmp_path, decoder=Decoder(3, "black"))


@pytest.mark.parametrize("name", ["FFHQ", "ffhq-64", "a/b", ""])
def test_names_that_tfds_does_not_allow_are_refused(tmp_path, name):
  write_images(tmp_path / "images", 1)
  with pytest.raises(UserError, match=f"^--name={name}: use lower-case"):
    run(tmp_path / "images", tmp_path, name=name)


@pytest.fixture
def idx_files(tmp_path):
  return tmp_path, write_idx_files(tmp_path)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_idx_files_are_prepared_as_tfds_does(idx_files, tmp_path, name):
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
    (lambda directory: (directory / "t10k-labels-idx1-ubyte").unlink(), "has neither t10k-labels-idx1-ubyte nor"),
    (
      lambda directory: (directory / "train-images-idx3-ubyte.gz").write_bytes(b"\x1f\x8b"),
      "train-images-idx3-ubyte.gz is not an idx file",
    ),
    (
      lambda directory: (directory / "t10k-images-idx3-ubyte").write_bytes(idx(np.zeros((5, 28, 28), np.uint8))[:-1]),
      "t10k-images-idx3-ubyte is not an idx file",
    ),
    (
      lambda directory: (directory / "t10k-labels-idx1-ubyte").write_bytes(idx(np.zeros(4, np.uint8))),
      r"t10k images of shape \(5, 28, 28\) and 4 labels",
    ),
    (
      lambda directory: (directory / "t10k-labels-idx1-ubyte").write_bytes(idx(np.full(5, 10, np.uint8))),
      "has a t10k label 10, but mnist has 10 classes",
    ),
  ],
)
def test_bad_idx_files_are_named(idx_files, tmp_path, change, message):
  change(idx_files[0])
  with pytest.raises(UserError, match=message):
    prepare_idx(idx_files[0], "mnist", tmp_path / "data")


def test_idx_files_of_unknown_data_sets_are_refused(idx_files, tmp_path):
  with pytest.raises(UserError, match=r"--name=emnist: .*choose from mnist"):
    prepare_idx(idx_files[0], "emnist", tmp_path / "data")
