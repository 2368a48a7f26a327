"""ProGAN: growth, losses by hand, and optimisers that forget."""

import dataclasses
import re
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.meshes import mesh_of
from helpers.zoo import data

from r3gan_jax.algorithms import progan
from r3gan_jax.algorithms.capabilities import HasPictures
from r3gan_jax.algorithms.images import Images
from r3gan_jax.errors import UserError
from r3gan_jax.training.step import global_gradients

BATCH = 8
IMAGES = Images(16, 16, 1, 0)
SETTINGS = progan.Settings(widths=(8, 8, 8), noise_dim=8, penalty_norm=1.0, hold_images=40, ramp_images=40)
ALGORITHM = progan.build(SETTINGS, IMAGES, "cpu")
LOGISTIC = progan.build(dataclasses.replace(SETTINGS, loss="logistic"), IMAGES, "cpu")
KEYS = jax.random.split(jax.random.key(1), BATCH)


@cache
def start():
  return jax.jit(lambda: ALGORITHM.init(jax.random.key(0)))()


@cache
def all_gradients(algorithm=ALGORITHM):
  """Returns (params, batch, lod) -> (gradients by network, carry, metrics), of all phases at the same parameters."""
  phases = [(phase, global_gradients(phase, mesh_of(1), None)) for phase in algorithm.phases]

  @jax.jit
  def gradients(params, batch, lod):
    found, metrics, carry = {}, {}, {"lod": jnp.float32(0)}
    for phase, gradients_of in phases:
      gradients, carry, measured = gradients_of(params, carry, batch, KEYS, {"lod": lod})
      found |= gradients
      metrics |= {f"{phase.name}/{name}": value for name, value in measured.items()}
    return found, carry, metrics

  return lambda params, batch, lod: jax.device_get(gradients(params, batch, jnp.float32(lod)))


def enlarged(images):
  return np.repeat(np.repeat(images, 2, axis=1), 2, axis=2)


