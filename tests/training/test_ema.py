"""Power-function averages; the exponential ones are in tests/test_optimizers.py, and both in test_step.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r3gan_jax.training.ema import power_exponent, power_weight, update_power_average

EXPONENTS = {
  0.01: 96.99489782,
  0.05: 16.97219860,
  0.1: 6.93720394,
  0.15: 3.55786877,
  0.2: 1.82621378,
}
"""Of EDM2's code."""


def test_exponents():
  np.testing.assert_allclose([*map(power_exponent, EXPONENTS)], [*EXPONENTS.values()], atol=1e-8)
  assert 0 < power_exponent(0.2886) < 0.01, "the upper limit is that of uniform weights"


def test_weights():
  """EDM2's decay after 1000 batches; a weight of 1 at first; and precision where float32 has no such decay."""
  np.testing.assert_allclose(1 - power_weight(0.05, jnp.int32(512_000), 512), 0.98217951, rtol=1e-7)
  assert power_weight(0.05, jnp.int32(512), 512) == 1
  late = power_weight(0.1, jnp.int32(2_000_000_000), 16)
  np.testing.assert_allclose(late, (EXPONENTS[0.1] + 1) * 16 / 2e9, rtol=1e-6)


@pytest.mark.parametrize("std", [0.05, 0.1, 0.2])
def test_it_is_the_sum_over_its_profile(std):
  """Each of 5000 parameters is weighted by the integral of the power function over its batch, in float64."""
  batch, walk = 512, np.cumsum(np.random.default_rng(0).standard_normal((5000, 8)), axis=0)
  walk = (walk / np.abs(walk).max()).astype(np.float32)

  def update(average, given):
    i, params = given
    return update_power_average(average, params, power_weight(std, (i + 1) * batch, batch)), average

  start = jnp.full(8, 1e6)  # of which nothing is left
  (average, history) = jax.jit(lambda: jax.lax.scan(update, start, (jnp.arange(5000, dtype=jnp.int32), walk)))()
  integrals = np.diff((np.arange(5001) / 5000) ** (EXPONENTS[std] + 1))
  np.testing.assert_allclose(average, integrals @ walk.astype(np.float64), atol=2e-6)
  np.testing.assert_array_equal(history[1], walk[0], err_msg="the first update copies")
