"""Resampling against its definition: insert zeros or drop pixels, and filter with [1, 3, 3, 1]."""

import jax
import jax.numpy as jnp
import numpy as np

from r3gan_jax.ops.resample import downsample2x, image_pyramid, smooth, upsample2x

FILTER = np.array([1.0, 3.0, 3.0, 1.0]) / 8


def along_axis(function, x, axis):
  return np.apply_along_axis(function, axis, x)


def upsample_definition(x):
  def one(line):
    stuffed = np.zeros(2 * len(line) + 1)
    stuffed[1::2] = line  # out[2i] leans towards x[i - 1], out[2i + 1] towards x[i + 1]
    return 2 * np.convolve(stuffed, FILTER)[2 : 2 + 2 * len(line)]

  return along_axis(one, along_axis(one, x, 1), 2)


def downsample_definition(x):
  def one(line):
    return np.convolve(np.pad(line, 1), FILTER, mode="valid")[::2]

  return along_axis(one, along_axis(one, x, 1), 2)


def test_upsample():
  x = np.random.default_rng(0).standard_normal((2, 3, 5, 2)).astype(np.float32)
  out = upsample2x(x)
  assert out.shape == (2, 6, 10, 2)
  np.testing.assert_allclose(out, upsample_definition(x), atol=1e-6)
  np.testing.assert_allclose(upsample2x(np.ones((1, 4, 4, 1), np.float32))[:, 1:-1, 1:-1], 1)


def test_downsample():
  x = np.random.default_rng(0).standard_normal((2, 6, 8, 2)).astype(np.float32)
  out = downsample2x(x)
  assert out.shape == (2, 3, 4, 2)
  np.testing.assert_allclose(out, downsample_definition(x), atol=1e-6)


def test_down_is_a_quarter_of_the_transpose_of_up():
  x = np.random.default_rng(0).standard_normal((1, 6, 8, 2)).astype(np.float32)
  (transposed,) = jax.linear_transpose(upsample2x, jax.ShapeDtypeStruct((1, 3, 4, 2), np.float32))(x)
  np.testing.assert_allclose(downsample2x(x), transposed / 4, atol=1e-6)


def test_pyramid():
  """Means of all pixels below, the coarsest first."""
  x = np.random.default_rng(0).standard_normal((2, 16, 16, 3)).astype(np.float32)
  pyramid = image_pyramid(jnp.asarray(x), 3)
  assert [level.shape[1] for level in pyramid] == [4, 8, 16]
  np.testing.assert_array_equal(pyramid[2], x)
  for level, side in ((0, 4), (1, 8)):
    means = x.reshape(2, side, 16 // side, side, 16 // side, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(pyramid[level], means, atol=1e-6)


def test_smooth():
  """Of ones: 1 inside, 3/4 at an edge, 9/16 in a corner; of a pixel: the filter."""
  ones = np.asarray(smooth(jnp.ones((1, 4, 5, 1))))[0, :, :, 0]
  np.testing.assert_allclose(ones[0], [0.5625, 0.75, 0.75, 0.75, 0.5625])
  np.testing.assert_allclose(ones[1], [0.75, 1, 1, 1, 0.75])
  pixel = np.asarray(smooth(jnp.zeros((1, 5, 5, 1)).at[0, 2, 2].set(16.0)))[0, 1:4, 1:4, 0]
  np.testing.assert_allclose(pixel, np.outer([1, 2, 1], [1, 2, 1]))
