import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from r3gan_jax.data import latents
from r3gan_jax.data.files import ImageFiles
from r3gan_jax.data.images import CorruptImage, Decoder
from r3gan_jax.data.latents import (
  LatentFiles,
  LatentSource,
  Numbers,
  draw,
  measured,
  of_edm2,
  prepare_latents,
  read_numbers,
)
from r3gan_jax.data.loader import Loader
from r3gan_jax.data.prepare import prepare_images
from r3gan_jax.errors import UserError

NUMBERS = Numbers((1.0, -2.0), (4.0, 0.5), (-1.0, 1.0), (8, 16, 3))


class Made:
  """A source of made-up latents, of 2 channels and 2x4 pixels, of 5 images and their mirror images."""

  classes = ()

  def __init__(self):
    random = np.random.default_rng(0)
    self.moments = np.concatenate([random.normal(size=(5, 2, 2, 4, 2)), random.uniform(size=(5, 2, 2, 4, 2))], axis=-1)

  def __len__(self):
    return 5

  def __getitem__(self, indices):
    return {"image": self.moments[indices], "label": indices}


def test_latents_are_drawn_and_scaled():
  moments = np.zeros((3, 20, 20, 4))
  moments[..., :2] = (5.0, -1.0)
  np.testing.assert_allclose(draw(moments, NUMBERS, [(0,), (1,), (2,)])[:, 0, 0], [[0.5, 1.0]] * 3)
  moments[..., 2:] = (4.0, 0.25)
  drawn = draw(moments, NUMBERS, [(0,), (1,), (0,)])
  assert drawn.dtype == np.float32
  np.testing.assert_array_equal(drawn[0], drawn[2])
  assert (drawn[0] != drawn[1]).all()
  np.testing.assert_allclose(drawn.mean(axis=(0, 1, 2)), (0.5, 1.0), atol=0.03)
  np.testing.assert_allclose(drawn.std(axis=(0, 1, 2)), (0.5, 0.25), rtol=0.05)


def test_measured_numbers_give_draws_of_mean_0_and_std_one_half():
  source = Made()
  numbers = Numbers(*measured(source), (-1.0, 1.0), (8, 16, 3))
  loader = Loader(source, seed=3, x_flip=True, numbers=numbers)
  drawn = loader.examples(np.arange(5000))["image"]
  np.testing.assert_allclose(drawn.mean(axis=(0, 1, 2)), 0, atol=0.01)
  np.testing.assert_allclose(drawn.std(axis=(0, 1, 2)), 0.5, rtol=0.01)


def test_the_draw_of_a_sample_depends_on_nothing_else():
  loader = Loader(Made(), seed=3, x_flip=True, numbers=NUMBERS)
  whole = loader.examples(np.arange(100))
  parts = [loader.examples(np.arange(start, start + 4)) for start in range(0, 100, 4)]
  np.testing.assert_array_equal(whole["image"], np.concatenate([part["image"] for part in parts]))
  assert whole["image"].shape == (100, 2, 4, 2)
  again = Loader(Made(), seed=3, x_flip=True, numbers=NUMBERS).examples(np.arange(50, 60))
  np.testing.assert_array_equal(whole["image"][50:60], again["image"])
  alike = Made()
  alike.moments[:] = alike.moments[:1, :1]
  orders = [Loader(alike, 3, True, NUMBERS).examples(np.arange(9), order)["image"] for order in (0, 1)]
  assert (orders[0] != orders[1]).all()
  first, second = np.flatnonzero(loader.indices(np.arange(100)) == 2)[:2]
  assert (whole["image"][first] != whole["image"][second]).all()


