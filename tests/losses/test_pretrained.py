"""Losses by a pretrained network, by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from r3gan_jax.losses.pretrained import cosine_similarity, cross_entropy


def test_cosines_by_hand():
  a = jnp.array([[3.0, 0.0], [1.0, 1.0], [2.0, -1.0], [0.0, 0.0]])
  b = jnp.array([[0.5, 0.0], [0.0, 7.0], [-4.0, 2.0], [1.0, 0.0]])
  np.testing.assert_allclose(cosine_similarity(a, b), [1, np.sqrt(0.5), -1, 0], rtol=1e-6)
  assert np.isfinite(jax.grad(lambda a: jnp.sum(cosine_similarity(a, b)))(a)).all()


def test_cross_entropy_by_hand():
  logits = jnp.log(jnp.array([[1.0, 3.0, 4.0], [6.0, 1.0, 1.0]]))
  np.testing.assert_allclose(cross_entropy(logits, jnp.array([1, 0])), -np.log([3 / 8, 6 / 8]), rtol=1e-6)
