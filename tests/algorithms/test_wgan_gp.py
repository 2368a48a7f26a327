"""WGAN-GP: its objective, its critic, and invalid settings."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from helpers import golden_cases
from helpers.meshes import mesh_of
from helpers.zoo import data

from r3gan_jax.algorithms import dcgan, wgan_gp
from r3gan_jax.algorithms.images import Images
from r3gan_jax.errors import UserError
from r3gan_jax.losses.penalties import directional, grad_of_grad
from r3gan_jax.networks.wgan_gp import Critic
from r3gan_jax.training.step import global_gradients

IMAGES = Images(16, 16, 1, 0)
SETTINGS = wgan_gp.Settings(widths=(8, 8), noise_dim=8)
ALGORITHM = wgan_gp.build(SETTINGS, IMAGES, "cpu")


class Linear(nn.Module):
  """D(x) = <w, x> with |w| = 3, so its gradient is w everywhere."""

  piecewise_linear = True

  @nn.compact
  def __call__(self, x, bias_scale=None):
    w = self.param("w", lambda key: 3 / 16 * jnp.ones(256))
    return x.reshape(-1, 256) @ w


def discriminator_step(algorithm):
  params, carry = jax.jit(lambda: algorithm.init(jax.random.key(0)))()
  gradients_of = jax.jit(global_gradients(algorithm.phases[0], mesh_of(1), None))
  return params, gradients_of(params, carry, data(algorithm, 8), jax.random.split(jax.random.key(1), 8), {})


def test_the_penalty_by_hand():
  """The penalty is 10 (3 - 1)^2; its gradient, 10 * 2 * 2 w / |w|, adds to that of the difference of means."""
  algorithm = dataclasses.replace(ALGORITHM, discriminator=Linear())
  params, (gradients, _, metrics) = discriminator_step(algorithm)
  metrics = jax.tree.map(float, metrics)
  assert metrics["input_gradient_norm"] == pytest.approx(3) and metrics["penalty"] == pytest.approx(4)
  assert metrics["loss"] == pytest.approx(40 - metrics["wasserstein_estimate"], rel=1e-5)
  free = dataclasses.replace(algorithm, penalty_weight=0.0)
  without = discriminator_step(free)[1][0]["discriminator"]["w"]
  w = params["discriminator"]["w"]
  np.testing.assert_allclose(np.asarray(gradients["discriminator"]["w"] - without), np.asarray(40 * w / 3), rtol=1e-4)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_which_way_to_the_gradient_is_right(layer_norm):
  """Both apply without a norm, where the critic is piecewise linear; only grad-of-grad applies with it."""
  critic = Critic((8, 8), layer_norm)
  random = np.random.default_rng(0)
  shapes = jax.eval_shape(critic.init, jax.random.key(0), jnp.zeros((4, 16, 16, 1)))["params"]
  with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):  # flax's layer norm divides in float32
    images = jnp.asarray(random.standard_normal((4, 16, 16, 1)))
    params = jax.tree.map(lambda leaf: jnp.asarray(0.3 * random.standard_normal(leaf.shape)), shapes)

    def objective(logits, squared_norms):
      return jnp.mean(jnp.sin(logits)) + jnp.mean(jnp.square(jnp.sqrt(squared_norms) - 1)), {}

    def judge(params, images, bias_scale):
      return critic.apply({"params": params}, images, bias_scale)

    ours, reference = (way(judge, params, images, lambda x: x, objective) for way in (directional, grad_of_grad))
    error = golden_cases.relative_errors(ours, reference)["all"]
  assert critic.piecewise_linear != layer_norm
  assert error > 1e-3 if layer_norm else error < 1e-12


def test_with_layer_norm_it_trains():
  _, (gradients, _, metrics) = discriminator_step(
    wgan_gp.build(dataclasses.replace(SETTINGS, critic_norm="layer"), IMAGES, "cpu")
  )
  assert jax.tree.all(jax.tree.map(lambda leaf: bool(np.isfinite(leaf).all()), gradients))
  assert metrics["input_gradient_norm"] > 0


def test_a_penalty_on_a_critic_with_batch_norm_is_refused():
  with pytest.raises(UserError, match=r"config\.gan\.critic_norm = 'batch'.*choose 'layer' or 'none'"):
    wgan_gp.build(dataclasses.replace(SETTINGS, critic_norm="batch"), IMAGES, "cpu")
  of_dcgan = dcgan.build(dcgan.Settings(widths=(8, 8)), IMAGES, "cpu").discriminator
  for algorithm in (ALGORITHM, golden_cases.load("uncond_16px").algorithm):
    with pytest.raises(UserError, match="without batch norm, but Discriminator"):
      dataclasses.replace(algorithm, discriminator=of_dcgan)
