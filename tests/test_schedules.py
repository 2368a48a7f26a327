"""Schedules against hand values and optax's; the cosine's recorded numbers are in tests/algorithms/test_r3gan.py."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from r3gan_jax import schedules


def values(schedule, *images):
  """Returns the values of a jitted schedule, which must be float32 scalars."""
  drawn = [jax.jit(schedule)(jnp.int32(n)) for n in images]
  assert all(value.dtype == jnp.float32 and value.shape == () for value in drawn)
  return np.array(drawn)


def test_constant():
  assert (values(schedules.constant(0.25), 0, 2**31 - 1) == 0.25).all()


def test_linear():
  images = (0, 250, 500, 1000, 5000)
  expected = [optax.linear_schedule(2e-4, 0.0, 1000)(n) for n in images]
  np.testing.assert_allclose(values(schedules.linear(2e-4, 0.0, 1000), *images), expected, rtol=1e-6, atol=1e-12)


def test_exponential():
  """It falls to a hundredth, with a tenth halfway."""
  schedule = schedules.exponential(2e-4, 2e-6, hold_images=100, ramp_images=200)
  np.testing.assert_allclose(values(schedule, 0, 100, 200, 300, 900), [2e-4, 2e-4, 2e-5, 2e-6, 2e-6], rtol=1e-5)


def test_stairs():
  schedule = schedules.stairs((3.0, 2.0, 0.5), (100, 200))
  assert values(schedule, 0, 99, 100, 199, 200, 10**9).tolist() == [3.0, 3.0, 2.0, 2.0, 0.5, 0.5]


@pytest.mark.parametrize("wrong", [((1.0, 2.0), (5, 6)), ((1.0, 2.0, 3.0), (6, 5))])
def test_stairs_that_do_not_rise_are_refused(wrong):
  with pytest.raises(ValueError, match="boundaries = "):
    schedules.stairs(*wrong)


def test_growth():
  """ProGAN's, for four resolutions: 400,000 images at each, and as many on the way to the next."""
  schedule = schedules.growth(3, 400_000, 400_000)
  thousands = (0, 400, 500, 600, 800, 1200, 1400, 2400, 3000, 2_000_000)
  expected = [3, 3, 2.75, 2.5, 2, 2, 1.5, 0, 0, 0]
  np.testing.assert_allclose(values(schedule, *(1000 * n for n in thousands)), expected, atol=1e-6)


def test_inverse_square_root():
  """Halfway up, at the peak, at the end of the peak, and a quarter at 16 times the images."""
  schedule = schedules.inverse_sqrt(0.01, ramp_up_images=100, decay_images=400)
  np.testing.assert_allclose(values(schedule, 0, 50, 100, 400, 6400), [0, 0.005, 0.01, 0.01, 0.0025], rtol=1e-6)
