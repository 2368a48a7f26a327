"""ProGAN's and MSG-GAN's networks against the papers' laws, hand values, and plain convolutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r3gan_jax.networks import karras
from r3gan_jax.networks.karras import (
  Discriminator,
  Generator,
  Linear,
  Mapping,
  MultiScaleDiscriminator,
  fade,
  minibatch_stddev,
  pixel_norm,
)

WIDTHS = (8, 8, 6)
KARRAS32 = (64, 64, 64, 32)


def draw(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def count(network, *inputs):
  """Returns how many parameters a network has."""
  params = jax.eval_shape(network.init, jax.random.key(0), *inputs)
  return sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.fixture(scope="module")
def generator():
  """(z -> images of all stages, perturbed parameters)."""
  network, z = Generator(WIDTHS, 2), draw(1, 5)
  params = perturbed(jax.jit(network.init)(jax.random.key(0), z))
  return lambda z, params=params: jax.jit(network.apply)(params, z), params


@pytest.fixture(scope="module")
def judge():
  """(images, lod) -> logits of a growing discriminator with perturbed parameters."""
  network, images, lod = Discriminator(WIDTHS), draw(4, 16, 16, 2), jnp.float32(0)
  params = perturbed(jax.jit(network.init)(jax.random.key(1), images, lod))
  apply = jax.jit(network.apply)
  return lambda images, lod: apply(params, images, jnp.float32(lod))


def perturbed(params):
  """So that biases are not zero."""
  leaves, structure = jax.tree.flatten(params)
  return structure.unflatten([leaf + 0.3 * draw(*leaf.shape, seed=i) for i, leaf in enumerate(leaves)])


def test_parameter_counts():
  """By hand, of 32x32 colour images; with all channels at 128, those of the paper's run on CIFAR-10."""
  z, images, lod = draw(1, 64), jnp.zeros((4, 32, 32, 3)), jnp.float32(0)
  pyramid = [jnp.zeros((4, side, side, 3)) for side in (4, 8, 16, 32)]
  assert count(Generator(KARRAS32), z) == 278_636
  assert count(Discriminator(KARRAS32), images, lod) == 279_521
  assert count(Discriminator(KARRAS32), images) == 279_521 - 3 * (3 * 64 + 64), "the first features of other stages"
  assert count(Generator((128,) * 4), draw(1, 128)) == 1_296_908
  assert count(Discriminator((128,) * 4), images, lod) == 1_298_689
  for combine, expected in (("simple", 285_377), ("lin_cat", 335_873), ("cat_lin", 293_249)):
    assert count(MultiScaleDiscriminator(KARRAS32, combine), pyramid) == expected


def test_initial_weights():
  """N(0, 1); biases 0."""
  params = jax.jit(Generator(KARRAS32).init)(jax.random.key(0), draw(1, 64))["params"]
  for layer in params.values():
    np.testing.assert_allclose(np.std(layer["kernel"]), 1, rtol=0.1)
    assert not layer["bias"].any()


def convolved(params, x):
  """Returns a convolution by XLA, with equalised weights."""
  kernel = params["kernel"] / float(np.sqrt(np.prod(params["kernel"].shape[:-1])))
  y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
  return np.asarray(y) + params["bias"]


def activated(x):
  return 2**0.5 * np.where(x > 0, x, 0.2 * x)


def normed(x):
  return x / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True))


def test_generator_by_hand(generator):
  """Table 2 of the paper: full convolution of z, then repeated pixels and two convolutions a stage."""
  generate, params = generator
  params, z = jax.tree.map(np.asarray, params)["params"], np.asarray(normed(draw(3, 5)))
  first = params["stage_0_conv0"]
  x = np.tensordot(z, first["kernel"], ((1,), (2,))) / (4 * 4 * 5) ** 0.5 + first["bias"]
  x = normed(activated(x))
  for stage, image in enumerate(generate(jnp.asarray(z))):
    if stage > 0:
      x = np.repeat(np.repeat(x, 2, axis=1), 2, axis=2)
      x = normed(activated(convolved(params[f"stage_{stage}_conv0"], x)))
    x = normed(activated(convolved(params[f"stage_{stage}_conv1"], x)))
    np.testing.assert_allclose(image, convolved(params[f"stage_{stage}_to_image"], x), atol=1e-4)
  assert image.shape == (3, 16, 16, 2)


