"""R3GAN with an image as condition: its gradient is exact, and neither devices nor interruptions change it."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import golden_cases
from helpers.meshes import mesh_of
from helpers.states import arrays_of
from helpers.zoo import data, trained

from configs import super_resolution
from r3gan_jax import factory
from r3gan_jax.algorithms import image_to_image
from r3gan_jax.algorithms.conditioned import conditioned
from r3gan_jax.algorithms.images import Images
from r3gan_jax.errors import UserError
from r3gan_jax.losses.penalties import grad_of_grad
from r3gan_jax.ops.images import to_float
from r3gan_jax.sampling import Sampler
from r3gan_jax.training.checkpoint import Checkpoints
from r3gan_jax.training.state import abstract_state

SETTINGS = image_to_image.Settings(
  "mask", (8, 8), (2, 2), (1, 1), noise_dim=4, burn_in_images=64, ema_half_life=(0.0, 32.0)
)
BATCH = 8


def built(condition, channels=3, classes=0, side=8, condition_channels=0):
  settings = dataclasses.replace(SETTINGS, condition=condition)
  images = Images(side, side, channels, classes, condition_channels=condition_channels)
  return image_to_image.build(settings, images, "cpu")


MASKED = built("mask")


def made_up(algorithm, dtype):
  """Returns parameters none of which is 0: those at the start make D linear."""
  params, _ = algorithm.init(jax.random.key(0))
  random = np.random.default_rng(0)

  def changed(leaf):
    return jnp.asarray(leaf + random.standard_normal(leaf.shape) / np.sqrt(leaf[..., 0].size), dtype)

  return jax.tree.map(changed, params)


@pytest.mark.parametrize("condition", ["downscale_2", "mask"])
def test_directional_is_grad_of_grad(condition):
  """Of pairs: R1 and R2 on the gradient with respect to the image, with the condition fixed."""
  algorithm = built(condition)
  keys = jax.random.split(jax.random.key(1), BATCH)
  with jax.enable_x64(True):
    images = jnp.asarray(data(algorithm, BATCH)["image"] / 127.5 - 1)
    given = made_up(algorithm, np.float64), {}, {"image": images}, keys, {"gamma": jnp.float64(20)}
    (ours, _, metrics), (reference, *_) = (
      jax.jit(way.phases[0].gradients)(*given)
      for way in (algorithm, dataclasses.replace(algorithm, penalised_gradient=grad_of_grad))
    )
    penalties = 10 * (metrics["r1"] + metrics["r2"])
    assert penalties > 0.1 * metrics["adversarial_loss"], "the penalties count"
    golden_cases.assert_trees_close(ours, reference, 1e-10)
    assert jax.tree.leaves(ours)[0].dtype == np.float64


def test_the_bias_scale_makes_the_critic_of_pairs_homogeneous():
  params = {"params": made_up(MASKED, np.float32)["discriminator"]}
  images = data(MASKED, BATCH)["image"] / np.float32(127.5) - 1
  beside = np.random.default_rng(1).standard_normal((BATCH, 8, 8, 7)).astype(np.float32)
  judge = jax.jit(lambda x, s: MASKED.discriminator.apply(params, x, beside, s))
  scales = np.linspace(0.5, 3, BATCH, dtype=np.float32)
  np.testing.assert_allclose(
    judge(scales[:, None, None, None] * images, scales), scales * judge(images, np.ones(BATCH, np.float32)), rtol=1e-4
  )


def test_g_sees_the_condition():
  """From its first stage on: at another condition, samples are others."""
  algorithm = built("downscale_2")
  params = made_up(algorithm, np.float32)
  random = np.random.default_rng(1)
  one, other = (random.integers(0, 256, (2, 4, 4, 3), np.uint8) for _ in range(2))
  noise = algorithm.noise(jax.random.split(jax.random.key(0), 2))
  samples = [algorithm.generate(params, {}, noise, condition) for condition in (one, other)]
  assert samples[0].shape == (2, 8, 8, 3) and np.abs(samples[0] - samples[1]).min(axis=(1, 2, 3)).max() > 0


def test_d_sees_the_condition_and_another_sample():
  """The gradient of G is that of the formula in the module, with keys of its own for each draw."""
  algorithm = built("downscale_2")
  params, keys = made_up(algorithm, np.float32), jax.random.split(jax.random.key(1), BATCH)
  batch = data(algorithm, BATCH)
  real = to_float(jnp.asarray(batch["image"]))
  small = np.asarray(algorithm.conditions(real, keys))
  large = to_float(jnp.asarray(small.repeat(2, axis=1).repeat(2, axis=2)))

  def drawn(generator, keys):
    return algorithm.generate({"generator": generator}, {}, algorithm.noise(keys), small)

  fake_keys = jax.vmap(lambda key: jax.random.split(key, 3)[0])(keys)
  others = drawn(params["generator"], jax.vmap(lambda key: jax.random.fold_in(key, 4))(keys))

  def logits(images):
    return algorithm.discriminator.apply(
      {"params": params["discriminator"]}, images, jnp.concatenate([large, others], axis=-1)
    )

  def loss(generator):
    return jnp.mean(jax.nn.softplus(logits(real) - logits(drawn(generator, fake_keys))))

  gradients, *_ = jax.jit(algorithm.phases[1].gradients)(params, {}, batch, keys, {})
  golden_cases.assert_trees_close(gradients["generator"], jax.jit(jax.grad(loss))(params["generator"]), 1e-4)


@pytest.fixture(scope="module")
def state():
  """After two iterations on one device."""
  return trained(MASKED, BATCH, iterations=2)


def test_one_device_is_eight(state):
  """With masks, which are drawn from the keys of the samples."""
  divided = trained(MASKED, BATCH, iterations=2, devices=8)
  for tree, expected in ((divided.params, state.params), (divided.ema, state.ema)):
    assert golden_cases.relative_errors(tree, expected)["all"] < 1e-4


def test_a_resumed_run_is_an_uninterrupted_one(state, tmp_path):
  def resumed(state):
    checkpoints = Checkpoints(tmp_path / str(state.images_seen))
    assert checkpoints.save(state)
    restored = checkpoints.restore_latest(abstract_state(MASKED, mesh_of(1)))
    checkpoints.close()
    return restored

  jax.tree.map(np.testing.assert_array_equal, *map(arrays_of, (state, trained(MASKED, BATCH, 2, 1, resumed))))


def test_a_class_of_a_conditioned_gan_is_a_condition():
  """A sample depends on its seed and its condition, whichever others there are; no class: no sample."""
  params = made_up(MASKED, np.float32)
  conditions = np.random.default_rng(1).integers(0, 256, (3, 8, 8, 4), np.uint8)
  sampled = []
  for chosen, labels in ((conditions, [2, 2, 0]), (conditions[2:], [0, 0, 0])):
    algorithm, besides = conditioned(MASKED, chosen)
    sampler = Sampler(algorithm, mesh_of(1), batch_per_device=4)
    sampled.append(sampler(params | besides, {}, np.array([5, 6, 7]), np.array(labels)))
  np.testing.assert_array_equal(sampled[0][:2], sampled[1][:2])
  assert (sampled[0][2] != sampled[1][2]).any() and (sampled[0][0] != sampled[0][1]).any()
  with pytest.raises(UserError, match="--condition=FOLDER"):
    Sampler(MASKED, mesh_of(1))(params, {}, np.array([0]))


def test_pictures_show_what_is_given_what_is_drawn_and_what_is_true():
  images = jnp.asarray(data(MASKED, 2)["image"] / np.float32(127.5) - 1)
  (picture,) = jax.jit(MASKED.pictures)(made_up(MASKED, np.float32), {}, images).values()
  given, *samples, true = np.split(picture, 5, axis=2)
  np.testing.assert_array_equal(true, images)
  hidden = (given == -1).all(axis=-1)
  np.testing.assert_allclose(given[~hidden], images[~hidden], atol=1e-6)
  assert 0 < hidden.mean() < 0.5 and (samples[0] != samples[1]).any()


def test_a_condition_that_comes_with_an_image_is_as_one_that_is_made_of_it():
  """The same gradients of D, whether grey is made in the step or given as the fourth channel."""
  made, given = built("grey"), built("pairs", condition_channels=1)
  assert (given.image_shape, given.input_shape, given.condition_shape) == ((8, 8, 3), (8, 8, 4), (8, 8, 1))
  images = data(made, BATCH)["image"]
  keys = jax.random.split(jax.random.key(1), BATCH)
  joined = np.concatenate([images, made.conditions(images, keys)], axis=-1)
  params, gamma = made_up(made, np.float32), {"gamma": jnp.float32(1)}
  of_made, of_given = (
    jax.jit(algorithm.phases[0].gradients)(params, {}, {"image": batch}, keys, gamma)
    for algorithm, batch in ((made, images), (given, joined))
  )
  jax.tree.map(np.testing.assert_array_equal, of_made, of_given)
  (picture,) = jax.jit(given.pictures)(params, {}, to_float(jnp.asarray(joined[:2]))).values()
  np.testing.assert_allclose(
    picture[:, :, :8], to_float(jnp.asarray(joined[:2, ..., 3:].repeat(3, axis=-1))), atol=1e-6
  )
  np.testing.assert_array_equal(picture[:, :, -8:], to_float(jnp.asarray(images[:2])))


@pytest.mark.parametrize(
  "condition, options, message",
  [
    ("grey", {"channels": 1}, "config.gan.condition = 'grey' with config.data.channels = 1"),
    ("downscale_8", {}, "config.gan.condition = 'downscale_8' of images of 8x8 is smaller than the first stage"),
    ("mask", {"classes": 10}, "config.data.num_classes = 10: image_to_image takes no classes"),
    ("mask", {"side": 12}, "config.data.resolution = 12"),
    ("mask", {"condition_channels": 1}, "config.gan.condition = 'mask' with config.data.condition_channels = 1: of"),
    ("pairs", {}, "config.gan.condition = 'pairs' with config.data.condition_channels = 0: conditions are grey (1) or"),
    ("pairs", {"channels": 1, "condition_channels": 3}, "are grey (1) or have the channels of the images (1)"),
  ],
)
def test_conditions_that_do_not_fit_are_refused(condition, options, message):
  with pytest.raises(UserError, match=re.escape(message)):
    built(condition, **options)


@pytest.mark.parametrize(
  "variant, shape", [("", (8, 8, 1)), ("colourise", (32, 32, 1)), ("inpaint", (32, 32, 4)), ("smoke", (8, 8, 1))]
)
def test_the_recipes(variant, shape):
  experiment = factory.build_experiment(super_resolution.get_config(variant), device_count=8)
  assert experiment.algorithm.condition_shape == shape
  params, _ = jax.eval_shape(experiment.algorithm.init, jax.random.key(0))
  first = params["generator"]["from_condition"]["kernel"].shape[0]
  pair = params["discriminator"]["critic"]["from_image"]["kernel"].shape[0]
  assert (first, pair) == (shape[2], 2 * experiment.algorithm.image_shape[2] + shape[2])
