"""Every recipe against SPEC section 3."""

import importlib
import math
import re

import jax
import pytest

from benchmarks import tpu
from r3gan_jax import factory

# preset, variant: G and D parameters in millions, batch, images, burn-in, gamma, half-life, augmentation, x-flip
PRESETS = {
  ("stacked_mnist", ""): (20.73, 20.68, 512, 10e6, 2e6, (1, 0.1), 0.5e6, 0, False),
  ("cifar10", ""): (20.78, 21.28, 512, 250e6, 20e6, (0.05, 0.005), 5e6, 0.55, True),
  ("cifar10", "unconditional"): (20.73, 20.68, 512, 250e6, 20e6, (0.05, 0.005), 5e6, 0.55, True),
  ("ffhq64", ""): (22.43, 22.38, 256, 100e6, 20e6, (2, 0.2), 0.5e6, 0.3, True),
  ("ffhq256", ""): (23.06, 23.01, 256, 200e6, 20e6, (150, 15), 0.5e6, 0.3, True),
  ("imagenet32", ""): (82.91, 86.55, 4096, 1000e6, 200e6, (0.5, 0.05), 50e6, 0.5, True),
  ("imagenet64", ""): (103.57, 107.21, 4096, 1000e6, 200e6, (1, 0.1), 50e6, 0.4, True),
}


def recipe(name, variant=""):
  return importlib.import_module(f"configs.{name}").get_config(variant)


@pytest.mark.parametrize("name, variant", PRESETS)
def test_presets(name, variant):
  config = recipe(name, variant)
  generator, discriminator, batch, total, burn_in, gamma, half_life, augment_p, x_flip = PRESETS[name, variant]
  params, _ = jax.eval_shape(lambda: factory.build_algorithm(config).init(jax.random.key(0)))
  for network, millions in (("generator", generator), ("discriminator", discriminator)):
    assert round(sum(leaf.size for leaf in jax.tree.leaves(params[network])) / 1e6, 2) == millions
  assert (config.batch_size, config.run.total_images, config.burn_in_images) == (batch, total, burn_in)
  assert config.gamma == gamma and config.ema_half_life == (0, half_life) and config.augment_p == (0, augment_p)
  assert config.learning_rate == ((2e-4, 2e-4) if name == "stacked_mnist" else (2e-4, 5e-5))
  assert config.beta2 == (0.9, 0.99) and config.data.x_flip == x_flip
  network = config.network
  assert set(network.blocks) == {2} and network.expansion == 2 and network.noise_dim == 64
  assert network.bfloat16_stages == (3 if config.data.resolution == 32 else 4)
  experiment = factory.build_experiment(config, device_count=8)
  assert experiment.batch_sizes == (batch, batch) and experiment.images_per_iteration == batch


def test_configuration_a():
  """SPEC section 6, to the published digits; every variant can be built."""
  for variant in ("", "smoke", "fashion32"):
    config = recipe("roadmap.a", variant)
    algorithm = factory.build_experiment(config, device_count=1).algorithm
    params, carry = jax.eval_shape(lambda algorithm=algorithm: algorithm.init(jax.random.key(0)))
    assert carry["w"].shape == (config.network.noise_dim,)
    counts = [sum(leaf.size for leaf in jax.tree.leaves(params[name])) for name in ("generator", "discriminator")]
    if not variant:
      assert [f"{count / 1e6:.3f}" for count in counts] == ["24.767", "24.001"]


@pytest.mark.parametrize("name, variant", PRESETS)
def test_presets_recommend_a_slice(name, variant):
  assert f"{name}:{variant}".strip(":") in tpu.PRESETS
  chip, _, shape = tpu.recommended_topology(f"{name}:{variant}").partition(":")
  chips = math.prod(map(int, shape.split("x")))
  assert chip == "v5e", "other chips have other names for their slices"
  images = recipe(name, variant).batch_size // chips
  docstring = importlib.import_module(f"configs.{name}").__doc__
  assert re.search(rf"^TPU: v5litepod-{chips}, {chip}:{shape}, {images} images a chip:", docstring, re.MULTILINE)


def test_bfloat16_is_off_on_cpus_and_on_elsewhere():
  config = recipe("cifar10")
  stages = {
    platform: factory.build_algorithm(config, platform).generator.bfloat16_stages for platform in ("cpu", "gpu", "tpu")
  }
  assert stages == {"cpu": 0, "gpu": 3, "tpu": 3}


def test_recipes_are_locked():
  with pytest.raises(AttributeError):
    recipe("cifar10").batchsize = 3
