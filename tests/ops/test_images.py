import jax.numpy as jnp
import numpy as np

from r3gan_jax.ops.images import to_float, to_uint8


def test_every_byte_survives_the_round_trip():
  values = jnp.arange(256, dtype=jnp.uint8)
  np.testing.assert_array_equal(to_uint8(to_float(values)), values)


def test_range_and_truncation():
  np.testing.assert_allclose(to_float(jnp.array([0, 255], jnp.uint8)), [-1, 1])
  images = jnp.array([-2.0, -1.0, 0.0, 0.999 / 127.5, 1.0, 2.0])
  np.testing.assert_array_equal(to_uint8(images), [0, 0, 128, 128, 255, 255])


def test_floats_pass_through():
  images = jnp.array([-0.3, 0.7])
  assert to_float(images) is images
