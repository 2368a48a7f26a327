import jax
import jax.numpy as jnp
import numpy as np

from r3gan_jax.losses.penalties import gradient_penalty


def quadratic(images):
  """D(x) = |x|^2 / 2, so the gradient is x itself."""
  return 0.5 * jnp.sum(jnp.square(images), axis=(1, 2, 3))


def test_penalty_of_a_known_critic():
  images = jax.random.normal(jax.random.key(0), (3, 4, 4, 2))
  logits, penalties = gradient_penalty(quadratic, images)
  np.testing.assert_allclose(logits, quadratic(images))
  np.testing.assert_allclose(penalties, np.sum(np.square(images), axis=(1, 2, 3)), rtol=1e-6)


def test_differentiable_in_what_the_critic_closes_over():
  images = jax.random.normal(jax.random.key(0), (3, 4, 4, 2))

  def penalty(scale):
    return jnp.sum(gradient_penalty(lambda x: scale * quadratic(x), images)[1])

  np.testing.assert_allclose(jax.grad(penalty)(3.0), 2 * 3 * np.sum(np.square(images)), rtol=1e-5)


def test_gradient_is_taken_through_an_augmentation():
  images = jax.random.normal(jax.random.key(0), (2, 4, 4, 1))
  _, penalties = gradient_penalty(lambda x: quadratic(2 * x), images)
  np.testing.assert_allclose(penalties, np.sum(np.square(4 * images), axis=(1, 2, 3)), rtol=1e-5)