def test_pixel_norm():
  x = pixel_norm(draw(3, 4, 4, 7))
  np.testing.assert_allclose(np.mean(np.square(x), axis=-1), 1, rtol=1e-5)


def test_fading(generator):
  """Whole stages exactly; between them the weighted mean."""
  images = generator[0](draw(2, 5))
  coarsest, middle, finest = map(np.asarray, images)

  def enlarged(x):
    return np.repeat(np.repeat(x, 2, axis=1), 2, axis=2)

  at = jax.jit(lambda lod: fade(images, lod))
  np.testing.assert_array_equal(at(jnp.float32(0)), finest)
  np.testing.assert_array_equal(at(jnp.float32(1)), enlarged(middle))
  np.testing.assert_array_equal(at(jnp.float32(2)), enlarged(enlarged(coarsest)))
  np.testing.assert_allclose(at(jnp.float32(0.25)), 0.75 * finest + 0.25 * enlarged(middle), atol=1e-6)
  expected = enlarged(0.5 * middle + 0.5 * enlarged(coarsest))
  np.testing.assert_allclose(at(jnp.float32(1.5)), expected, atol=1e-6)


@pytest.mark.parametrize("smoothed", [False, True])
def test_discriminator_by_hand(smoothed):
  """Table 2 of the paper: two convolutions a stage, a filter of [1, 2, 1] / 4 if asked for, and means of 2x2 pixels."""
  network, images = Discriminator((8, 6), smoothed=smoothed), draw(8, 8, 8, 2)
  variables = perturbed(jax.jit(network.init)(jax.random.key(0), images))
  params = jax.tree.map(np.asarray, variables)["params"]
  x = activated(convolved(params["stage_1_from_image"], images))
  x = activated(convolved(params["stage_1"]["conv0"], x))
  if smoothed:
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    weights = np.outer([1, 2, 1], [1, 2, 1]) / 16
    x = sum(weights[i, j] * padded[:, i : i + 8, j : j + 8] for i in range(3) for j in range(3))
  x = activated(convolved(params["stage_1"]["conv1"], x).reshape(8, 4, 2, 4, 2, 8).mean(axis=(2, 4)))
  deviations = x.reshape(2, 4, 4, 4, 8).std(axis=1).mean(axis=(1, 2, 3))
  deviations = np.broadcast_to(deviations.repeat(4)[:, None, None, None], (8, 4, 4, 1))
  verdict = params["stage_0"]
  x = activated(convolved(verdict["conv"], np.concatenate([x, deviations], axis=-1))).reshape(8, -1)
  for name in ("linear", "logit"):
    kernel = verdict[name]["kernel"]
    x = x @ kernel / kernel.shape[0] ** 0.5 + verdict[name]["bias"]
    x = activated(x) if name == "linear" else x
  np.testing.assert_allclose(jax.jit(network.apply)(variables, images), x[:, 0], rtol=1e-4, atol=1e-4)


def test_a_smaller_discriminator_is_inside(judge):
  """With one stage less, logits are those of the smaller network on means of 2x2 pixels; in between both matter."""
  images = draw(4, 16, 16, 2)
  means = jnp.mean(images.reshape(4, 8, 2, 8, 2, 2), axis=(2, 4))
  details = images - jnp.repeat(jnp.repeat(means, 2, axis=1), 2, axis=2)
  for lod in (1.0, 1.5, 2.0):
    np.testing.assert_allclose(judge(images + details, lod), judge(images, lod), rtol=1e-5, atol=1e-5)
  for lod in (0.0, 0.5):
    assert np.abs(judge(images + details, lod) - judge(images, lod)).min() > 1e-4
  logits = np.array([judge(images, lod) for lod in (0.999, 1.0, 1.001)])
  assert np.ptp(logits, axis=0).max() < 0.01 < np.ptp([judge(images, lod) for lod in (0.0, 1.0)], axis=0).max()


def test_logits_depend_on_the_group_only(judge):
  images = draw(8, 16, 16, 2)
  logits = judge(images, 0.5)
  np.testing.assert_allclose(judge(images[4:], 0.5), logits[4:], rtol=1e-5, atol=1e-5)
  other = judge(images.at[0].mul(2), 0.5)
  assert (np.abs(other - logits)[:4] > 1e-5).all() and (other == logits)[4:].all()


