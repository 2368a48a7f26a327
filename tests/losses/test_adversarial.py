"""The adversarial losses by hand, and the paper's theory of their dynamics on the Dirac GAN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r3gan_jax.losses.adversarial import HINGE, NON_SATURATING, RELATIVISTIC, SATURATING
from r3gan_jax.losses.penalties import gradient_penalty


def test_by_hand():
  real, fake = jnp.array([1.0, -2.0]), jnp.array([0.5, 3.0])
  np.testing.assert_allclose(RELATIVISTIC.discriminator(real, fake), np.log1p(np.exp([-0.5, 5.0])), rtol=1e-6)
  np.testing.assert_allclose(RELATIVISTIC.generator(real, fake), np.log1p(np.exp([0.5, -5.0])), rtol=1e-6)
  expected = np.log1p(np.exp([-1.0, 2.0])) + np.log1p(np.exp([0.5, 3.0]))
  np.testing.assert_allclose(NON_SATURATING.discriminator(real, fake), expected, rtol=1e-6)
  np.testing.assert_allclose(NON_SATURATING.generator(real, fake), np.log1p(np.exp([-0.5, -3.0])), rtol=1e-6)
  np.testing.assert_allclose(SATURATING.discriminator(real, fake), expected, rtol=1e-6)
  np.testing.assert_allclose(SATURATING.generator(real, fake), np.log(1 - 1 / (1 + np.exp([-0.5, -3.0]))), rtol=1e-5)


def test_whose_gradient_vanishes():
  """G's, at fakes that D is sure of: sigmoid(b) of the minimax game, 1 - sigmoid(b) of the other."""
  sure = jnp.array([-10.0, 0.0])
  for loss, expected in ((SATURATING, [-4.54e-5, -0.5]), (NON_SATURATING, [-1.0, -0.5])):
    gradient = jax.grad(lambda b, loss=loss: jnp.sum(loss.generator(b, b)))(sure)
    np.testing.assert_allclose(gradient, expected, rtol=1e-3)


def test_hinge_by_hand():
  """The value of D's loss, and no gradient from logits that are on the right side by 1."""
  real, fake = jnp.array([0.0, 0.5, 1.5, -1.0]), jnp.array([0.0, -2.0, -0.5, 1.0])
  np.testing.assert_allclose(HINGE.discriminator(real, fake), [2, 0.5, 0.5, 4])
  np.testing.assert_array_equal(HINGE.generator(real, fake), -fake)
  of_real, of_fake = jax.grad(lambda a, b: jnp.sum(HINGE.discriminator(a, b)), (0, 1))(real, fake)
  np.testing.assert_array_equal(of_real, [-1, -1, 0, -1])
  np.testing.assert_array_equal(of_fake, [1, 0, 1, 1])


def test_only_the_relativistic_loss_ignores_a_shift_of_the_critic():
  real, fake = jnp.array([1.0, -2.0]), jnp.array([0.5, 3.0])
  np.testing.assert_allclose(RELATIVISTIC.discriminator(real + 7, fake + 7), RELATIVISTIC.discriminator(real, fake))
  assert not np.allclose(NON_SATURATING.discriminator(real + 7, fake + 7), NON_SATURATING.discriminator(real, fake))


def test_large_logits_stay_finite():
  huge = jnp.array([1e4])
  for loss in (*RELATIVISTIC, *NON_SATURATING):
    assert np.isfinite(loss(huge, -huge)) and np.isfinite(loss(-huge, huge))


def dirac_gan_field(gamma):
  """The simultaneous gradient field of the Dirac GAN: real = 0, fake = theta, D(x) = psi x.

  As in the theory, the game is zero-sum: G maximises the loss that D minimises. (G's own loss has the same first
  derivatives at the equilibrium; away from it, it damps the orbit a little.)
  """

  def discriminator_loss(psi, theta):
    def critic(x):
      return psi * x[:, 0]

    real, r1 = gradient_penalty(critic, jnp.zeros((1, 1)))
    fake, _ = gradient_penalty(critic, theta[None, None])
    return jnp.mean(RELATIVISTIC.discriminator(real, fake) + gamma / 2 * r1)

  def generator_loss(psi, theta):
    return -jnp.mean(RELATIVISTIC.discriminator(jnp.zeros(1), (psi * theta)[None]))

  def field(point):
    psi, theta = point
    return -jnp.stack([jax.grad(discriminator_loss)(psi, theta), jax.grad(generator_loss, 1)(psi, theta)])

  return field


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_dirac_gan_eigenvalues(gamma):
  """lambda = -gamma/2 +- sqrt(gamma^2/4 - f'(0)^2), f'(0) = 1/2; the squared form of [P] equation 12."""
  jacobian = np.asarray(jax.jacobian(dirac_gan_field(gamma))(jnp.zeros(2)), np.float64)
  root = np.emath.sqrt(gamma**2 / 4 - 1 / 4)
  expected = np.sort_complex([-gamma / 2 + root, -gamma / 2 - root])
  # At gamma = 1 both eigenvalues coincide, and their error is the square root of the rounding error.
  np.testing.assert_allclose(np.sort_complex(np.linalg.eigvals(jacobian)), expected, atol=1e-3)


@pytest.mark.parametrize("gamma, norm", [(0.0, 2.25), (0.5, 6e-6), (1.0, 2e-10)])
def test_dirac_gan_converges_only_with_the_penalty(gamma, norm):
  """500 simultaneous steps of 0.1 from (1, 1) in the theory's orientation f(psi theta), which is psi = -1 in ours."""
  field, start = dirac_gan_field(gamma), jnp.array([-1.0, 1.0])
  end = jax.jit(lambda: jax.lax.fori_loop(0, 500, lambda _, point: point + 0.1 * field(point), start))()
  np.testing.assert_allclose(np.linalg.norm(end), norm, rtol=0.25)
