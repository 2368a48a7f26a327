"""The residual block as one operation against its composition, in every derivative that training uses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.meshes import mesh_of
from jax.interpreters import partial_eval
from jax.sharding import PartitionSpec as P

from r3gan_jax.ops import residual_block_tpu
from r3gan_jax.ops.grouped_conv import grouped_conv, pointwise_conv
from r3gan_jax.ops.residual_block import Results, Weights, portable, residual_block

GROUPS, SLOPE = 2, 0.2


def composed(x, weights):
  def leaky(x):
    return jnp.where(x > 0, x, SLOPE * x)

  u = leaky(pointwise_conv(x, weights.conv1) + weights.bias1[:, None, None])
  v = leaky(grouped_conv(u, weights.conv2, GROUPS, algorithm="native") + weights.bias2[:, None, None])
  return x + pointwise_conv(v, weights.conv3)


def fused(x, weights):
  return residual_block(x, weights, GROUPS, SLOPE)


def operands(samples=4, height=3, width=5, outer=3, inner=4, kernel_size=(3, 3), groups=GROUPS):
  bias = (samples, inner)
  shapes = Weights((outer, inner), bias, (*kernel_size, inner // groups, inner), bias, (inner, outer))
  *keys, x_key = jax.random.split(jax.random.key(0), len(shapes) + 1)
  weights = Weights(*(jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)))
  return jax.random.normal(x_key, (samples, height, width, outer)), weights


def assert_same(actual, expected):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5 * np.abs(b).max()), actual, expected)


@pytest.mark.parametrize("width", [5, 64])
def test_value_and_derivatives(width):
  x = operands(width=width)

  def results(block):
    def loss(x, weights):
      return jnp.sum(jnp.tanh(block(x, weights)))

    def penalty(x, weights):
      return sum(jnp.sum(gradient**2) for gradient in jax.tree.leaves(jax.grad(loss, (0, 1))(x, weights)))

    return block(*x), jax.grad(loss, (0, 1))(*x), jax.grad(penalty, (0, 1))(*x)

  assert_same(jax.jit(lambda: results(fused))(), jax.jit(lambda: results(composed))())


def test_sharded_batch_beside_replicated_kernels():
  x, weights = operands()
  specs = Weights(P(), P("data"), P(), P("data"), P())
  block = jax.shard_map(fused, mesh=mesh_of(2), in_specs=(P("data"), specs), out_specs=P("data"))
  assert_same(block(x, weights), composed(x, weights))


def test_bias_gradients_are_summed_in_float32():
  """With bfloat16 activations of 32 x 32 pixels; in bfloat16, a sum of ones would end at 256."""
  x, weights = operands(2, 32, 32, 3, 4)
  x, weights = jax.tree.map(lambda a: jnp.ones_like(a, jnp.bfloat16 if a.ndim != 2 else None), (x, weights))
  weights = weights._replace(conv1=jnp.ones((3, 4), jnp.bfloat16), conv3=jnp.full((4, 3), 0.25, jnp.bfloat16))

  def total(weights):
    return jnp.sum(fused(x, weights)[..., 0].astype(jnp.float32))

  gradient = jax.jit(jax.grad(total))(weights)
  assert gradient.bias2.dtype == jnp.float32
  np.testing.assert_array_equal(gradient.bias2, np.full((2, 4), 32 * 32 * 0.25))


def wanted_results(function, *arguments):
  """Returns the names of what each block in a traced program computes, without dead code."""
  jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
  live, _ = partial_eval.dce_jaxpr(jaxpr, True)
  blocks = [equation for equation in live.eqns if equation.primitive.name == "r3gan_residual_block"]
  return [
    {name for name, asked in zip(Results._fields, block.params["wanted"], strict=True) if asked} for block in blocks
  ]


def test_only_what_is_read_is_computed():
  x, weights = operands()
  signs, inner, sums = {"u_signs", "v_signs"}, {"u", "v"}, {"u_sums", "v_sums"}

  def total(x, weights):
    return jnp.sum(fused(x, weights))

  assert wanted_results(jax.grad(total), x, weights) == [signs, {"out"}]
  assert wanted_results(jax.grad(total, (0, 1)), x, weights) == [signs | inner, {"out"} | inner | sums]

  def directional(x, direction):
    """The gradient of a directional derivative, as losses/penalties.py computes it."""
    (_, by_x), push_forward = jax.linearize(lambda x: jax.grad(total, (1, 0))(x, weights), x)
    return by_x, push_forward(direction)[0]

  forward, cotangents, tangents = wanted_results(directional, x, x)
  assert forward == signs
  assert cotangents == {"out"} | inner
  assert tangents == inner


@pytest.mark.parametrize(
  ("samples", "height", "width", "outer", "inner", "groups", "kernel_size", "dtype"),
  [
    (2, 3, 64, 3, 4, 2, (3, 3), jnp.float32),  # two words of signs a row
    (16, 4, 4, 8, 256, 16, (3, 3), jnp.float32),  # two blocks of lanes, two tiles of images
    (2, 1, 4, 3, 4, 2, (5, 3), jnp.float32),  # fewer rows than the kernel reaches
    (2, 4, 4, 16, 32, 2, (1, 1), jnp.bfloat16),
  ],
)
@pytest.mark.parametrize("given_signs", [False, True])
def test_the_tpu_kernel(samples, height, width, outer, inner, groups, kernel_size, dtype, given_signs, monkeypatch):
  """Emulated, against the portable composition."""
  monkeypatch.setattr(residual_block_tpu, "PIXELS", 32)
  x, weights = operands(samples, height, width, outer, inner, kernel_size, groups)
  x, conv1, conv2, conv3 = (a.astype(dtype) for a in (x, weights.conv1, weights.conv2, weights.conv3))
  arguments = [x, *weights._replace(conv1=conv1, conv2=conv2, conv3=conv3)]
  params = {"groups": groups, "slope": SLOPE}

  def kernel(wanted):
    return residual_block_tpu.residual_block(*arguments, wanted=wanted, interpret=True, **params)

  every = (True,) * len(Results._fields)
  expected = Results(*portable(*arguments, wanted=every, **params))
  if given_signs:
    keys = jax.random.split(jax.random.key(1))
    signs = (expected.u_signs, expected.v_signs)
    arguments += [jax.random.bits(key, s.shape).astype(jnp.int32) for key, s in zip(keys, signs, strict=True)]
    expected = Results(*portable(*arguments, wanted=every, **params))
  found = Results(*kernel(every))
  tolerance = {jnp.float32: 1e-5, jnp.bfloat16: 2e-2}[dtype]
  for name in ("out", "u", "v", "u_sums", "v_sums"):
    actual, wanted = (np.asarray(getattr(results, name), np.float32) for results in (found, expected))
    np.testing.assert_allclose(actual, wanted, atol=tolerance * np.abs(wanted).max(), err_msg=name)
  if dtype == jnp.float32:
    np.testing.assert_array_equal(found.u_signs, expected.u_signs)
    np.testing.assert_array_equal(found.v_signs, expected.v_signs)
  out, v_signs = kernel((True, False, False, False, True, False, False))
  np.testing.assert_array_equal(out, found.out)
  np.testing.assert_array_equal(v_signs, found.v_signs)
