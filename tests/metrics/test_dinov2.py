"""DINOv2 against numbers recorded from its PyTorch code, with made-up weights under the published names."""

import jax
import numpy as np
import pytest
from helpers import feature_networks

from r3gan_jax.interop.weights import DINOV2
from r3gan_jax.metrics import dinov2

NETWORK = dinov2.DINOv2(feature_networks.WIDTH, feature_networks.DEPTH, feature_networks.HEADS)


@pytest.fixture(scope="module")
def params(tmp_path_factory):
  path = tmp_path_factory.mktemp("weights") / "dinov2.npz"
  np.savez(path, **feature_networks.dinov2_state())
  images = jax.ShapeDtypeStruct((1, dinov2.SIDE, dinov2.SIDE, 3), np.float32)
  return DINOV2.params(jax.eval_shape(NETWORK.init, jax.random.key(0), images)["params"], path)


@pytest.mark.card
def test_golden_features(params):
  features = jax.jit(lambda images: NETWORK.apply({"params": params}, dinov2.preprocess(images)))
  with np.load(feature_networks.GOLDEN) as golden:
    recorded = golden["dinov2"]
  made = features(feature_networks.random_images("dinov2", 3, 40, 64))
  np.testing.assert_allclose(made, recorded, atol=1e-5 * np.abs(recorded).max())


def test_the_published_network(params):
  """ViT-L/14 has 304,368,640 parameters, and the mask token, which the published file has besides and nothing uses."""
  abstract = dinov2.abstract_params()
  assert sum(leaf.size for leaf in jax.tree.leaves(abstract)) == 304_368_640 - 1024
  network = dinov2.feature_network({})
  assert (network.name, network.resize) == ("dinov2-vitl14", "bicubic")
  images = jax.ShapeDtypeStruct((5, 32, 48, 1), np.uint8)
  assert jax.eval_shape(network.apply, abstract, images)["features"].shape == (5, 1024)
