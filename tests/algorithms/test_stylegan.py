"""StyleGAN: styles and their mixture, truncation, noise, and losses by hand."""

import dataclasses
import re
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.meshes import mesh_of
from helpers.zoo import data

from r3gan_jax.algorithms import stylegan
from r3gan_jax.algorithms.capabilities import HasPictures
from r3gan_jax.algorithms.images import Images
from r3gan_jax.algorithms.stylegan import mix_styles, truncated
from r3gan_jax.errors import UserError
from r3gan_jax.training.step import global_gradients

BATCH = 8
SETTINGS = stylegan.Settings(widths=(8, 8, 8), noise_dim=6, growing=False)
ALGORITHM = stylegan.build(SETTINGS, Images(16, 16, 1, 0), "cpu")
PIXELS = 2 * (4 * 4 + 8 * 8 + 16 * 16)
KEYS = jax.random.split(jax.random.key(1), BATCH)
GENERATE = jax.jit(ALGORITHM.generate)


@cache
def start():
  """Perturbed, so that biases and noise strengths are not zero, with a mean w."""
  params, _ = jax.jit(lambda: ALGORITHM.init(jax.random.key(0)))()
  leaves, structure = jax.tree.flatten(params)
  random = np.random.default_rng(0)
  leaves = [leaf + 0.3 * jnp.asarray(random.standard_normal(leaf.shape), jnp.float32) for leaf in leaves]
  return structure.unflatten(leaves), {"w": jnp.arange(6.0), "lod": jnp.float32(0)}


def mapped(z):
  return ALGORITHM.mapping.apply({"params": start()[0]["generator"]["mapping"]}, z)


APPLY = jax.jit(ALGORITHM.synthesis.apply)


def synthesised(w, planes):
  (images,) = APPLY({"params": start()[0]["generator"]["synthesis"]}, w, planes)
  return images


def split(noise):
  """Returns z, and the noise of 4x4, 4x4, 8x8, 8x8, 16x16, 16x16 pixels."""
  planes, first = [], 6
  for side in (4, 4, 8, 8, 16, 16):
    planes.append(noise[:, first : first + side * side].reshape(-1, side, side, 1))
    first += side * side
  assert first == noise.shape[1]
  return noise[:, :6], planes


def test_style_mixing():
  """Nine samples in ten cross over once, at any layer but the first, by their own keys."""
  samples, layers = 4000, 6
  w, other = jnp.zeros((samples, layers, 1)), jnp.ones((samples, layers, 1))
  keys = jax.random.split(jax.random.key(0), samples)
  mixed = np.asarray(jax.jit(mix_styles)(w, other, keys))[..., 0]
  assert (mixed[:, 0] == 0).all() and (np.diff(mixed, axis=1) >= 0).all()
  crossovers = np.bincount(layers - mixed.sum(axis=1).astype(int), minlength=layers + 1) / samples
  expected = np.array([0, *[0.9 / 5] * 5, 0.1])
  np.testing.assert_allclose(crossovers, expected, atol=4 * 0.5 / samples**0.5)
  np.testing.assert_array_equal(jax.jit(mix_styles)(w[7:8], other[7:8], keys[7:8])[..., 0], mixed[7:8])


def test_noise_has_z_and_pixels():
  """An image is made from these alone."""
  noise = ALGORITHM.noise(KEYS)
  assert noise.shape == (BATCH, 6 + PIXELS) == (BATCH, ALGORITHM.noise_dim)
  np.testing.assert_allclose((noise.mean(), noise.std()), (0, 1), atol=0.05)
  z, planes = split(noise)
  expected = synthesised(jnp.repeat(mapped(z)[:, None], 6, axis=1), planes)
  np.testing.assert_allclose(GENERATE(*start(), noise, None), expected, atol=1e-4)


def test_truncation():
  """0 gives the image of the mean w for any z; it does not change the noise of pixels."""
  noise = ALGORITHM.noise(KEYS)
  same_pixels = noise.at[:, 6:].set(noise[:1, 6:])
  none = np.asarray(GENERATE(*start(), same_pixels, None, 0.0))
  np.testing.assert_allclose(none, np.broadcast_to(none[:1], none.shape), atol=1e-4)
  assert np.ptp(GENERATE(*start(), noise, None, 0.0), axis=0).max() > 0.1
  z, planes = split(noise)
  w = start()[1]["w"][None] + 0.5 * (mapped(z) - start()[1]["w"][None])
  expected = synthesised(jnp.repeat(w[:, None], 6, axis=1), planes)
  np.testing.assert_allclose(GENERATE(*start(), noise, None, 0.5), expected, atol=1e-4)


def test_layers_of_more_than_32_pixels_are_not_truncated():
  w, mean = jnp.ones((2, 10, 3)), jnp.array([0.0, 1.0, 3.0])
  of_layers = truncated(w, mean, 0.5)
  np.testing.assert_allclose(of_layers[:, :8], np.broadcast_to([0.5, 1.0, 2.0], (2, 8, 3)))
  np.testing.assert_array_equal(of_layers[:, 8:], w[:, 8:])


@cache
def phases():
  """Returns [(gradients, carry, metrics)] of both phases, for 8 random images."""
  both = [global_gradients(phase, mesh_of(1), None) for phase in ALGORITHM.phases]
  given = *start(), data(ALGORITHM, BATCH), KEYS, {"lod": jnp.float32(0)}
  return jax.device_get(jax.jit(lambda *given: [of(*given) for of in both])(*given))


