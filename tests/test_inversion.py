import dataclasses
import importlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from helpers import golden_cases
from helpers.meshes import mesh_of

from configs import roadmap
from r3gan_jax import factory
from r3gan_jax.errors import UserError
from r3gan_jax.inversion import FineTuned, Inverter, feature_errors, feature_maps
from r3gan_jax.ops.images import to_float, to_uint8
from r3gan_jax.sampling import Sampler


@pytest.fixture(autouse=True)
def type_promotion():
  with jax.numpy_dtype_promotion("standard"):  # optax.adam mixes dtypes
    yield


class Setting:
  """Recorded networks, an inverter, and its results for a generated image and for an image of noise."""

  def __init__(self, name):
    self.case = golden_cases.load(name)
    self.algorithm = self.case.algorithm
    generator, discriminator = self.case.params("G", "generator"), self.case.params("D", "discriminator")
    generator["to_image"]["kernel"] = generator["to_image"]["kernel"] * 2  # so that many pixels are outside [-1, 1]
    self.params = {"generator": generator, "discriminator": discriminator}
    self.label = 3
    self.invert = Inverter(self.algorithm, self.params, {}, self.algorithm.discriminator, steps=200, fine_tune=True)
    self.starts = self.noise(4)
    self.own_noise = self.noise(1)
    # At the prior's minimum.
    self.own_noise *= self.own_noise.shape[1] ** 0.5 / np.linalg.norm(self.own_noise)
    drawn = jax.jit(self.algorithm.generate)(self.params, {}, self.own_noise, self.labels(1))
    assert 0.05 < jnp.mean(jnp.abs(drawn) > 1) < 0.6
    self.own = np.asarray(to_uint8(drawn))[0]
    self.own_found = self.invert(self.own, self.label, self.starts)
    self.foreign = np.random.default_rng(0).integers(0, 256, self.own.shape, dtype=np.uint8)
    self.foreign_found = self.invert(self.foreign, self.label, self.starts)

  def noise(self, count):
    return np.random.default_rng(count).standard_normal((count, self.algorithm.noise_dim)).astype(np.float32)

  def labels(self, count):
    return np.full(count, self.label, np.int32)


@pytest.fixture(scope="module")
def setting():
  with jax.numpy_dtype_promotion("standard"):
    return Setting("cond_8px")  # tests/cli/test_invert.py has an unconditional one


def test_noise_of_an_image_that_g_drew_is_found(setting):
  found = setting.own_found
  np.testing.assert_allclose(found.noise, setting.own_noise[0], atol=0.03)
  assert found.losses.min() < 1e-3 and found.mse < 1e-4
  sampler = Sampler(setting.algorithm, mesh_of(1), batch_per_device=1)
  (drawn,) = sampler.batches(setting.params, {}, found.noise[None], setting.labels(1))
  assert np.abs(drawn[0].astype(int) - setting.own).mean() < 1


def test_fine_tuning_comes_closer(setting):
  """By a third at least, for an image outside G's range; its loss is that of the image from its noise and offsets."""
  found, target = setting.foreign_found, to_float(jnp.asarray(setting.foreign))[None]
  assert found.loss < 0.67 * found.losses.min()
  generate = jax.jit(FineTuned(setting.algorithm, setting.params, {}).generate)
  maps = jax.jit(partial(feature_maps, setting.algorithm.discriminator))
  prior = 0.1 * (np.sqrt(np.mean(found.noise**2)) - 1) ** 2
  errors, losses = [], []
  for offsets in (0 * found.offsets, found.offsets):
    drawn = generate(setting.params, {}, np.concatenate([found.noise, offsets])[None], setting.labels(1)).clip(-1, 1)
    errors.append(float(jnp.mean(jnp.square(drawn - target))))
    features = [maps(setting.params["discriminator"], images, setting.labels(1)) for images in (drawn, target)]
    losses.append(errors[-1] + prior + float(feature_errors(*features)[0]))
  assert errors[1] < 0.9 * errors[0]
  assert found.mse == pytest.approx(errors[1], rel=1e-3)
  np.testing.assert_allclose([found.losses.min(), found.loss], losses, rtol=1e-3)


def test_the_same_again(setting):
  again = setting.invert(setting.foreign, setting.label, setting.starts)
  for one, other in zip(dataclasses.astuple(again), dataclasses.astuple(setting.foreign_found), strict=True):
    np.testing.assert_array_equal(one, other)


def test_the_best_of_several_starts(setting):
  """Each gives the same result alone. Without a discriminator, so the loss is the pixels' error plus the prior."""
  invert = Inverter(setting.algorithm, setting.params, {}, None, steps=10)
  starts = setting.starts[::-1]
  found = invert(setting.foreign, setting.label, starts)
  alone = [invert(setting.foreign, setting.label, start[None]) for start in starts]
  np.testing.assert_allclose([one.loss for one in alone], found.losses, rtol=1e-4)
  best = min(alone, key=lambda one: one.loss)
  assert found.loss == found.losses.min() < 0.99 * found.losses[0]
  np.testing.assert_allclose(found.noise, best.noise, atol=1e-3)
  for one in alone:
    assert one.loss == pytest.approx(one.mse + 0.1 * (np.sqrt(np.mean(one.noise**2)) - 1) ** 2, rel=1e-4)
    assert one.offsets.shape == (0,)