@pytest.mark.parametrize("combine", karras.COMBINATIONS)
def test_images_of_all_scales_are_judged(combine):
  network, pyramid = MultiScaleDiscriminator(WIDTHS, combine), [draw(4, side, side, 2) for side in (4, 8, 16)]
  params = jax.jit(network.init)(jax.random.key(0), pyramid)
  apply = jax.jit(network.apply)
  logits = apply(params, pyramid)
  for stage in range(3):
    changed = [image * 2 if i == stage else image for i, image in enumerate(pyramid)]
    assert np.abs(apply(params, changed) - logits).min() > 1e-4, stage


@pytest.mark.parametrize("multiplier", [1.0, 0.01])
def test_equalised_learning_rate(multiplier):
  """Stored with deviation 1 / m, used times m / sqrt(fan_in): a step s changes the used weight by m s / sqrt(fan_in).

  Weights are used at a deviation of 1 / sqrt(fan_in), so the relative step is m s for every fan-in.
  """
  for fan_in in (16, 400):
    layer = Linear(300, lr_multiplier=multiplier)
    params = layer.init(jax.random.key(0), jnp.zeros((1, fan_in)))["params"]
    np.testing.assert_allclose(np.std(params["kernel"]), 1 / multiplier, rtol=0.05)
    x = draw(2, fan_in, seed=3)
    y = layer.apply({"params": params}, x)
    np.testing.assert_allclose(y, x @ params["kernel"] * multiplier / fan_in**0.5, rtol=1e-4, atol=1e-5)
    moved = jax.tree.map(lambda p: p + 0.1, params)
    step = layer.apply({"params": moved}, x) - y
    expected = 0.1 * multiplier * (jnp.sum(x, axis=1) / fan_in**0.5 + 1)
    np.testing.assert_allclose(step, np.broadcast_to(expected[:, None], step.shape), atol=3e-5)


def test_mapping():
  """Ignores the length of z, keeps the scale of its inputs, learns at a hundredth of the rate."""
  mapping = Mapping(64)
  z = draw(32, 64)
  params = jax.jit(mapping.init)(jax.random.key(0), z)["params"]
  assert len(params) == 8
  for layer in params.values():
    np.testing.assert_allclose(np.std(layer["kernel"]), 100, rtol=0.1)
  apply = jax.jit(mapping.apply)
  w = apply({"params": params}, z)
  assert w.shape == (32, 64) and 0.5 < np.sqrt(np.mean(np.square(w))) < 2
  np.testing.assert_allclose(apply({"params": params}, 7 * z), w, rtol=1e-4, atol=1e-5)


def test_minibatch_stddev_of_known_groups():
  """Of 0, 1, 2, 3: sqrt(5) / 2; of equal samples almost none. Groups are of neighbours."""
  x = jnp.array([0.0, 1, 2, 3, 5, 5, 5, 5]).reshape(8, 1, 1, 1)
  np.testing.assert_allclose(np.ravel(minibatch_stddev(x, 4)), [1.25**0.5] * 4 + [1e-4] * 4, rtol=1e-6)
  apart = jnp.array([0.0, 1, 2, 3, 10, 11, 12, 13]).reshape(8, 1, 1, 1)
  np.testing.assert_allclose(minibatch_stddev(apart, 4), 1.25**0.5, rtol=1e-6)


def test_minibatch_stddev_by_hand():
  """Two groups of two samples of 1x2 pixels, 2 channels: deviations (1, 0, 2, 3) and 0, with means 1.5 and 0."""
  first, second = np.array([[[0.0, 5.0], [-1.0, 2.0]]]), np.array([[[2.0, 5.0], [3.0, 8.0]]])
  x = jnp.asarray(np.stack([first, second, second, second]), jnp.float32)
  y = minibatch_stddev(x, group=2)
  assert y.shape == (4, 1, 2, 1)
  np.testing.assert_allclose(y[:2], 1.5, rtol=1e-4)
  np.testing.assert_allclose(y[2:], 0, atol=1e-3)
  with pytest.raises(ValueError, match="3 samples"):
    minibatch_stddev(x[:3], group=2)