def test_mirror_images_have_latents_of_their_own():
  source = Made()
  source.moments[..., 2:] = 0  # no noise
  loader = Loader(source, seed=0, x_flip=True, numbers=NUMBERS)
  drawn = loader.examples(np.arange(10))["image"]
  for image, index in zip(drawn, loader.indices(np.arange(10)), strict=True):
    means = source.moments[index % 5, index // 5, ..., :2]
    np.testing.assert_allclose(image, (means - NUMBERS.mean) / NUMBERS.std * 0.5, rtol=1e-5, atol=1e-6)


def archive(path, files, labels=None):
  """Writes a zip as EDM2's encode command does."""
  with zipfile.ZipFile(path, "w") as written:
    for name, array in files.items():
      data = io.BytesIO()
      np.save(data, array)
      written.writestr(name, data.getvalue())
    if labels:
      written.writestr("dataset.json", json.dumps({"labels": labels}))


def test_the_zips_of_edm2(tmp_path):
  """Channels come first there; labels are by name."""
  arrays = np.random.default_rng(0).normal(size=(3, 8, 4, 6)).astype(np.float32)
  files = {f"00000/img{i:08}.npy": array for i, array in enumerate(arrays)}
  archive(tmp_path / "a.zip", files, [[name, i * 2] for i, name in enumerate(files)])
  source = LatentFiles(str(tmp_path / "a.zip"), (4, 6, 4), 5)
  examples = source[np.array([2, 0])]
  assert examples["label"].tolist() == [4, 0] and len(source) == 3
  np.testing.assert_array_equal(examples["image"][:, 0], np.moveaxis(arrays[[2, 0]], 1, -1))
  numbers = of_edm2(4, 6)
  drawn = Loader(source, 0, False, numbers).examples(np.arange(3))["image"]
  assert drawn.shape == (3, 4, 6, 4) and numbers.image == (32, 48, 3)
  for shape, classes, message in (((4, 4, 4), 0, "config.data.resolution"), ((4, 6, 4), 4, "num_classes")):
    with pytest.raises(UserError, match=message):
      LatentFiles(str(tmp_path / "a.zip"), shape, classes)
  archive(tmp_path / "b.zip", files)
  with pytest.raises(UserError, match=r"no labels in a dataset\.json"):
    LatentFiles(str(tmp_path / "b.zip"), (4, 6, 4), 5)
  with zipfile.ZipFile(tmp_path / "c.zip", "w") as written:
    written.writestr("0.npy", b"no array")
  with pytest.raises(UserError, match=r"0\.npy"):
    LatentFiles(str(tmp_path / "c.zip"), (4, 6, 4), 0)


@pytest.fixture
def images(tmp_path):
  """A prepared data set of 300 images of 8x12 pixels, of 2 classes."""
  random = np.random.default_rng(0)
  for index in range(300):
    directory = tmp_path / "images" / "ab"[index % 2]
    directory.mkdir(parents=True, exist_ok=True)
    Image.fromarray(random.integers(0, 256, (8, 12, 3), np.uint8)).save(directory / f"{index:03}.png")
  files = ImageFiles(tmp_path / "images")
  prepare_images(files, "images", tmp_path / "data", (8, 12), Decoder(3), True, 1, False)
  return np.stack([np.asarray(Image.open(tmp_path / "images" / name)) for name in files.names])


def encode(images):
  """Stands in for an encoder: means of 4x4 pixels, and 1."""
  count, height, width, channels = images.shape
  means = images.reshape(count, height // 4, 4, width // 4, 4, channels).mean(axis=(2, 4)) / 8
  return np.concatenate([means, np.ones_like(means)], axis=-1)


def prepare(tmp_path, encode=encode, weights="w", mirrored=True, name="encoded"):
  return prepare_latents("images", name, tmp_path / "data", None, "crop_resize", encode, mirrored, 32, weights)


def test_a_prepared_data_set_of_latents(tmp_path, images):
  prepared = prepare(tmp_path)
  source = LatentSource("encoded", "train", str(tmp_path / "data"), (2, 3, 3), 2, "label")
  examples = source[np.arange(300)]
  assert prepared.images == len(source) == 300 and source.classes == ("a", "b")
  assert examples["label"].tolist() == [0] * 150 + [1] * 150
  for version, expected in enumerate((images, images[:, :, ::-1])):
    np.testing.assert_allclose(examples["image"][:, version], encode(expected), rtol=1e-3)
  numbers = read_numbers("encoded", str(tmp_path / "data"))
  assert numbers == Numbers(*measured(source), (-1.0, 1.0), (8, 12, 3), "w")
  both = np.concatenate([encode(images), encode(images[:, :, ::-1])])[..., :3].reshape(-1, 3)
  np.testing.assert_allclose(numbers.mean, both.mean(axis=0), rtol=1e-3)
  np.testing.assert_allclose(numbers.std, np.sqrt(both.var(axis=0) + 1), rtol=1e-3)
  assert prepare(tmp_path) == prepared
  with pytest.raises(UserError, match="another data set"):
    prepare(tmp_path, weights="other")


def test_images_are_brought_to_another_size(tmp_path, images):
  prepare_latents("images", "padded", tmp_path / "data", (12, 16), "pad", encode, False, 32, "w")
  source = LatentSource("padded", "train", str(tmp_path / "data"), (3, 4, 3), 2, "label")
  padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
  np.testing.assert_allclose(source[np.arange(300)]["image"][:, 0], encode(padded), rtol=1e-3)
  assert read_numbers("padded", str(tmp_path / "data")).image == (12, 16, 3)


def test_an_interrupted_encoding_continues(tmp_path, images, monkeypatch):
  """After whole shards, and before the numbers are measured."""
  encoded = []

  def until(limit):
    def counted(images):
      encoded.append(len(images))
      if len(encoded) > limit:
        raise KeyboardInterrupt
      return encode(images)

    return counted

  with pytest.raises(KeyboardInterrupt):
    prepare(tmp_path, until(9), mirrored=False)
  assert not (tmp_path / "data" / "encoded" / "1.0.0").exists()
  del encoded[:]
  monkeypatch.setattr(latents, "measured", lambda source: (_ for _ in ()).throw(KeyboardInterrupt))
  with pytest.raises(KeyboardInterrupt):
    prepare(tmp_path, until(10), mirrored=False)
  assert len(encoded) == 3  # to know the shape, and the second shard's 44 images
  with pytest.raises(UserError, match="run the same command again"):
    read_numbers("encoded", str(tmp_path / "data"))
  monkeypatch.undo()
  prepare(tmp_path, mirrored=False)
  prepare(tmp_path, mirrored=False, name="at_once")
  for name in ("encoded", "at_once"):
    source = LatentSource(name, "train", str(tmp_path / "data"), (2, 3, 3), 2, "label")
    np.testing.assert_allclose(source[np.arange(300)]["image"][:, 0], encode(images), rtol=1e-3)
  assert read_numbers("encoded", str(tmp_path / "data")) == read_numbers("at_once", str(tmp_path / "data"))


def test_errors(tmp_path, images):
  prepare(tmp_path)
  for name, shape, message in (("images", (2, 3, 3), "has images, not latents"), ("encoded", (2, 3, 4), "3 channels")):
    with pytest.raises(UserError, match=message):
      LatentSource(name, "train", str(tmp_path / "data"), shape, 0, "label")
  with pytest.raises(UserError, match=r"latents\.json is missing"):
    read_numbers("images", str(tmp_path / "data"))
  with pytest.raises(UserError, match="images of one size"):
    prepare_latents("encoded", "twice", tmp_path / "data", None, "pad", encode, False, 32, "w")
  record = next((tmp_path / "data" / "images" / "1.0.0").glob("*array_record*"))
  record.write_bytes(b"\0" * record.stat().st_size)
  with pytest.raises((UserError, CorruptImage)):
    prepare(tmp_path, name="damaged")
