"""VGG16 against PyTorch's own layers, with random weights under the published names."""

import zlib

import jax
import numpy as np
import pytest
from helpers.golden_cases import GOLDEN

from r3gan_jax.interop.weights import VGG16
from r3gan_jax.metrics import vgg

CONVOLUTIONS = {
  0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256), 12: (256, 256), 14: (256, 256),
  17: (256, 512), 19: (512, 512), 21: (512, 512), 24: (512, 512), 26: (512, 512), 28: (512, 512),
}  # fmt: skip
"""torchvision's `features`: index -> channels in, out. A ReLU follows each; 2x2 max pools are at `POOLS`."""
POOLS = (4, 9, 16, 23, 30)


@pytest.fixture(scope="module")
def state():
  shapes = {f"features.{index}": (out, channels, 3, 3) for index, (channels, out) in CONVOLUTIONS.items()}
  shapes |= {"classifier.0": (4096, 512 * 7 * 7), "classifier.3": (4096, 4096)}
  state = {}
  for name, shape in shapes.items():
    state[f"{name}.weight"] = made_up(f"{name}.weight", shape) * np.float32(np.sqrt(2 / np.prod(shape[1:])))
    state[f"{name}.bias"] = made_up(f"{name}.bias", shape[:1]) * np.float32(0.1)
  return state


def made_up(name, shape):
  """Returns normal numbers, repeated with a period that divides no layer: drawing 134 million would take seconds."""
  return np.resize(np.random.default_rng(zlib.crc32(name.encode())).standard_normal(10007).astype(np.float32), shape)


@pytest.fixture(scope="module")
def images():
  return np.random.default_rng(0).integers(0, 256, (2, 20, 24, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def features(state, images):
  network = vgg.feature_network(VGG16.convert(state, vgg.abstract_params(), "random"))
  assert network.resize == "pytorch"
  return np.asarray(jax.jit(network.apply)(network.params, images)["features"])


def test_as_recorded(features):
  """Every 16th of the 4096 features was recorded by `torch_features` below with PyTorch 2.13."""
  recorded = np.load(GOLDEN / "vgg16_made_up.npy")
  assert features.shape == (2, 4096) and features.min() == 0
  np.testing.assert_allclose(features[:, ::16], recorded, rtol=1e-3, atol=1e-4 * recorded.max())


def test_as_torch_computes_it(state, images, features):
  torch = pytest.importorskip("torch")
  expected = torch_features(torch, {name: torch.tensor(value) for name, value in state.items()}, images)
  np.testing.assert_allclose(features, expected, rtol=1e-3, atol=1e-4 * expected.max())


def torch_features(torch, state, images):
  functional = torch.nn.functional
  x = torch.tensor(np.moveaxis(images, -1, 1)).float() / 255
  x = functional.interpolate(x, (224, 224), mode="bilinear", align_corners=False)
  x = (x - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[:, None, None]
  for index in range(31):
    if index in CONVOLUTIONS:
      x = functional.conv2d(x, state[f"features.{index}.weight"], state[f"features.{index}.bias"], padding=1).relu()
    elif index in POOLS:
      x = functional.max_pool2d(x, 2)
  x = x.flatten(1)
  for layer in ("classifier.0", "classifier.3"):
    x = functional.linear(x, state[f"{layer}.weight"], state[f"{layer}.bias"]).relu()
  return x.numpy()
