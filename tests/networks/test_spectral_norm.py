"""Spectral normalisation, by hand and against the singular values of numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r3gan_jax.networks.spectral_norm import initial_vectors, normalised, power_iteration


def of(kernel):
  return {"layer": {"kernel": jnp.asarray(kernel)}}


def test_by_hand():
  """W = diag(3, 1) from u = (.6, .8): a step, the estimate |W u|, and its gradient with u fixed."""
  with jax.enable_x64(True):
    kernel = np.diag([3.0, 1.0])
    vectors = power_iteration(of(kernel), of([0.6, 0.8]))
    u = np.array([9 * 0.6, 0.8]) / np.hypot(9 * 0.6, 0.8)
    np.testing.assert_allclose(vectors["layer"]["kernel"], u, rtol=1e-12)
    sigma = np.hypot(3 * u[0], u[1])
    assert sigma == pytest.approx(2.9712, abs=1e-4)
    np.testing.assert_allclose(normalised(of(kernel), vectors)["layer"]["kernel"], kernel / sigma, rtol=1e-12)

    def inverse(kernel):
      return normalised(of(kernel), vectors)["layer"]["kernel"][1, 1] / kernel[1, 1]  # 1 / sigma

    v = np.array([3 * u[0], u[1]]) / sigma
    expected = -np.outer(v, u) / sigma**2
    np.testing.assert_allclose(jax.grad(inverse)(jnp.asarray(kernel + 0.0)), expected, rtol=1e-10, atol=1e-12)
    after_five = power_iteration(of(kernel), of([0.6, 0.8]), 5)
    assert 3 / normalised(of(kernel), after_five)["layer"]["kernel"][0, 0] == pytest.approx(3, abs=1e-8)


def test_the_largest_singular_value_becomes_1():
  """Of the matrix [k k I, O]: that of 3x3 ones is 3. Scale does not matter."""
  random = np.random.default_rng(0)
  for kernel in (np.ones((3, 3, 1, 1)), random.standard_normal((3, 3, 4, 6)), random.standard_normal((7, 5))):
    params = of(kernel.astype(np.float32))
    vectors = power_iteration(params, initial_vectors(jax.random.key(0), params), 50)
    assert vectors["layer"]["kernel"].shape == kernel.shape[-1:]
    found = normalised(params, vectors)["layer"]["kernel"]
    largest = np.linalg.svd(kernel.reshape(-1, kernel.shape[-1]))[1][0]
    np.testing.assert_allclose(found, kernel / largest, rtol=1e-3)
    scaled = jax.tree.map(lambda w: 7 * w, params)
    np.testing.assert_allclose(normalised(scaled, vectors)["layer"]["kernel"], found, rtol=1e-5)
  assert 1 / normalised(of(np.ones((3, 3, 1, 1))), of(np.ones(1)))["layer"]["kernel"][0, 0, 0, 0] == pytest.approx(3)


def test_only_kernels_are_normalised():
  params = {"layer": {"kernel": jnp.eye(3), "bias": jnp.full(3, 5.0)}, "table": jnp.full((2, 3), 7.0)}
  vectors = initial_vectors(jax.random.key(0), params)
  assert jax.tree.map(jnp.shape, vectors) == {"layer": {"kernel": (3,)}}
  found = normalised(params, vectors)
  np.testing.assert_array_equal(found["table"], params["table"])
  np.testing.assert_array_equal(found["layer"]["bias"], params["layer"]["bias"])


def test_a_kernel_of_zeros_stays_one():
  params = of(np.zeros((2, 3), np.float32))
  vectors = initial_vectors(jax.random.key(0), params)
  value, gradient = jax.value_and_grad(lambda p: jnp.sum(normalised(p, vectors)["layer"]["kernel"]))(params)
  assert value == 0 and np.isfinite(gradient["layer"]["kernel"]).all()
