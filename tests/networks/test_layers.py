"""Properties of the layers that several GANs share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.meshes import mesh_of
from jax.sharding import PartitionSpec as P

from r3gan_jax.algorithms.base import DATA_AXIS
from r3gan_jax.networks.layers import MOMENTS, BatchNorm, StridedConv, TransposedConv

X = np.random.default_rng(0).normal(3.0, 2.0, (8, 4, 4, 5)).astype(np.float32)


def normalised(devices, train=True, mutable=(MOMENTS,), **fields):
  """Returns (y, running moments, parameters) of a new layer applied to X, sharded over devices."""
  layer = BatchNorm(DATA_AXIS, **fields)
  variables = layer.init(jax.random.key(0), jnp.zeros_like(X[:1]), train=False)

  def apply(x):
    return layer.apply(variables, x, train=train, mutable=list(mutable))

  split = P(DATA_AXIS)
  y, state = jax.shard_map(apply, mesh=mesh_of(devices), in_specs=split, out_specs=(split, P()))(X)
  return y, state.get(MOMENTS), variables.get("params", {})


@pytest.mark.parametrize("devices", [1, 8])
def test_batch_norm_takes_moments_over_all_devices(devices):
  y, moments, params = normalised(devices)
  mean, variance = X.mean((0, 1, 2)), X.var((0, 1, 2))
  expected = (X - mean) / np.sqrt(variance + 1e-5) * params["scale"].reshape(1, 1, 1, -1)
  np.testing.assert_allclose(y, expected, atol=1e-5)
  np.testing.assert_allclose(moments["mean"], 0.1 * mean, rtol=1e-5)
  np.testing.assert_allclose(moments["mean_square"], 0.9 + 0.1 * np.square(X).mean((0, 1, 2)), rtol=1e-5)
  assert np.std(params["scale"]) > 0


def test_batch_norm_by_running_moments_is_the_sample_s_own():
  """They are initially 0 and 1, and updated only if the collection is mutable."""
  y, moments, _ = normalised(1, train=False, mutable=(), affine=False)
  np.testing.assert_allclose(y, X / np.sqrt(1 + 1e-5), rtol=1e-6)
  assert moments is None and normalised(1, mutable=())[1] is None


def test_batch_norm_without_scale_and_bias():
  y, _, params = normalised(1, affine=False)
  assert not params
  np.testing.assert_allclose([np.mean(y), np.std(y)], [0, 1], atol=1e-5)


@pytest.mark.parametrize("kernel_size", [4, 5])
def test_the_transposed_convolution_is_the_adjoint(kernel_size):
  """<down(x), y> = <x, up(y)> with exchanged channels of the kernel; sides halve and double."""
  random = np.random.default_rng(0)
  x, y = (jnp.asarray(random.standard_normal(shape), jnp.float32) for shape in ((2, 8, 8, 3), (2, 4, 4, 6)))
  kernel = jnp.asarray(random.standard_normal((kernel_size, kernel_size, 3, 6)), jnp.float32)
  down = StridedConv(6, kernel_size).apply({"params": {"kernel": kernel}}, x)
  up = TransposedConv(3, kernel_size).apply({"params": {"kernel": kernel.swapaxes(2, 3)}}, y)
  assert down.shape == y.shape and up.shape == x.shape
  np.testing.assert_allclose(jnp.vdot(down, y), jnp.vdot(x, up), rtol=1e-5)
