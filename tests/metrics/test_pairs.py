"""PSNR and SSIM against scikit-image, and the scores of pairs of known quality."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.meshes import mesh_of

from r3gan_jax.errors import UserError
from r3gan_jax.metrics.feature_extractor import ImageSet
from r3gan_jax.metrics.features import FeatureNetwork
from r3gan_jax.metrics.image_quality import psnr, ssim
from r3gan_jax.metrics.pairs import Drawn, PairQuality


def waves():
  """A picture of waves, the same with noise, an even one, and the first upside down: uint8 [24, 20, 3]."""
  y, x = np.mgrid[:24, :20]
  picture = np.stack([127 + 100 * np.sin(x / 3 + c) * np.cos(y / 4) for c in range(3)], -1).round().astype(np.uint8)
  noise = np.random.default_rng(0).normal(0, 12, picture.shape)
  noisy = np.clip(picture + noise, 0, 255).round().astype(np.uint8)
  return picture, np.stack([noisy, np.full_like(picture, 200), picture[::-1]])


def test_they_are_those_of_scikit_image():
  """0.26: structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255)."""
  picture, others = waves()
  targets = np.stack([picture] * 3)
  similarities = [0.9174554185252676, 0.07293030808649721, 0.8109748820132411]
  np.testing.assert_allclose(jax.jit(ssim)(others, targets), similarities, atol=2e-6)
  ratios = [26.622557214971117, 9.234294952401438, 19.512224902405762]
  np.testing.assert_allclose(jax.jit(psnr)(others, targets), ratios, rtol=1e-6)


def test_of_equal_images():
  picture = waves()[0][None]
  np.testing.assert_allclose(ssim(picture, picture), [1], atol=1e-6)
  np.testing.assert_allclose(psnr(picture, picture), [10 * np.log10(255**2 * picture.size)], rtol=1e-6)


def test_ssim_needs_room_for_its_window():
  with pytest.raises(UserError, match="window of 11 pixels, but images are 12x10"):
    ssim(np.zeros((1, 10, 12, 1), np.uint8), np.zeros((1, 10, 12, 1), np.uint8))


def halves(params, images):
  """Features: the sums of the upper and the lower half."""
  del params
  sums = jnp.sum(images.astype(jnp.float32), axis=(2, 3))
  return {"features": jnp.stack([jnp.sum(sums[:, :6], axis=1), jnp.sum(sums[:, 6:], axis=1)], axis=-1)}


def drawn(networks, images, keys):
  """The first sample has a level too much, the second only the lower half; conditions are drawn from the keys."""
  bits = jax.vmap(lambda key: jax.random.bits(key, (4, 4, 1), jnp.uint8))(keys) % 128
  lower = images.at[:, :6].set(0)
  return Drawn(images, (images + networks, lower), lower, bits, bits + networks)


def quality(images, devices, seed=0):
  true = ImageSet("true", len(images), images.shape[1:], lambda indices: images[indices])
  network = FeatureNetwork("halves", halves, (), "none")
  return PairQuality(drawn, network, true, mesh_of(devices), batch_per_device=2, seed=seed)(jnp.uint8(2))


def test_scores_of_known_samples():
  """Halves are equal in all images: vectors (1, 1) and (0, 1) have the cosine 1 / sqrt(2)."""
  random = np.random.default_rng(0)
  half = random.integers(0, 250, (5, 6, 12, 1), np.uint8)
  images = np.concatenate([half, half], axis=1)
  scores = quality(images, 1)
  two_levels = 20 * np.log10(255 / 2)
  expected = {"psnr": two_levels, "consistency": two_levels, "feature_distance": 0, "diversity": 1 - 0.5**0.5}
  expected |= {"baseline_feature_distance": 1 - 0.5**0.5}
  assert scores.keys() == expected.keys() | {"ssim", "baseline_psnr", "baseline_ssim"}
  for name, value in expected.items():
    np.testing.assert_allclose(scores[name], value, atol=1e-5)
  mse = np.mean(np.square(half.astype(np.float64)), axis=(1, 2, 3)) / 2
  np.testing.assert_allclose(scores["baseline_psnr"], np.mean(10 * np.log10(255**2 / mse)), rtol=1e-5)
  assert scores["baseline_ssim"] < 0.9 < scores["ssim"]


def test_conditions_that_come_with_images_are_not_compared():
  """The images are the first channel of what is drawn from; no condition can be made of samples."""
  images = np.random.default_rng(0).integers(0, 255, (3, 12, 12, 2), np.uint8)

  def first_channel(networks, pairs, keys):
    true = pairs[..., :1]
    return Drawn(true, (true + networks, true), pairs[..., 1:], pairs[..., 1:], None)

  true = ImageSet("true", 3, images.shape[1:], lambda indices: images[indices])
  network = FeatureNetwork("halves", halves, (), "none")
  scores = PairQuality(first_channel, network, true, mesh_of(1), batch_per_device=2)(jnp.uint8(1))
  assert "consistency" not in scores
  np.testing.assert_allclose(scores["psnr"], 20 * np.log10(255), rtol=1e-6)
  mse = np.mean(np.square(np.diff(images.astype(np.float64))), axis=(1, 2, 3))
  np.testing.assert_allclose(scores["baseline_psnr"], np.mean(10 * np.log10(255**2 / mse)), rtol=1e-5)


def by_keys(networks, images, keys):
  noise = jax.vmap(lambda key: jax.random.bits(key, (12, 12, 1), jnp.uint8))(keys)
  return Drawn(images, (noise, images), noise, noise, noise)


def test_draws_depend_on_the_seed_and_the_image_alone():
  images = np.random.default_rng(1).integers(0, 256, (10, 12, 12, 1), np.uint8)
  network = FeatureNetwork("halves", halves, (), "none")

  def scored(images, devices, seed=0):
    true = ImageSet("true", len(images), images.shape[1:], lambda indices: images[indices])
    return PairQuality(by_keys, network, true, mesh_of(devices), 2, seed)(())["psnr"]

  reference = scored(images, 1)
  np.testing.assert_allclose([scored(images, 8), scored(images[::-1], 1)], reference, rtol=1e-6)
  assert abs(scored(images, 1, seed=1) - reference) > 1e-3
