"""The activated convolution against its composition, in every derivative that training uses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.meshes import mesh_of
from jax.sharding import PartitionSpec as P

from r3gan_jax.ops.activated_conv import activated_conv
from r3gan_jax.ops.grouped_conv import grouped_conv

GROUPS, SLOPE = 2, 0.2


def composed(x, kernel, bias):
  def leaky(x):
    return jnp.where(x > 0, x, SLOPE * x)

  return leaky(grouped_conv(leaky(x), kernel, GROUPS, algorithm="native") + bias[:, None, None])


def fused(x, kernel, bias):
  return activated_conv(x, kernel, bias, GROUPS, SLOPE)


def operands(width):
  keys = jax.random.split(jax.random.key(0), 3)
  shapes = (4, 3, width, 2 * GROUPS), (3, 3, 2, 3 * GROUPS), (4, 3 * GROUPS)
  return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def results(conv, *operands):
  def loss(*operands):
    return jnp.sum(jnp.tanh(conv(*operands)))

  def penalty(*operands):
    return sum(jnp.sum(gradient**2) for gradient in jax.grad(loss, (0, 1, 2))(*operands))

  return conv(*operands), jax.grad(loss, (0, 1, 2))(*operands), jax.grad(penalty, (0, 1, 2))(*operands)


def assert_same(actual, expected):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5 * np.abs(b).max()), actual, expected)


@pytest.mark.parametrize("width", [5, 64])
def test_value_and_derivatives(width):
  x = operands(width)
  assert_same(jax.jit(lambda: results(fused, *x))(), jax.jit(lambda: results(composed, *x))())


def test_sharded_batch_beside_a_replicated_kernel():
  x, kernel, bias = operands(4)
  conv = jax.shard_map(fused, mesh=mesh_of(2), in_specs=(P("data"), P(), P("data")), out_specs=P("data"))
  assert_same(conv(x, kernel, bias), composed(x, kernel, bias))


def test_the_bias_gradient_is_summed_in_the_bias_s_dtype():
  """With bfloat16 activations of 32 x 32 pixels; in bfloat16, a sum of ones would end at 256."""
  x, kernel = jnp.ones((2, 32, 32, 4), jnp.bfloat16), jnp.zeros((1, 1, 2, 6), jnp.bfloat16)

  def total(bias):
    return jnp.sum(fused(x, kernel, bias).astype(jnp.float32))

  gradient = jax.jit(jax.grad(total))(jnp.ones((2, 6)))
  assert gradient.dtype == jnp.float32
  np.testing.assert_array_equal(gradient, np.full((2, 6), 32 * 32))
