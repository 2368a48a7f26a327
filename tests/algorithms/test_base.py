"""What several algorithms share."""

import jax.numpy as jnp
import numpy as np

from r3gan_jax.algorithms.base import pictures_of_autoencoder


def test_the_nearest_code_is_of_another_image():
  """By hand: of codes at 0, 1, 3 and 3.5 on a line, those of the images 1, 0, 3 and 2."""
  images = jnp.arange(4.0)[:, None, None, None] * jnp.ones((1, 2, 2, 1))
  codes = jnp.array([[0, 0], [0, 1], [0, 3], [0, 3.5]])
  pictures = pictures_of_autoencoder(images, -images, codes)
  np.testing.assert_array_equal(pictures["reals_and_nearest_codes"][:, 0, ::2, 0], [[0, 1], [1, 0], [2, 3], [3, 2]])
  np.testing.assert_array_equal(
    pictures["reals_and_reconstructions"][:, 1, 1::2, 0], [[0, 0], [1, -1], [2, -2], [3, -3]]
  )
