"""The conventions of resizing against other implementations."""

import jax
import numpy as np
import pytest
from helpers import feature_networks

from r3gan_jax.metrics.features import as_rgb, pixels, resize

SIZES = [((8, 8), 29), ((32, 48), 29), ((29, 29), 29), ((1, 3), 29)]


@pytest.fixture
def images(request):
  return np.random.default_rng(0).integers(0, 256, (2, *request.param, 3), dtype=np.uint8)


def ours(images, side, convention):
  return np.asarray(jax.jit(resize, static_argnums=(1, 2))(images, side, convention))


@pytest.mark.parametrize("images, side", SIZES, indirect=["images"])
def test_pytorch(images, side):
  made = jax.image.resize(images.astype(np.float32), (2, side, side, 3), "bilinear", antialias=False)
  np.testing.assert_allclose(ours(images, side, "pytorch"), made, atol=2e-3)


@pytest.mark.parametrize("images, side", SIZES, indirect=["images"])
def test_tensorflow(images, side):
  """Interpolated along one axis after the other."""
  made = images.astype(np.float64)
  for axis in (1, 2):
    size = made.shape[axis]
    at = np.arange(side) * size / side
    made = np.apply_along_axis(lambda line, at=at, size=size: np.interp(at, np.arange(size), line), axis, made)
  np.testing.assert_allclose(ours(images, side, "tensorflow"), made, atol=1e-3)


@pytest.mark.parametrize("images, side", SIZES, indirect=["images"])
def test_both_as_torch_computes_them(images, side):
  """ "tensorflow" as in NVIDIA's graph: a sampling grid, shifted by half a pixel of each size."""
  torch = pytest.importorskip("torch")
  nchw = torch.tensor(np.moveaxis(images, -1, 1)).float()
  half_pixel = torch.nn.functional.interpolate(nchw, (side, side), mode="bilinear", align_corners=False)
  np.testing.assert_allclose(ours(images, side, "pytorch"), np.moveaxis(half_pixel.numpy(), 1, -1), atol=2e-3)

  height, width = images.shape[1:3]
  theta = torch.tensor([[1, 0, 1 / width - 1 / side], [0, 1, 1 / height - 1 / side]]).expand(2, 2, 3)
  grid = torch.nn.functional.affine_grid(theta, (2, 3, side, side), align_corners=False)
  sampled = torch.nn.functional.grid_sample(nchw, grid, "bilinear", padding_mode="border", align_corners=False)
  np.testing.assert_allclose(ours(images, side, "tensorflow"), np.moveaxis(sampled.numpy(), 1, -1), atol=2e-2)


@pytest.mark.parametrize("convention, tolerance", [("clean", 1e-4), ("bicubic", 5e-3)])
@pytest.mark.parametrize("name", feature_networks.RESIZED)
def test_golden_cubic(name, convention, tolerance):
  """clean-fid's resize, which is Pillow's, and EDM2's before DINOv2, which is torch's, with weights in float32."""
  with np.load(feature_networks.GOLDEN) as golden:
    recorded = golden[f"{convention}/{name}"]
  image = feature_networks.random_images(name, *feature_networks.RESIZED[name])
  every = slice(None, None, feature_networks.EVERY)
  made = ours(image[None], feature_networks.SIDE, convention)[0, every, every]
  np.testing.assert_allclose(made, recorded, atol=tolerance)


def test_grey_becomes_rgb():
  grey = np.arange(4, dtype=np.uint8).reshape(1, 2, 2, 1)
  np.testing.assert_array_equal(as_rgb(grey), grey.repeat(3, -1))
  premultiplied = np.array([[[[0, 0, 0, 0], [50, 100, 0, 100], [1, 2, 3, 255]]]], np.uint8)
  np.testing.assert_array_equal(as_rgb(premultiplied), [[[[255] * 3, [205, 255, 155], [1, 2, 3]]]])
  with pytest.raises(ValueError, match="broadcast"):
    as_rgb(np.zeros((1, 2, 2, 2), np.uint8))


def test_pixels():
  images = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
  network = pixels()
  features = np.asarray(jax.jit(network.apply)(network.params, images)["features"])
  np.testing.assert_allclose(features, np.arange(24).reshape(2, 12) / 255, rtol=1e-6)
