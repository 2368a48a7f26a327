"""MSG-GAN: images of all resolutions, losses by hand, and its optimisers."""

import dataclasses
import re
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import golden_cases
from helpers.meshes import mesh_of
from helpers.zoo import data

from r3gan_jax.algorithms import msggan
from r3gan_jax.algorithms.capabilities import HasPictures
from r3gan_jax.algorithms.images import Images
from r3gan_jax.errors import UserError
from r3gan_jax.training.step import global_gradients

BATCH = 16
IMAGES = Images(16, 16, 1, 0)
SETTINGS = msggan.Settings(widths=(8, 8, 8), noise_dim=8, stddev_group=2)
ALGORITHM = msggan.build(SETTINGS, IMAGES, "cpu")
LOGISTIC = msggan.build(dataclasses.replace(SETTINGS, loss="logistic"), IMAGES, "cpu")
KEYS = jax.random.split(jax.random.key(1), BATCH)


@cache
def start():
  return jax.jit(lambda: ALGORITHM.init(jax.random.key(0))[0])()


def all_phases(algorithm=ALGORITHM, devices=1, micro_batch=None):
  """Returns (gradients by network, metrics) of both phases, for random images."""
  found, metrics, batch = {}, {}, data(ALGORITHM, BATCH)
  phases = [(phase, global_gradients(phase, mesh_of(devices), micro_batch)) for phase in algorithm.phases]
  results = jax.device_get(jax.jit(lambda params: [of(params, {}, batch, KEYS, {}) for _, of in phases])(start()))
  for (phase, _), (gradients, _, measured) in zip(phases, results, strict=True):
    found |= gradients
    metrics |= {f"{phase.name}/{name}": value for name, value in measured.items()}
  return found, metrics


@pytest.fixture(scope="module")
def whole():
  return all_phases()


def halved(images):
  samples, side, _, channels = images.shape
  return images.reshape(samples, side // 2, 2, side // 2, 2, channels).mean(axis=(2, 4))


def reals():
  images = data(ALGORITHM, BATCH)["image"] / np.float32(127.5) - 1
  return [halved(halved(images)), halved(images), images]


def fakes(keys):
  return jax.jit(ALGORITHM.generator.apply)({"params": start()["generator"]}, ALGORITHM.noise(keys))


@jax.jit
def judgement(params, images):
  def total(images):
    logits = ALGORITHM.discriminator.apply({"params": params}, images)
    return jnp.sum(logits), logits

  gradients, logits = jax.grad(total, has_aux=True)(images)
  return logits, [jnp.sum(jnp.square(gradient), axis=(1, 2, 3)) for gradient in gradients]


def judged(images):
  """Returns (logits, squared norms of the gradient of their sum at each resolution)."""
  return judgement(start()["discriminator"], images)


def test_losses_by_hand(whole):
  """Penalties are means over resolutions; one e mixes all images of a sample."""
  z_keys, e_keys = jnp.moveaxis(jax.vmap(jax.random.split)(KEYS), 1, 0)
  real, fake = reals(), fakes(z_keys)
  (a, squares), (b, _), (of_generator, _) = map(judged, (real, fake, fakes(KEYS)))
  e = np.asarray(jax.vmap(lambda key: jax.random.uniform(key, (1, 1, 1)))(e_keys))
  _, of_mixed = judged([e * x + (1 - e) * y for x, y in zip(real, fake, strict=True)])
  expected = np.mean(b - a + 0.001 * np.square(a)) + 10 * np.mean(np.square(np.sqrt(of_mixed) - 1))
  np.testing.assert_allclose(whole[1]["discriminator/loss"], expected, rtol=1e-4)
  np.testing.assert_allclose(whole[1]["generator/loss"], -np.mean(of_generator), rtol=1e-4, atol=1e-5)
  _, metrics = all_phases(LOGISTIC)
  expected = np.mean(np.logaddexp(0, -a) + np.logaddexp(0, b)) + 5 * np.mean(squares)
  np.testing.assert_allclose(metrics["discriminator/loss"], expected, rtol=1e-4)
  np.testing.assert_allclose(metrics["generator/loss"], np.mean(np.logaddexp(0, -of_generator)), rtol=1e-4)


def test_every_layer_learns_from_the_first_iteration(whole):
  for layers in whole[0].values():
    for leaf in jax.tree.leaves(layers):
      assert leaf.any()


def test_micro_batches_add_up(whole):
  gradients, metrics = all_phases(ALGORITHM, devices=2, micro_batch=4)
  assert golden_cases.relative_errors(gradients, whole[0])["all"] < 1e-4
  np.testing.assert_allclose(*([m[name] for name in sorted(m)] for m in (metrics, whole[1])), rtol=1e-3, atol=1e-5)


def test_samples_and_pictures():
  """The finest image, and all of them side by side."""
  assert isinstance(ALGORITHM, HasPictures)
  four, eight, sixteen = fakes(jax.random.split(jax.random.key(0), 4))
  noise = ALGORITHM.noise(jax.random.split(jax.random.key(0), 4))
  np.testing.assert_allclose(ALGORITHM.generate({**start()}, {}, noise, None), sixteen, atol=1e-5)
  pictures = jax.jit(ALGORITHM.pictures)(start(), {}, jnp.zeros((4, 16, 16, 1)))["samples_by_resolution"]
  expected = [np.kron(four, np.ones((1, 4, 4, 1))), np.kron(eight, np.ones((1, 2, 2, 1))), sixteen]
  np.testing.assert_allclose(pictures, np.concatenate(expected, axis=2), atol=1e-5)
  none = np.asarray(ALGORITHM.generate(start(), {}, noise, None, 0.0))
  np.testing.assert_allclose(none, np.broadcast_to(none[:1], none.shape), atol=1e-5)


@pytest.mark.parametrize("optimizer, first", [("adam", 1.0), ("rmsprop", 10.0)])
def test_optimisers(optimizer, first):
  """The first step is the rate times the sign; RMSprop, which does not correct its mean, divides by sqrt(0.01)."""
  algorithm = msggan.build(dataclasses.replace(SETTINGS, optimizer=optimizer), IMAGES, "cpu")
  params = {"w": jnp.zeros(1)}
  for of_network in algorithm.optimizers.values():
    updates, _ = of_network.update(
      {"w": jnp.array([3.0])}, of_network.init(params), params, hyperparameters={"learning_rate": jnp.float32(0.003)}
    )
    np.testing.assert_allclose(updates["w"], [-0.003 * first], rtol=1e-4)


@pytest.mark.parametrize(
  "side, changes, wrong",
  [
    (24, {}, "config.data.resolution = 24: the networks need 4 times a power of 2"),
    (16, {"widths": (8, 8)}, "config.gan.widths = (8, 8) has 2 entries"),
    (16, {"widths": (8, 8, 1), "combine": "lin_cat"}, "config.gan.widths = (8, 8, 1): 'lin_cat' takes halves"),
  ],
)
def test_images_that_do_not_fit_are_refused(side, changes, wrong):
  with pytest.raises(UserError, match=re.escape(wrong)):
    msggan.build(dataclasses.replace(SETTINGS, **changes), Images(side, side, 1, 0), "cpu")