def halved(images):
  samples, side, _, channels = images.shape
  return images.reshape(samples, side // 2, 2, side // 2, 2, channels).mean(axis=(2, 4))


def faded(images, lod):
  """By hand, of images of 4x4, 8x8 and 16x16, for a few values of `lod`."""
  four, eight, sixteen = map(np.asarray, images)
  return {
    0.0: sixteen,
    0.25: 0.75 * sixteen + 0.25 * enlarged(eight),
    1.0: enlarged(eight),
    1.5: enlarged(0.5 * eight + 0.5 * enlarged(four)),
    2.0: enlarged(enlarged(four)),
  }[lod]


def of_data(batch):
  sixteen = batch["image"].astype(np.float32) / 127.5 - 1
  return halved(halved(sixteen)), halved(sixteen), sixteen


@jax.jit
def images_of(generator, z):
  return ALGORITHM.generator.apply({"params": generator}, z)


@jax.jit
def judged(discriminator, images, lod):
  """Returns (logits, the squared norm of the gradient of their sum with respect to each image)."""

  def total(images):
    logits = ALGORITHM.discriminator.apply({"params": discriminator}, images, lod)
    return jnp.sum(logits), logits

  gradient, logits = jax.grad(total, has_aux=True)(images)
  return logits, jnp.sum(jnp.square(gradient), axis=(1, 2, 3))


@pytest.mark.parametrize("lod", [0.0, 0.25, 1.5, 2.0])
@pytest.mark.parametrize("algorithm", [ALGORITHM, LOGISTIC], ids=["wgan_gp", "logistic"])
def test_losses_by_hand(algorithm, lod):
  """Reals are faded as fakes are, and D has as many stages as G."""
  params, batch = start()[0], data(ALGORITHM, BATCH)
  _, carry, metrics = all_gradients(algorithm)(params, batch, lod)
  assert carry["lod"] == np.float32(lod)
  z_keys, e_keys = jnp.moveaxis(jax.vmap(jax.random.split)(KEYS), 1, 0)
  fake = faded(images_of(params["generator"], ALGORITHM.noise(z_keys)), lod)
  real = faded(of_data(batch), lod)
  (a, squares), (b, _) = (judged(params["discriminator"], x, jnp.float32(lod)) for x in (real, fake))
  if algorithm is LOGISTIC:
    expected = np.mean(np.logaddexp(0, -a) + np.logaddexp(0, b) + 5 * squares)
  else:
    e = np.asarray(jax.vmap(lambda key: jax.random.uniform(key, (1, 1, 1)))(e_keys))
    _, squares = judged(params["discriminator"], e * real + (1 - e) * fake, jnp.float32(lod))
    expected = np.mean(b - a + 10 * np.square(np.sqrt(squares) - 1) + 0.001 * np.square(a))
  np.testing.assert_allclose(metrics["discriminator/loss"], expected, rtol=1e-4)
  fake = faded(images_of(params["generator"], ALGORITHM.noise(KEYS)), lod)
  b, _ = judged(params["discriminator"], fake, jnp.float32(lod))
  expected = np.mean(np.logaddexp(0, -b)) if algorithm is LOGISTIC else -np.mean(b)
  np.testing.assert_allclose(metrics["generator/loss"], expected, rtol=1e-4, atol=1e-5)


def test_only_stages_that_have_been_faded_in_learn():
  learning = {}
  for lod in (0.0, 0.25, 1.0, 2.0):
    gradients = all_gradients()(start()[0], data(ALGORITHM, BATCH), lod)[0]
    for network, layers in gradients.items():
      learning[network, lod] = {
        name for name, leaves in layers.items() if any(x.any() for x in jax.tree.leaves(leaves))
      }
  bodies = [{f"stage_{stage}_conv0", f"stage_{stage}_conv1"} for stage in range(3)]
  images = [{f"stage_{stage}_to_image"} for stage in range(3)]
  assert learning["generator", 2.0] == bodies[0] | images[0]
  assert learning["generator", 1.0] == bodies[0] | bodies[1] | images[1]
  assert learning["generator", 0.25] == set.union(*bodies, images[1], images[2])
  assert learning["generator", 0.0] == set.union(*bodies, images[2])
  assert learning["discriminator", 2.0] == {"stage_0", "stage_0_from_image"}
  assert learning["discriminator", 1.0] == {"stage_0", "stage_1", "stage_1_from_image"}
  stages = {"stage_0", "stage_1", "stage_2"}
  assert learning["discriminator", 0.25] == stages | {"stage_1_from_image", "stage_2_from_image"}
  assert learning["discriminator", 0.0] == stages | {"stage_2_from_image"}


def test_growth_and_its_absence():
  """Adam begins anew at each resolution, when a fade begins and when it ends; a fixed resolution never changes."""
  fixed = progan.build(dataclasses.replace(SETTINGS, growing=False), IMAGES, "cpu")
  images_seen = range(0, 220, 20)
  growing = [2, 2, 2, 1.5, 1, 1, 1, 0.5, 0, 0, 0]
  updates = [1, 2, 3, 1, 1, 2, 3, 1, 1, 2, 3]
  for algorithm, lods, made in ((ALGORITHM, growing, updates), (fixed, [0] * 11, [*range(1, 12)])):
    for optimizer in algorithm.optimizers.values():
      params = {"w": jnp.ones(1)}
      state = optimizer.init(params)
      for n, lod, count in zip(images_seen, lods, made, strict=True):
        hyperparameters = {name: schedule(jnp.int32(n)) for name, schedule in algorithm.schedules.items()}
        assert hyperparameters["lod"] == pytest.approx(lod)
        _, state = optimizer.update(params, state, params, hyperparameters=hyperparameters)
        assert state.inner.updates == count, n
  assert jax.tree.map(jnp.shape, jax.eval_shape(fixed.init, jax.random.key(0))) == jax.tree.map(jnp.shape, start())


def test_samples_and_pictures():
  """At the level of detail of the last iteration; all stages beside one another, and reals as D sees them."""
  params, carry = start()
  assert carry == {"lod": 2.0}, "from 4x4 on"
  noise = ALGORITHM.noise(jax.random.split(jax.random.key(0), BATCH))
  np.testing.assert_allclose(jnp.mean(jnp.square(noise), axis=1), 1, rtol=1e-5)
  generate, pictures = jax.jit(ALGORITHM.generate), jax.jit(ALGORITHM.pictures)
  images, reals = images_of(params["generator"], noise), of_data(data(ALGORITHM, BATCH))
  four, eight, sixteen = images
  for lod in (0.0, 1.5, 2.0):
    given = {"lod": jnp.float32(lod)}
    np.testing.assert_allclose(generate(params, given, noise, None), faded(images, lod), atol=1e-5)
    drawn = pictures(params, given, jnp.asarray(reals[-1]))
    expected = [enlarged(enlarged(four)), enlarged(eight), sixteen]
    np.testing.assert_allclose(drawn["samples_by_stage"], np.concatenate(expected, axis=2), atol=1e-5)
    expected = [reals[-1], faded(reals, lod)]
    np.testing.assert_allclose(drawn["reals_and_what_is_seen"], np.concatenate(expected, axis=2), atol=1e-5)
  assert isinstance(ALGORITHM, HasPictures)
  none = np.asarray(generate(params, carry, noise, None, 0.0))
  np.testing.assert_allclose(none, np.broadcast_to(none[:1], none.shape), atol=1e-5)


@pytest.mark.parametrize(
  "side, changes, wrong",
  [
    (24, {}, "config.data.resolution = 24: the networks need 4 times a power of 2"),
    (16, {"widths": (8, 8)}, "config.gan.widths = (8, 8) has 2 entries"),
  ],
)
def test_images_that_do_not_fit_are_refused(side, changes, wrong):
  with pytest.raises(UserError, match=re.escape(wrong)):
    progan.build(dataclasses.replace(SETTINGS, **changes), Images(side, side, 1, 0), "cpu")
