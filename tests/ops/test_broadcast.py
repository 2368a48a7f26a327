"""Gradients of arrays broadcast to bfloat16 activations, of every order that training uses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r3gan_jax.ops.broadcast import broadcast_as


def test_values_are_those_of_casting_first():
  bias = jax.random.normal(jax.random.key(0), (2, 1, 1, 3))
  activation = jnp.zeros((2, 4, 4, 3), jnp.bfloat16)
  broadcast = broadcast_as(bias, activation)
  assert broadcast.dtype == jnp.bfloat16
  np.testing.assert_array_equal(broadcast, activation + bias.astype(jnp.bfloat16))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_ones_add_up(dtype):
  """16 x 32 x 32 ones; in bfloat16, the sum would be at most 256 per sample."""
  with jax.enable_x64(dtype == jnp.float64):
    activation = jnp.zeros((16, 32, 32, 4), jnp.bfloat16)

    def total(bias):
      return jnp.sum(broadcast_as(bias, activation).astype(jnp.float32))

    gradient = jax.jit(jax.grad(total))(jnp.zeros((1, 1, 1, 4), dtype))
    assert gradient.dtype == dtype
    np.testing.assert_array_equal(gradient, np.full((1, 1, 1, 4), 16 * 32 * 32))


def test_a_tangent_s_gradient_adds_up_too():
  """The linearised gradient, as in losses.penalties.directional."""
  activation = jnp.ones((2, 32, 32, 1), jnp.bfloat16)

  def gradient(scale):
    def total(bias):
      return jnp.sum((broadcast_as(scale * bias, activation) * activation).astype(jnp.float32))

    return jax.grad(total)(1.0)

  _, push_forward = jax.linearize(gradient, 1.0)
  np.testing.assert_array_equal(push_forward(1.0), activation.size)