def drawn():
  """Returns the fakes of either phase, and the mean of the first w."""
  noise_keys, other_keys, mixing_keys = jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, 3))(KEYS), 1, 0)
  z, planes = split(ALGORITHM.noise(noise_keys))
  other = jax.vmap(lambda key: jax.random.normal(key, (6,)))(other_keys)
  w, other = mapped(z), mapped(other)
  mixed = mix_styles(*(jnp.repeat(x[:, None], 6, axis=1) for x in (w, other)), mixing_keys)
  assert (mixed != w[:, None]).any()
  return synthesised(mixed, planes), jnp.mean(w, axis=0)


def test_losses_by_hand():
  """Of mixed styles: softplus(-a) + softplus(b) + 10 / 2 R1, and softplus(-b)."""
  real = jnp.asarray(data(ALGORITHM, BATCH)["image"] / np.float32(127.5) - 1)
  params = {"params": start()[0]["discriminator"]}

  def total(images):
    logits = ALGORITHM.discriminator.apply(params, images)
    return jnp.sum(logits), logits

  gradient, a = jax.jit(jax.grad(total, has_aux=True))(real)
  b = jax.jit(total)(drawn()[0])[1]
  (_, _, of_discriminator), (_, _, of_generator) = phases()
  r1 = np.mean(np.sum(np.square(gradient), axis=(1, 2, 3)))
  np.testing.assert_allclose(of_discriminator["r1"], r1, rtol=1e-4)
  expected = np.mean(np.logaddexp(0, -a) + np.logaddexp(0, b)) + 5 * r1
  np.testing.assert_allclose(of_discriminator["loss"], expected, rtol=1e-4)
  np.testing.assert_allclose(of_generator["loss"], np.mean(np.logaddexp(0, -b)), rtol=1e-4)


def test_running_mean_of_w():
  """It moves by 0.005 towards the mean of the w that are not mixed in, in G's phase."""
  (_, of_discriminator, _), (_, of_generator, _) = phases()
  np.testing.assert_array_equal(of_discriminator["w"], np.arange(6))
  np.testing.assert_allclose(of_generator["w"], 0.995 * np.arange(6) + 0.005 * np.asarray(drawn()[1]), rtol=1e-5)


def test_pictures_of_mixed_styles():
  """Each sample, and itself with the styles of each of the first four in the layers of 4x4 and 8x8."""
  assert isinstance(ALGORITHM, HasPictures)
  pictures = jax.jit(ALGORITHM.pictures)(*start(), jnp.zeros((6, 16, 16, 1)))["mixed_styles"]
  z, planes = split(ALGORITHM.noise(jax.random.split(jax.random.key(0), 6)))
  planes = [jnp.repeat(plane[:1], 6, axis=0) for plane in planes]
  w = jnp.repeat(mapped(z)[:, None], 6, axis=1)
  columns = np.split(np.asarray(pictures), 5, axis=2)
  np.testing.assert_allclose(columns[0], synthesised(w, planes), atol=1e-4)
  for source in range(4):
    np.testing.assert_allclose(columns[1 + source][source], columns[0][source], atol=1e-4)
    mixed = jnp.concatenate([jnp.repeat(w[source : source + 1, :4], 6, axis=0), w[:, 4:]], axis=1)
    np.testing.assert_allclose(columns[1 + source], synthesised(mixed, planes), atol=1e-4)


def test_growth():
  """From 8x8 on: samples are enlarged, and D does not see more of the reals."""
  growing = stylegan.build(dataclasses.replace(SETTINGS, growing=True), Images(16, 16, 1, 0), "cpu")
  params, carry = jax.jit(lambda: growing.init(jax.random.key(0)))()
  assert carry["lod"] == 1 and [growing.schedules["lod"](jnp.int32(n)) for n in (900_000, 1_200_000)] == [0.5, 0]
  images = np.asarray(jax.jit(growing.generate)(params, carry, growing.noise(KEYS), None))
  np.testing.assert_array_equal(images, np.kron(images[:, ::2, ::2], np.ones((1, 2, 2, 1))))
  gradients_of = jax.jit(global_gradients(growing.phases[0], mesh_of(1), None))
  given = jnp.asarray(data(growing, BATCH)["image"], jnp.float32) / 255
  detailed = given + jnp.asarray(np.tile([[1.0, -1.0], [-1.0, 1.0]], (8, 8)), jnp.float32)[None, ..., None]
  for lod, same in ((1.0, True), (0.5, False)):
    losses = [
      gradients_of(params, carry, {"image": x}, KEYS, {"lod": jnp.float32(lod)})[2]["loss"] for x in (given, detailed)
    ]
    assert np.isclose(*losses, rtol=1e-4) == same


@pytest.mark.parametrize(
  "side, widths, wrong",
  [
    (24, (8, 8, 8), "config.data.resolution = 24: the networks need 4 times a power of 2"),
    (16, (8, 8), "config.gan.widths = (8, 8) has 2 entries"),
    (4, (8,), "config.data.resolution = 4: stylegan needs at least 8"),
  ],
)
def test_images_that_do_not_fit_are_refused(side, widths, wrong):
  with pytest.raises(UserError, match=re.escape(wrong)):
    stylegan.build(stylegan.Settings(widths=widths), Images(side, side, 1, 0), "cpu")
