"""Perceptual path length against torch-fidelity's statistics, and against steps that are computed one by one."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import feature_networks
from helpers.meshes import mesh_of

from configs import roadmap, stacked_digits
from r3gan_jax import factory, perceptual_path_length
from r3gan_jax.errors import UserError
from r3gan_jax.interop.weights import LPIPS, VGG16
from r3gan_jax.metrics import lpips
from r3gan_jax.perceptual_path_length import EPSILON, PerceptualPathLength, trimmed
from r3gan_jax.training.state import averaged, init_state

STARTS, ENDS = np.arange(20), np.arange(20, 40)


@pytest.fixture(scope="module")
def weights():
  abstract = lpips.abstract_params()
  vgg16 = VGG16.convert(feature_networks.vgg16_state(), abstract.pop("vgg16"), "made up")
  return LPIPS.convert(feature_networks.lpips_state(), abstract, "made up") | {"vgg16": vgg16}


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
  """Of 16 paths on 8 devices, so that the last of 20 are in a batch that is padded."""
  monkeypatch.setattr(perceptual_path_length, "_BATCH_PER_DEVICE", 2)


def built(config):
  """Returns the algorithm, and networks whose samples differ more than at the start of training."""
  algorithm = factory.build_algorithm(config)
  params, carry = averaged(algorithm, jax.jit(lambda: init_state(algorithm, 0))())
  random = np.random.default_rng(0)
  return algorithm, (
    jax.tree.map(lambda leaf: leaf + 0.1 * random.standard_normal(leaf.shape, np.float32), params),
    carry,
  )


def smoke(name):
  """Returns a tiny recipe for images of 16 pixels."""
  config = (
    roadmap.get_config("a_smoke")
    if name == "roadmap"
    else importlib.import_module(f"configs.{name}").get_config("smoke")
  )
  stages = len(config.gan.widths) - int(np.log2(config.data.resolution // 16))
  config.data.resolution = 16
  config.gan.update(
    {name: config.gan[name][:stages] for name in ("widths", "cardinalities", "blocks") if name in config.gan}
  )
  return config


def noise_of(algorithm, seeds):
  return np.asarray(algorithm.noise(jax.vmap(jax.random.key)(seeds.astype(np.uint32))), np.float64)


def scores(weights, first, second):
  """Of steps between images in [-1, 1]; so few that none is left out."""
  rgb = [jnp.broadcast_to((images + 1) * 127.5, (*images.shape[:3], 3)) for images in (first, second)]
  found = np.asarray(jax.jit(lpips.LPIPS().apply)({"params": weights}, *rgb), np.float64) / EPSILON**2
  assert found.min() > 0
  return pytest.approx({"ppl": found.mean(), "ppl_std": found.std(), "ppl_num_paths": 20}, rel=0.02)


def test_golden_statistics():
  """The mean and deviation between the 1st and the 99th percentile, of `calculate_ppl`."""
  with np.load(feature_networks.GOLDEN) as golden:
    mean, std = golden["path_lengths"]
  found = trimmed(feature_networks.DISTANCES / EPSILON**2)
  assert found == {"ppl": pytest.approx(mean), "ppl_std": pytest.approx(std), "ppl_num_paths": 1234}


def test_steps_on_the_sphere(weights, monkeypatch):
  """With classes, which stay the same along a path; on 8 devices and on 1."""
  algorithm, networks = built(smoke("cifar10"))
  labels = np.arange(20) % algorithm.num_classes
  a, b = noise_of(algorithm, STARTS), noise_of(algorithm, ENDS)
  unit_a, unit_b = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (a, b))
  angle = np.arccos(np.sum(unit_a * unit_b, axis=1, keepdims=True))
  step = (np.sin((1 - EPSILON) * angle) * a + np.sin(EPSILON * angle) * b) / np.sin(angle)
  draw = jax.jit(algorithm.generate)
  expected = scores(weights, *(draw(*networks, z.astype(np.float32), labels) for z in (a, step)))
  paths = (*networks, STARTS, ENDS, labels)
  found = PerceptualPathLength(algorithm, weights)(*paths)
  assert found == expected
  monkeypatch.setattr(perceptual_path_length, "make_mesh", lambda devices: mesh_of(1))
  assert PerceptualPathLength(algorithm, weights)(*paths) == pytest.approx(found, rel=1e-3)


def test_straight_steps_where_noise_fills_a_box(weights):
  algorithm, networks = built(smoke("zoo.dcgan"))
  a, b = noise_of(algorithm, STARTS), noise_of(algorithm, ENDS)
  draw = jax.jit(lambda z: algorithm.generate(*networks, z, None))
  images = (draw(z.astype(np.float32)) for z in (a, a + EPSILON * (b - a)))
  assert PerceptualPathLength(algorithm, weights)(*networks, STARTS, ENDS, None) == scores(weights, *images)


@pytest.mark.parametrize("name", ["zoo.stylegan", "roadmap"])
def test_straight_steps_in_w(weights, name):
  """All layers have one w; the noise of layers is that of the start."""
  algorithm, networks = built(smoke(name))
  generator = networks[0]["generator"]
  starts, ends = (noise_of(algorithm, seeds).astype(np.float32) for seeds in (STARTS, ENDS))
  width = algorithm.mapping.width
  a, b = (jax.jit(algorithm.mapping.apply)({"params": generator["mapping"]}, z[:, :width]) for z in (starts, ends))
  draw = jax.jit(lambda w: algorithm.from_styles(*networks, w, starts))
  generated = jax.jit(lambda z: algorithm.generate(*networks, z, None))(starts)
  np.testing.assert_allclose(draw(a), generated, atol=1e-4)
  expected = scores(weights, draw(a), draw(a + EPSILON * (b - a)))
  assert PerceptualPathLength(algorithm, weights)(*networks, STARTS, ENDS, None) == expected


@pytest.mark.parametrize("name", ["cifar10", "roadmap"])
def test_generators_in_bfloat16_compute_in_float32(name):
  """Their rounding is larger than a step."""
  config = smoke(name)

  def generator(bfloat16, in_float32=False):
    config.gan.update({"bfloat16": bfloat16, "bfloat16_stages": 2})
    algorithm = factory.build_algorithm(config)
    algorithm = algorithm.in_float32() if in_float32 else algorithm
    return algorithm.synthesis if name == "roadmap" else algorithm.generator

  assert generator("on") != generator("off") == generator("on", in_float32=True)


def test_images_that_vgg16_cannot_halve(weights):
  algorithm = factory.build_algorithm(stacked_digits.get_config("smoke"))
  with pytest.raises(UserError, match="'ppl' needs images of at least 16x16, not 8x8"):
    PerceptualPathLength(algorithm, weights)
