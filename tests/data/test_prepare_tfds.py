"""TFDS's own recipes, which need TensorFlow: `pip install -e '.[tfds]'`."""

import importlib.util
import io
import tarfile

import numpy as np
import pytest
import tensorflow_datasets as tfds

from r3gan_jax.data.prepare import prepare_tfds
from r3gan_jax.data.tfds import TfdsSource
from r3gan_jax.errors import UserError

with_tensorflow = pytest.mark.skipif(not importlib.util.find_spec("tensorflow"), reason="needs the extra 'tfds'")


@pytest.fixture
def manual_dir(tmp_path):
  """CIFAR-10's archive in its published form, with 5 x 4 + 4 random images: (directory, images, labels)."""
  random = np.random.default_rng(0)
  images = random.integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)
  labels = np.arange(24, dtype=np.uint8) % 10
  rows = np.concatenate([labels[:, None], images.transpose(0, 3, 1, 2).reshape(24, -1)], 1)
  names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
  files = {f"data_batch_{n + 1}.bin": rows[4 * n : 4 * n + 4].tobytes() for n in range(5)}
  files |= {"test_batch.bin": rows[20:].tobytes(), "batches.meta.txt": "\n".join(names).encode()}
  directory = tmp_path / "manual"
  directory.mkdir()
  with tarfile.open(directory / "cifar-10-binary.tar.gz", "w:gz") as archive:
    for name, data in files.items():
      member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
      member.size = len(data)
      archive.addfile(member, io.BytesIO(data))
  return directory, images, labels


def by_label_and_content(images, labels):
  """Sorts examples, as TFDS shuffles them."""
  return sorted((int(label), image.tobytes()) for image, label in zip(images, labels, strict=True))


@with_tensorflow
@pytest.mark.filterwarnings("ignore")  # TensorFlow's own
def test_cifar10_is_prepared_from_downloaded_files(manual_dir, tmp_path, monkeypatch):
  directory, images, labels = manual_dir
  with pytest.raises(UserError, match=r"--tfds=cifar10: .*has wrong checksum.*: download the file again"):
    prepare_tfds("cifar10", tmp_path / "data", directory)
  # TFDS registers the size, checksum and name of each file.
  (url,) = tfds.builder("cifar10", data_dir=tmp_path).url_infos
  published = tfds.core.download.checksums.compute_url_info(directory / "cifar-10-binary.tar.gz")
  monkeypatch.setattr(type(tfds.builder("cifar10", data_dir=tmp_path)), "url_infos", {url: published})

  prepared = prepare_tfds("cifar10", tmp_path / "data", directory)
  assert prepared.images == 24
  examples = TfdsSource("cifar10", "train+test", str(tmp_path / "data"), (32, 32, 3), "crop_resize", 10)[np.arange(24)]
  assert by_label_and_content(examples["image"], examples["label"]) == by_label_and_content(images, labels)


@pytest.mark.skipif(bool(importlib.util.find_spec("tensorflow")), reason="TensorFlow is installed")
def test_without_tensorflow_the_extra_is_named(tmp_path):
  with pytest.raises(UserError, match=r"--tfds=cifar10 needs TensorFlow .*: pip install -e '.\[tfds\]'"):
    prepare_tfds("cifar10", tmp_path, None)


@with_tensorflow
def test_an_unknown_data_set_is_named(tmp_path):
  with pytest.raises(UserError, match="--tfds=cifar11: TFDS has no such data set"):
    prepare_tfds("cifar11", tmp_path, None)
