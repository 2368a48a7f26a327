"""What configs/images.py chooses for images of several kinds."""

import json

import numpy as np
import pytest
from PIL import Image

from configs import cifar10, ffhq64, ffhq256, imagenet32, imagenet64, images, stacked_mnist
from r3gan_jax import automatic, factory
from r3gan_jax.errors import UserError
from r3gan_jax.training.workdir import CONFIG_FILE

RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  """Where prepared images are kept."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write(directory, count, size, channels=3, dtype=np.uint8, suffix="png"):
  """Writes images of random pixels, of `size`, (height, width)."""
  directory.mkdir(parents=True, exist_ok=True)
  shape = size if channels == 1 else (*size, channels)
  for index in range(count):
    array = RANDOM.integers(0, np.iinfo(dtype).max, shape, dtype)
    Image.fromarray(array).save(directory / f"{index:03}_{size[0]}.{suffix}")


def chosen(path, workdir, variant="tiny", **given):
  config = images.get_config(variant)
  config.run.data_path = str(path)
  config.data.update(given)
  return automatic.completed(config, workdir)


def test_gamma_is_within_a_factor_of_6_of_every_preset():
  ratios = []
  for preset in (cifar10, imagenet32, stacked_mnist, ffhq64, imagenet64, ffhq256):
    config = preset.get_config()
    rule = automatic.gamma_rule(config.data.resolution, config.data.resolution)
    assert config.gan.gamma[0] == pytest.approx(10 * config.gan.gamma[1])
    ratios.append(config.gan.gamma[1] / rule)
  np.testing.assert_allclose(ratios, [1 / 6, 5 / 3, 10 / 3, 1, 0.5, 0.75], rtol=1e-6)
  assert automatic.gamma_rule(8, 8) == automatic.gamma_rule(32, 32)
  assert automatic.gamma_rule(32, 128) == automatic.gamma_rule(64, 64)


def test_mixed_photographs(tmp_path):
  """Nine of twelve reach 64 pixels, seven 128; a damaged file is left out; the rest by hand from the rules."""
  write(tmp_path / "photos", 7, (140, 150), suffix="jpg")
  write(tmp_path / "photos", 2, (70, 130), suffix="jpg")
  write(tmp_path / "photos", 3, (40, 40), channels=1)
  (tmp_path / "photos" / "bad.jpg").write_bytes(b"no image")
  config = chosen(tmp_path / "photos", tmp_path / "run")
  assert (config.data.resolution, config.data.width, config.data.channels, config.data.num_classes) == (64, 0, 3, 0)
  assert (config.gan.widths, config.gan.cardinalities) == ((64, 64, 32, 16, 16), (8, 8, 4, 2, 2))
  assert (config.gan.gamma, config.gan.augment_p, config.batch_size) == ((2.0, 0.2), (0.0, 0.7), 8)
  source = factory.build_source(config)
  assert len(source) == 12 and source[np.arange(2)]["image"].shape == (2, 64, 64, 3)
  config.run.on_corrupt_image = "stop"
  config.data.resolution = None
  with pytest.raises(UserError, match=r"bad\.jpg"):
    automatic.completed(config, tmp_path / "run")


@pytest.mark.parametrize(
  "size, options, expected",
  [
    ((24, 32), {"channels": 1}, {"resolution": 24, "width": 32, "channels": 1, "bits": 8}),
    ((40, 24), {"channels": 4}, {"resolution": 40, "width": 24, "channels": 4, "bits": 8}),
    ((16, 16), {"channels": 1, "dtype": np.uint16}, {"resolution": 16, "width": 0, "channels": 1, "bits": 16}),
    ((50, 70), {}, {"resolution": 32, "width": 0, "channels": 3}),
  ],
)
def test_images_of_one_kind(tmp_path, size, options, expected):
  write(tmp_path / "images", 8, size, **options)
  config = chosen(tmp_path / "images", tmp_path / "run")
  assert {name: config.data[name] for name in expected} == expected
  experiment = factory.build_experiment(config, 1)
  height, width, channels = experiment.algorithm.image_shape
  image = factory.build_source(config)[np.arange(1)]["image"]
  assert image.shape == (1, height, width, channels)
  assert image.dtype == options.get("dtype", np.uint8)


def test_directories_are_classes(tmp_path):
  for name in ("cat", "dog", "fish"):
    write(tmp_path / "animals" / name, 4, (32, 32))
  config = chosen(tmp_path / "animals", tmp_path / "run")
  assert config.data.num_classes == 3
  source = factory.build_source(config)
  assert (
    source.classes == ("cat", "dog", "fish") and sorted(source[np.arange(12)]["label"]) == [0] * 4 + [1] * 4 + [2] * 4
  )
  assert chosen(tmp_path / "animals", tmp_path / "run", num_classes=0).data.num_classes == 0


def test_choices_can_be_given_and_are_kept(tmp_path):
  write(tmp_path / "images", 8, (70, 70))
  config = chosen(tmp_path / "images", tmp_path / "run", resolution=16)
  assert config.data.resolution == 16 and len(config.gan.widths) == 3
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / CONFIG_FILE).write_text(json.dumps(factory.checked(config.to_dict())))
  write(tmp_path / "images", 40, (200, 200))
  assert factory.checked(chosen(tmp_path / "images", tmp_path / "run").to_dict()) == factory.checked(config.to_dict())
  assert chosen(tmp_path / "images", tmp_path / "other").data.resolution == 128


def test_sizes_of_networks():
  paper = ffhq256.get_config().gan.widths
  config = images.get_config("paper")
  config.data.update({"resolution": 256, "channels": 3, "bits": 8, "num_classes": 0, "width": 0})
  found = automatic.Found(70_000, [(256, 256)], 3, 8, 0, "")
  config.unlock()
  automatic._choose(config, found)
  assert config.gan.widths == paper and config.batch_size == 256 and config.gan.augment_p == (0.0, 0.3)


def test_the_name_has_the_size(tmp_path):
  write(tmp_path / "images", 1, (8, 8))
  config = images.get_config()
  config.run.data_path, config.name = str(tmp_path / "images"), "pets"
  with pytest.raises(UserError, match=r"config\.name = 'pets'"):
    automatic.completed(config)


def test_a_resumed_run_needs_the_path_too(tmp_path):
  """It does not take the images of the current directory."""
  write(tmp_path / "images", 4, (8, 8))
  config = chosen(tmp_path / "images", tmp_path / "run")
  config.run.data_path = ""
  with pytest.raises(UserError, match=r"config\.run\.data_path is empty"):
    factory.build_source(config)


def test_a_path_is_needed(tmp_path):
  with pytest.raises(UserError, match=r"config\.run\.data_path is empty"):
    chosen("", tmp_path)


def test_smoke_needs_no_images():
  assert factory.build_experiment(automatic.completed(images.get_config("smoke")), 1).total_images == 64
