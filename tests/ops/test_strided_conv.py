"""Strided and transposed convolutions against XLA's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r3gan_jax.ops.resample import blur, downsample2x, mean2x, repeat2x, upsample2x
from r3gan_jax.ops.strided_conv import (
  averaging_conv,
  downsampling_conv,
  repeating_conv,
  strided_conv,
  transposed_conv,
  upsampling_conv,
)

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def filtered(x, padding):
  taps = np.outer([1, 3, 3, 1], [1, 3, 3, 1])[..., None, None] / 64
  kernel = jnp.asarray(np.tile(taps, (1, 1, 1, x.shape[-1])), x.dtype)
  pads = [(padding, padding)] * 2
  return jax.lax.conv_general_dilated(
    x, kernel, (1, 1), pads, dimension_numbers=DIMENSIONS, feature_group_count=x.shape[-1]
  )


def down(x, kernel):
  return jax.lax.conv_general_dilated(filtered(x, 2), kernel, (2, 2), "VALID", dimension_numbers=DIMENSIONS)


def up(x, kernel):
  pads = [(2, 2)] * 2
  y = jax.lax.conv_general_dilated(x, kernel, (1, 1), pads, lhs_dilation=(2, 2), dimension_numbers=DIMENSIONS)
  return 4 * filtered(y, 1)


def everything(conv, x, kernel):
  """Returns the result, its gradients, and the gradients of their squares."""

  def total(x, kernel):
    return jnp.sum(jnp.sin(conv(x, kernel)))

  def penalty(x, kernel):
    return jnp.sum(jnp.square(jax.grad(total)(x, kernel)))

  return jax.jit(lambda: (conv(x, kernel), jax.grad(total, (0, 1))(x, kernel), jax.grad(penalty, (0, 1))(x, kernel)))()


def operands(size, outputs):
  random = np.random.default_rng(0)
  return (
    jnp.asarray(random.standard_normal((2, 6, 8, 4)), jnp.float32),
    jnp.asarray(random.standard_normal((size, size, 4, outputs)), jnp.float32),
  )


def assert_alike(ours, theirs, x, kernel):
  found, expected = (jax.tree.leaves(everything(conv, x, kernel)) for conv in (ours, theirs))
  for one, other in zip(found, expected, strict=True):
    np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(other).max())


@pytest.mark.parametrize("ours, theirs", [(downsampling_conv, down), (upsampling_conv, up)])
@pytest.mark.parametrize("outputs", [3, 16])
def test_with_the_filter(ours, theirs, outputs):
  assert_alike(ours, theirs, *operands(3, outputs))


@pytest.mark.parametrize("size, padding", [(4, 1), (5, 2), (3, 1)])
@pytest.mark.parametrize("outputs", [1, 16])
def test_without_a_filter(size, padding, outputs):
  """PyTorch's: equal padding on both sides, and its adjoint, which doubles the side."""
  x, kernel = operands(size, outputs)

  def down(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (2, 2), [(padding, padding)] * 2, dimension_numbers=DIMENSIONS)

  def up(x, kernel):
    def down_to_it(y):
      return down(y, kernel.swapaxes(2, 3))

    (y,) = jax.linear_transpose(down_to_it, jnp.zeros((2, 12, 16, outputs)))(x)
    return y

  odd = size % 2
  assert_alike(lambda x, kernel: strided_conv(x, kernel, (padding, padding)), down, x, kernel)
  assert_alike(lambda x, kernel: transposed_conv(x, kernel, (padding, padding - odd)), up, x, kernel)


@pytest.mark.parametrize("outputs", [1, 16])
def test_with_repeated_pixels_or_their_means(outputs):
  """As two operations; also at the borders."""

  def conv(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=DIMENSIONS)

  x, kernel = operands(3, outputs)
  assert_alike(averaging_conv, lambda x, kernel: mean2x(conv(x, kernel)), x, kernel)
  assert_alike(repeating_conv, lambda x, kernel: conv(repeat2x(x), kernel), x, kernel)


def test_away_from_borders_it_is_resampling_beside_a_convolution():
  random = np.random.default_rng(1)
  x = jnp.asarray(random.standard_normal((1, 16, 16, 2)), jnp.float32)
  kernel = jnp.asarray(random.standard_normal((3, 3, 2, 3)), jnp.float32)

  def plain(x):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=DIMENSIONS)

  inside = np.s_[:, 4:-4, 4:-4]
  np.testing.assert_allclose(upsampling_conv(x, kernel)[inside], plain(upsample2x(x))[inside], atol=1e-5)
  inside = np.s_[:, 2:-2, 2:-2]
  np.testing.assert_allclose(downsampling_conv(x, kernel)[inside], downsample2x(plain(x))[inside], atol=1e-5)


def test_blur():
  x = jnp.arange(1.0, 17.0).reshape(1, 4, 4, 1)
  np.testing.assert_allclose(blur(x, 2), filtered(x, 2), rtol=1e-6)
  assert blur(x, 1).shape == (1, 3, 3, 1)
