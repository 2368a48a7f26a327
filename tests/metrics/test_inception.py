"""Inception against numbers recorded from its port to PyTorch, with random weights (tests/golden)."""

import json
import zlib

import flax.linen as nn
import jax
import numpy as np
import pytest
from helpers.golden_cases import GOLDEN

from r3gan_jax.interop.weights import INCEPTION
from r3gan_jax.metrics import inception


@pytest.fixture(scope="module")
def golden():
  with np.load(GOLDEN / "inception_pytorch_fid.npz") as file:
    return dict(file)


@pytest.fixture(scope="module")
def params(golden, tmp_path_factory):
  path = tmp_path_factory.mktemp("weights") / "inception.npz"
  np.savez(path, **{name: made_up(name, shape) for name, shape in json.loads(str(golden["state_dict_names"]))})
  return INCEPTION.params(inception.abstract_params(), path)


def made_up(name, shape):
  """Returns the golden case's random weight of this name."""
  random = np.random.default_rng(zlib.crc32(name.encode()))
  if name.endswith("num_batches_tracked"):
    return np.zeros(shape, np.int64)
  if name.endswith("running_var"):
    values = random.uniform(0.5, 1.5, shape)
  elif name.endswith(("running_mean", "bias")):
    values = 0.1 * random.standard_normal(shape)
  elif name.endswith("bn.weight"):
    values = random.uniform(0.8, 1.2, shape)
  else:
    values = random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
  return values.astype(np.float32)


def relative_error(actual, expected):
  return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


@pytest.mark.card
def test_golden_features_and_logits(golden, params):
  @jax.jit
  def run(params, images):
    x = inception.preprocess(images, "pytorch")
    (pool3, logits), state = inception.Inception().apply({"params": params}, x, capture_intermediates=True)
    names = ("Conv2d_2b_3x3", "Conv2d_4a_3x3", "Mixed_6e")
    inside = {name: state["intermediates"][name]["__call__"][-1] for name in names}
    for name in ("Conv2d_2b_3x3", "Conv2d_4a_3x3"):
      inside[name] = nn.max_pool(inside[name], (3, 3), (2, 2))
    return pool3, logits, [value.mean((1, 2)) for value in inside.values()]

  pool3, logits, means = run(params, golden["images"])
  for block, mean in enumerate(means):
    assert relative_error(mean, golden[f"block{block}_mean"]) < 1e-4, block
  assert relative_error(pool3, golden["pool3"]) < 1e-4
  assert relative_error(logits, golden["logits"]) < 1e-4


def test_the_feature_network_omits_the_bias_and_accepts_grey_images(golden, params):
  network = inception.feature_network(params, "pytorch")
  assert (network.name, network.resize) == ("inception-2015-12-05", "pytorch")
  grey = golden["images"][:2, ..., :1]
  both = np.concatenate([golden["images"][:1], grey.repeat(3, -1)[:1]])
  of_colour, of_grey = jax.jit(network.apply)(params, both), jax.jit(network.apply)(params, grey[:1])
  expected = golden["logits"][:1] - np.asarray(params["fc"]["bias"])
  assert relative_error(of_colour["logits_without_bias"][:1], expected) < 1e-4
  assert relative_error(of_colour["features"][:1], golden["pool3"][:1]) < 1e-4
  assert relative_error(of_grey["features"], of_colour["features"][1:]) < 1e-5


@pytest.mark.parametrize(
  "convention, black, white", [("pytorch", -1, 1), ("tensorflow", -1, 127 / 128), ("clean", -1, 127 / 128)]
)
def test_range_of_the_input(convention, black, white):
  images = np.stack([np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)])
  made = jax.jit(inception.preprocess, static_argnums=1)(images, convention)
  np.testing.assert_allclose(made[0], black, atol=1e-6)
  np.testing.assert_allclose(made[1], white, atol=1e-6)
  assert inception.feature_network({}).resize == "tensorflow"
