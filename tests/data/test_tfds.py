import resource

import numpy as np
import pytest
import tensorflow_datasets as tfds
from helpers.image_files import write_images
from PIL import Image

from r3gan_jax.data.files import ImageFiles
from r3gan_jax.data.images import Decoder
from r3gan_jax.data.prepare import prepare_images
from r3gan_jax.data.tfds import TfdsSource
from r3gan_jax.errors import UserError


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  """Data sets "colour", with 2 classes, and "grey", without classes, of 8x8 images."""
  root = tmp_path_factory.mktemp("data")
  for name, channels in (("colour", 3), ("grey", 1)):
    for first, label in enumerate(("cat", "dog")):
      write_images(root / name / label, 4, channels=channels, first=4 * first)
    prepare_images(ImageFiles(root / name), name, root / "data", (8, 8), Decoder(channels), name == "colour", 1, False)
  return root / "data"


def source(data_dir, name="colour", split="train", side=8, channels=3, fit_by="crop_resize", **labels):
  return TfdsSource(name, split, str(data_dir), (side, side), Decoder(channels), fit_by, **labels)


def everything(some):
  return some[np.arange(len(some))]


def test_examples_in_any_order_and_parts_of_a_split(data_dir):
  examples = everything(source(data_dir, num_classes=2))
  assert examples["label"].dtype == np.int32 and len(np.unique(examples["image"], axis=0)) == 8
  np.testing.assert_array_equal(examples["label"], [0] * 4 + [1] * 4)
  some = source(data_dir, num_classes=2)[np.array([7, 0, 7])]
  np.testing.assert_array_equal(some["image"], examples["image"][[7, 0, 7]])
  np.testing.assert_array_equal(everything(source(data_dir, split="train[2:5]"))["image"], examples["image"][2:5])


def test_a_prepared_directory_describes_itself(data_dir):
  examples = everything(source(data_dir / "colour" / "1.0.0", name="", num_classes=2))
  np.testing.assert_array_equal(examples["image"], everything(source(data_dir))["image"])


def test_records_are_fitted(data_dir):
  examples = everything(source(data_dir))["image"]
  padded = everything(source(data_dir, side=12, fit_by="pad"))["image"]
  np.testing.assert_array_equal(padded, np.pad(examples, ((0, 0), (2, 2), (2, 2), (0, 0))))
  halved = everything(source(data_dir, side=4))["image"]
  by_pillow = [np.asarray(Image.fromarray(image).resize((4, 4), Image.Resampling.LANCZOS)) for image in examples]
  np.testing.assert_array_equal(halved, by_pillow)


def test_grey_becomes_rgb(data_dir):
  grey = everything(source(data_dir, "grey", channels=1))["image"]
  np.testing.assert_array_equal(everything(source(data_dir, "grey"))["image"], grey.repeat(3, -1))


@pytest.mark.parametrize(
  "arguments, message",
  [
    ({"split": "test"}, r"config.data.split = 'test': .*colour.* has the splits \['train'\]"),
    ({"split": "train[:0]"}, r"config.data.split = 'train\[:0\]': .* has no images in it"),
    ({"num_classes": 3}, "has 2 classes, but config.data.num_classes = 3: set it to match"),
    ({"num_classes": 2, "label_key": "kind"}, r"config.data.label_key = 'kind' .*choose from \['image', 'label'\]"),
    ({"name": "grey", "num_classes": 2}, r"config.data.label_key = 'label' .*or set config.data.num_classes = 0"),
    ({"channels": 1}, "has colour images: set config.data.channels = 3"),
    ({"name": ""}, "config.data.name = '': give the name of a prepared data set"),
    ({"name": "my data"}, "config.data.name = 'my data': give the name of a prepared data set"),
    ({"name": "no_such"}, "is not prepared under .*prepare_data --images=FOLDER_OR_ZIP --name=no_such --resolution=N"),
    ({"name": "cifar10"}, "is not prepared under .*: run .*prepare_data --tfds=cifar10$"),
    ({"name": "imagenet_resized/64x64"}, "prepare_data --tfds=imagenet_resized/64x64$"),
    ({"name": "mnist"}, "prepare_data --idx=DIRECTORY --name=mnist$"),
  ],
)
def test_mismatched_settings_are_refused(data_dir, arguments, message):
  with pytest.raises(UserError, match=message):
    source(data_dir, **arguments)


def test_a_damaged_shard_is_found_at_the_start(data_dir, tmp_path):
  directory = data_dir / "colour" / "1.0.0"
  copy = tmp_path / "copy"
  copy.mkdir()
  for file in directory.iterdir():
    data = file.read_bytes()
    (copy / file.name).write_bytes(data[:1000] if "array_record" in file.name else data)
  with pytest.raises(UserError, match=r"cannot read .*copy: .*: if it is damaged, remove it and prepare it again"):
    source(copy)
  next(copy.glob("*array_record*")).unlink()
  with pytest.raises(UserError, match=r"cannot read .*copy: .*: if it is damaged, remove it and prepare it again"):
    source(copy)


def test_a_home_directory_is_expanded(data_dir, monkeypatch):
  monkeypatch.setenv("HOME", str(data_dir.parent))
  assert len(source("~/data")) == 8


@pytest.mark.parametrize(
  "dtype, error", [("float32", "images of float32 instead of uint8"), ("uint16", "set config.data.bits = 16")]
)
def test_images_of_other_types_are_refused(tmp_path, dtype, error):
  """TFDS stores floats as PNG, four bytes per value; decoded as an image they would be noise."""
  identity = tfds.core.dataset_info.DatasetIdentity(
    name="depth", version=tfds.core.Version("1.0.0"), data_dir=str(tmp_path), module_name=__name__
  )
  image = tfds.features.Image(shape=(8, 8, 1), dtype=np.dtype(dtype).type, encoding_format="png")
  info = tfds.core.DatasetInfo(builder=identity, description="", features=tfds.features.FeaturesDict({"image": image}))
  info.set_file_format("array_record")
  directory = tmp_path / "depth" / "1.0.0"
  split = tfds.core.SplitInfo(
    name="train",
    shard_lengths=[1],
    num_bytes=1,
    filename_template=tfds.core.ShardedFileTemplate(
      data_dir=directory, dataset_name="depth", split="train", filetype_suffix="array_record"
    ),
  )
  info.set_splits(tfds.core.splits.SplitDict([split]))
  directory.mkdir(parents=True)
  info.write_to_directory(directory)
  with pytest.raises(UserError, match=f"depth.* has .*{error}"):
    source(tmp_path, "depth", channels=1)


def test_the_limit_of_open_files_is_raised(data_dir, monkeypatch):
  """macOS allows 256 by default; a data set may have 512 shards."""
  asked = []
  monkeypatch.setattr(resource, "getrlimit", lambda which: (128, 4096))
  monkeypatch.setattr(resource, "setrlimit", lambda which, limits: asked.append(limits))
  assert len(source(data_dir)) == 8
  assert asked == [(129, 4096)]
  monkeypatch.setattr(resource, "getrlimit", lambda which: (128, 128))
  with pytest.raises(UserError, match="has 1 files, but a process may open only 128: run ulimit -n 129"):
    source(data_dir)
