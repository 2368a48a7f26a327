"""Losses with a gradient penalty, for discriminators whose gradient is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r3gan_jax.losses.penalised import LogisticR1, Wasserstein

N = 6
KEYS = jax.random.split(jax.random.key(0), N)


def draw(side, seed):
  return jnp.asarray(np.random.default_rng(seed).standard_normal((N, side, side, 2)), jnp.float32)


def pixel(images, weight=1.0):
  """D(x) = weight times a pixel, so the norm of its gradient is `weight`."""
  return weight * images[:, 0, 0, 0]


@pytest.mark.parametrize("norm, expected", [(0, 10), (375, 2.5), (750, 0), (1500, 10)])
def test_the_penalty_is_relative_to_the_norm(norm, expected):
  """10 (|g| - 750)^2 / 750^2."""
  loss = Wasserstein(weight=10.0, norm=750.0, drift=0.0)
  real, fake = draw(4, 0), draw(4, 1)
  total, metrics = loss.discriminator(lambda x: pixel(x, norm), real, fake, KEYS)
  np.testing.assert_allclose(10 * metrics["penalty"], expected, atol=1e-5)
  assert metrics["input_gradient_norm"] == pytest.approx(norm, abs=1e-5)
  estimate = norm * float(jnp.mean(real[:, 0, 0, 0] - fake[:, 0, 0, 0]))
  np.testing.assert_allclose(total, expected - estimate, rtol=1e-4)
  assert metrics["wasserstein_estimate"] == pytest.approx(estimate, rel=1e-4, abs=1e-5)


def test_wasserstein_by_hand():
  """b - a + 0.001 a^2, and -b; the penalty is 0 where the norm is that wanted."""
  loss = Wasserstein()
  real, fake = 3 * jnp.ones((N, 4, 4, 2)), jnp.ones((N, 4, 4, 2))
  total, _ = loss.discriminator(pixel, real, fake, KEYS)
  assert total == pytest.approx(1 - 3 + 0.001 * 9)
  assert loss.generator(jnp.array([1.0, 4.0])) == pytest.approx(-2.5)


def test_the_gradient_is_taken_between_a_real_and_its_fake():
  """D is half the square of a pixel, whose gradient is the pixel, uniform between the two."""
  real, fake = jnp.zeros((N, 4, 4, 2)), jnp.ones((N, 4, 4, 2))
  norms = []
  for index in range(200):
    keys = jax.random.split(jax.random.key(index), N)
    norms.append(Wasserstein().discriminator(lambda x: pixel(x) ** 2 / 2, real, fake, keys)[1]["input_gradient_norm"])
  assert np.mean(norms) == pytest.approx(0.5, abs=0.03) and np.std(norms) == pytest.approx(1 / 72**0.5, rel=0.15)


def test_logistic_by_hand():
  """An undecided D has 2 ln 2, and 10 / 2 |g|^2; G has ln 2."""
  zeros = jnp.zeros((N, 4, 4, 2))
  total, metrics = LogisticR1(gamma=10.0).discriminator(lambda x: pixel(x, 3.0), zeros, zeros, KEYS)
  assert total == pytest.approx(1.386294 + 5 * 9, rel=1e-6) and metrics["r1"] == pytest.approx(9)
  logits = jnp.zeros(N)
  assert LogisticR1().generator(logits) == pytest.approx(0.693147, rel=1e-6)
  slope = jax.grad(LogisticR1().generator)(jnp.array([-30.0, 0.0]))
  np.testing.assert_allclose(slope, [-0.5, -0.25], rtol=1e-6)


def test_penalties_are_means_over_resolutions():
  """If D ignores all but one of four, a mean of squares is a quarter; norms of the others are 0."""
  real, fake = ([draw(side, seed + side) for side in (2, 4, 8, 16)] for seed in (0, 1))
  of_finest = LogisticR1().discriminator(lambda x: pixel(x, 3.0), real[-1], fake[-1], KEYS)[1]
  of_all = LogisticR1().discriminator(lambda images: pixel(images[-1], 3.0), real, fake, KEYS)[1]
  assert of_finest["r1"] == pytest.approx(9) and of_all["r1"] == pytest.approx(9 / 4)
  _, metrics = Wasserstein().discriminator(lambda images: pixel(images[-1], 3.0), real, fake, KEYS)
  assert metrics["penalty"] == pytest.approx((3 * 1 + 4) / 4, rel=1e-4)
  _, metrics = Wasserstein().discriminator(lambda images: pixel(images[0]) + pixel(images[2]), real, fake, KEYS)
  assert metrics["penalty"] == pytest.approx(2 / 4, rel=1e-4)


def test_all_resolutions_are_mixed_alike():
  """A D that compares two resolutions of the same constant images finds no difference."""
  real, fake = ([jnp.full((N, side, side, 2), value) for side in (2, 4)] for value in (0.0, 1.0))
  _, metrics = Wasserstein().discriminator(
    lambda images: jnp.square(pixel(images[0]) - pixel(images[1])), real, fake, KEYS
  )
  assert metrics["input_gradient_norm"] < 1e-5
