"""Every source knows its images by their content, and nothing but their content."""

import gzip
import shutil

import numpy as np
import pytest
from helpers.image_files import write_idx_files, write_images, zip_directory

from r3gan_jax.data.cache import cached
from r3gan_jax.data.folder import FolderSource
from r3gan_jax.data.generated import GeneratedSource
from r3gan_jax.data.images import Decoder
from r3gan_jax.data.prepare import prepare_idx
from r3gan_jax.data.relabelled import RelabelledSource
from r3gan_jax.data.skipping import SkippingSource
from r3gan_jax.data.stacked import StackedSource
from r3gan_jax.data.tfds import TfdsSource
from r3gan_jax.errors import UserError


def folder(path, **decoding):
  return FolderSource(str(path), (8, 8), Decoder(3, **decoding), num_classes=0).fingerprint()


def test_image_files(tmp_path):
  """Neither the place, names nor dates count, nor whether they are packed; every byte and the order do."""
  write_images(tmp_path / "a", 300, suffix="bmp")
  before = folder(tmp_path / "a")
  shutil.copytree(tmp_path / "a", tmp_path / "b")
  for file in (tmp_path / "b").iterdir():
    file.rename(file.with_name(f"x{file.name}"))
  assert folder(tmp_path / "b") == before == folder(zip_directory(tmp_path / "a", tmp_path / "a.zip"))
  assert folder(tmp_path / "a", background="black") != before

  file = tmp_path / "b" / "x00123.bmp"
  data = file.read_bytes()
  file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
  assert folder(tmp_path / "b") != before != folder(zip_directory(tmp_path / "b", tmp_path / "a.zip"))
  file.write_bytes(data)
  assert folder(tmp_path / "b") == before
  file.rename(file.with_name("x99999.bmp"))
  assert folder(tmp_path / "b") != before


def test_prepared_data(tmp_path):
  write_idx_files(tmp_path)
  prepare_idx(tmp_path, "mnist", tmp_path / "one")

  def prepared(directory="one", split="train", resolution=28, fit_by="none"):
    return TfdsSource("mnist", split, str(tmp_path / directory), (resolution,) * 2, Decoder(1), fit_by).fingerprint()

  before = prepared()
  shutil.copytree(tmp_path / "one", tmp_path / "two")
  assert prepared("two") == before
  others = {prepared(split="test"), prepared(split="train[:5]"), prepared(split="train+test")}
  others |= {prepared(resolution=32, fit_by="pad")}
  idx = tmp_path / "train-images-idx3-ubyte.gz"
  data = bytearray(gzip.decompress(idx.read_bytes()))
  data[-1] ^= 1
  idx.write_bytes(gzip.compress(data))
  prepare_idx(tmp_path, "mnist", tmp_path / "three")
  others.add(prepared("three"))
  assert len(others | {before}) == 6


def test_arrays():
  digits = np.random.default_rng(0).integers(0, 256, (50, 8, 8), np.uint8)
  other = digits.copy()
  other[49, 7, 7] ^= 1
  fingerprints = [
    *(StackedSource(some, size=size).fingerprint() for some in (digits, other) for size in (100, 101)),
    GeneratedSource((8, 8), 3, 5).fingerprint(),
    GeneratedSource((16, 16), 3, 5).fingerprint(),
    GeneratedSource((8, 8), 1, 5).fingerprint(),
  ]
  assert len(set(fingerprints)) == 7
  assert StackedSource(digits.copy(), size=100).fingerprint() == fingerprints[0]


def test_what_only_changes_labels_or_speed_leaves_it():
  source = GeneratedSource((8, 8), 3, 5)
  wrapped = [cached(source, 1), SkippingSource(source), RelabelledSource(source, 5, 0.5, (), 0)]
  assert {other.fingerprint() for other in wrapped} == {source.fingerprint()}


def test_a_missing_shard_is_named(tmp_path):
  write_idx_files(tmp_path)
  prepare_idx(tmp_path, "mnist", tmp_path)
  source = TfdsSource("mnist", "train", str(tmp_path), (28, 28), Decoder(1), "none")
  (shard,) = tmp_path.rglob("*-train.array_record*")
  shard.unlink()
  with pytest.raises(UserError, match=rf"cannot read .*{shard.name}"):
    source.fingerprint()