def test_feature_maps_are_those_that_the_discriminator_uses(setting):
  """The first is computed from the pixels, and the recorded logits from the last."""
  case, params = setting.case, setting.params["discriminator"]
  maps = jax.jit(partial(feature_maps, case.algorithm.discriminator))(params, case.arrays["real"], case.labels)
  np.testing.assert_allclose(maps["from_image"], case.arrays["real"] @ params["from_image"]["kernel"], atol=1e-5)
  logits = (
    np.einsum("nhwc,hwc->nc", maps["stage_0_block_1"], params["basis"]["constant"])
    @ params["basis"]["linear"]["kernel"]
  )
  logits = np.sum(logits * np.asarray(params["class_embedding"]["kernel"])[case.labels], axis=1)
  np.testing.assert_allclose(logits, np.ravel(case.arrays["real_logits"]), rtol=1e-4, atol=1e-4)
  assert sorted(maps) == ["down_0", "from_image", "stage_0_block_0", "stage_0_block_1", "stage_1_block_0"]


def test_feature_errors():
  targets = {"a": jnp.full((1, 2, 2, 3), 2.0), "b": jnp.array([3.0, 4.0]).reshape(1, 1, 1, 2)}
  maps = {"a": jnp.stack([jnp.full((2, 2, 3), 2.0), jnp.full((2, 2, 3), 3.0)]), "b": jnp.zeros((2, 1, 1, 2))}
  np.testing.assert_allclose(feature_errors(maps, targets), [(0 + 1) / 2, (1 / 4 + 1) / 2])


def test_the_gradient_of_feature_errors_vanishes_at_the_target_alone(setting):
  discriminator, params = setting.algorithm.discriminator, setting.params["discriminator"]

  @jax.jit
  def gradient(images, target, label):
    targets = feature_maps(discriminator, params, target, label)
    return jax.grad(lambda images: feature_errors(feature_maps(discriminator, params, images, label), targets)[0])(
      images
    )

  image, other = (jnp.asarray(setting.case.arrays["real"][i : i + 1]) for i in (0, 1))
  assert jnp.abs(gradient(image, image, setting.labels(1))).max() < 1e-8
  assert jnp.abs(gradient(other, image, setting.labels(1))).max() > 1e-4


def test_offsets_are_added_to_the_features_at_4x4(setting):
  """The difference of two noises' features, by hand, turns one's image into the other's."""
  algorithm, basis = setting.algorithm, setting.params["generator"]["basis"]
  start, end = setting.noise(2)
  kernel = np.asarray(basis["linear"]["kernel"])[
    : algorithm.noise_dim
  ]  # the other rows are the class's, which is the same
  offsets = np.asarray(basis["constant"]) * ((end - start) @ kernel)
  fine_tuned = FineTuned(algorithm, setting.params, {})
  assert fine_tuned.offset_dim == offsets.size
  labels = setting.labels(2)
  rows = np.stack([np.concatenate([end, 0 * offsets.ravel()]), np.concatenate([start, offsets.ravel()])])
  drawn = jax.jit(fine_tuned.generate)(setting.params, {}, rows, labels)
  expected = jax.jit(algorithm.generate)(setting.params, {}, rows[[0, 0], : algorithm.noise_dim], labels)
  np.testing.assert_array_equal(drawn[0], expected[0])
  np.testing.assert_allclose(drawn, expected, atol=1e-4)


def test_fine_tuning_stylegan2_offsets_its_w():
  """That of each layer: by the synthesis network at this w, by hand, and closer to an image that it does not draw."""
  algorithm = factory.build_algorithm(roadmap.get_config("a_smoke"))
  params, carry = jax.jit(lambda: algorithm.init(jax.random.key(0)))()
  target = np.random.default_rng(0).integers(0, 256, algorithm.image_shape, dtype=np.uint8)
  noise = np.asarray(algorithm.noise(jax.random.split(jax.random.key(0), 1)))
  found = Inverter(algorithm, params, carry, None, steps=10, fine_tune=True)(target, None, noise)
  generator = params["generator"]
  w = algorithm.mapping.apply({"params": generator["mapping"]}, found.noise[None])
  w = w[:, None] + found.offsets.reshape(1, -1, w.shape[1])
  assert w.shape[1] == algorithm.synthesis.inputs
  drawn = jax.jit(algorithm.synthesis.apply)({"params": generator["synthesis"]}, w).clip(-1, 1)
  assert found.mse == pytest.approx(float(jnp.mean(jnp.square(drawn - to_float(jnp.asarray(target[None]))))), rel=1e-3)
  assert found.loss < found.losses[0]


def test_no_features_at_4x4():
  class Other(nn.Module):
    @nn.compact
    def __call__(self, z, labels=None):
      return nn.Dense(16 * 16 * 3)(z).reshape(-1, 16, 16, 3)

  algorithm = dataclasses.replace(golden_cases.load("uncond_16px").algorithm, generator=Other())
  params = {"generator": jax.jit(Other().init)(jax.random.key(0), jnp.zeros((1, algorithm.noise_dim)))["params"]}
  with pytest.raises(UserError, match="R3GAN has no features at 4x4"):
    Inverter(algorithm, params, {}, None, steps=1, fine_tune=True)


@pytest.mark.parametrize("name", ["gan", "infogan"])
def test_inversion_stays_where_noise_is(name):
  """White cannot be drawn: without the box, noise would leave it. There is no prior: the loss is that of the pixels."""
  algorithm = factory.build_algorithm(importlib.import_module(f"configs.zoo.{name}").get_config("smoke"))
  invert = Inverter(algorithm, *jax.jit(lambda: algorithm.init(jax.random.key(0)))(), None, steps=40)
  starts = np.asarray(algorithm.noise(jax.random.split(jax.random.key(0), 2)))
  found = invert(np.full(algorithm.image_shape, 255, np.uint8), None, starts)
  lowest, highest = algorithm.noise_bounds
  assert (found.noise >= lowest).all() and (found.noise <= highest).all()
  assert ((found.noise == lowest) | (found.noise == highest)).any()
  assert found.loss == pytest.approx(found.mse)
