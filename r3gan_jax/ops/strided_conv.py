"""Convolutions that change the resolution by 2: plain ones, ProGAN's, and StyleGAN2's with the filter [1, 3, 3, 1].

Each is a convolution of stride 1 between blocks of 2x2 pixels as channels, for which `grouped_conv` has fast
derivatives of every order; XLA's derivatives of strided convolutions are up to 10 times as slow on CPUs. Kernels of odd
size are padded with a row and a column of zeros, so a 3x3 kernel costs 16 products instead of 9.

Padding is explicit, (before, after) along both axes: XLA's "SAME" at stride 2 centres odd windows on other pixels than
PyTorch and Theano do.
"""

import jax
import jax.numpy as jnp

from r3gan_jax.ops.grouped_conv import grouped_conv
from r3gan_jax.ops.resample import blur


def strided_conv(x: jax.Array, kernel: jax.Array, padding: tuple[int, int]) -> jax.Array:
  """Applies a convolution of stride 2: [N, H, W, I], [k, k, I, O] -> [N, (H + padding - k) / 2 + 1, ..., O]."""
  size, inputs = -(-kernel.shape[0] // 2), x.shape[-1]
  x = _blocks(jnp.pad(x, ((0, 0), padding, padding, (0, 0))))
  # Block (i, j) of the kernel has its entries (2i, 2j) to (2i + 1, 2j + 1).
  kernel = _even(kernel).reshape(size, 2, size, 2, inputs, -1).swapaxes(1, 2)
  return grouped_conv(x, kernel.reshape(size, size, 4 * inputs, -1), groups=1, padding=((0, 0), (0, 0)))


def transposed_conv(x: jax.Array, kernel: jax.Array, padding: tuple[int, int]) -> jax.Array:
  """Applies a transposed convolution of stride 2: [N, H, W, I], [k, k, I, O] -> [N, 2H + ..., O].

  It is the adjoint of `strided_conv` with the kernel's channels exchanged.

  The side of the result is 2 (H - 1) + k - before - after.
  """
  before, after = padding
  size, (inputs, outputs) = -(-kernel.shape[0] // 2), kernel.shape[2:]
  height, width = (2 * (side - 1) + kernel.shape[0] - before - after for side in x.shape[1:3])
  # Along an axis, pixel p of block b is the sum over taps t of kernel entry 2 (size - 1 - t) + p times x at
  # b - (size - 1) + t. Blocks that `before` removes entirely are not computed, nor those after the last pixel.
  kernel = _even(kernel).reshape(size, 2, size, 2, inputs, outputs)[::-1, :, ::-1]
  kernel = kernel.transpose(0, 2, 4, 1, 3, 5).reshape(size, size, inputs, 4 * outputs)
  skipped, cut = divmod(before, 2)

  def pads(blocks_in: int, pixels_out: int) -> tuple[int, int]:
    return size - 1 - skipped, -(-(cut + pixels_out) // 2) - blocks_in + skipped

  y = grouped_conv(x, kernel, groups=1, padding=(pads(x.shape[1], height), pads(x.shape[2], width)))
  y = y.reshape(*y.shape[:3], 2, 2, outputs).swapaxes(2, 3)
  y = y.reshape(y.shape[0], 2 * y.shape[1], -1, outputs)
  return y[:, cut : cut + height, cut : cut + width]


def averaging_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Applies a 3x3 convolution, then `resample.mean2x`: [N, 2H, 2W, I], [3, 3, I, O] -> [N, H, W, O].

  Both are one convolution of 4x4, so it costs 16 products instead of 36 for each pixel of the result.
  """
  return strided_conv(x, _summed_pairs(kernel) / 4, padding=(1, 1))


def repeating_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Applies `resample.repeat2x`, then a 3x3 convolution: [N, H, W, I], [3, 3, I, O] -> [N, 2H, 2W, O].

  It is the adjoint of a convolution with sums of 2x2 pixels, so it costs 4 products instead of 9 for each pixel.
  """
  return transposed_conv(x, _summed_pairs(kernel[::-1, ::-1]), padding=(1, 1))


def downsampling_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Applies the filter, then a convolution of stride 2: [N, 2H, 2W, I], [3, 3, I, O] -> [N, H, W, O]."""
  return strided_conv(blur(x, padding=2), kernel, padding=(0, 1))


def upsampling_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Applies a transposed convolution, then the filter times 4: [N, H, W, I], [3, 3, I, O] -> [N, 2H, 2W, O]."""
  return 4 * blur(transposed_conv(x, kernel[::-1, ::-1], padding=(0, 0)), padding=1)


def _blocks(x: jax.Array) -> jax.Array:
  """Moves blocks of 2x2 pixels to channels: [N, 2H, 2W, C] -> [N, H, W, 4C]."""
  batch, height, width, channels = x.shape
  x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).swapaxes(2, 3)
  return x.reshape(batch, height // 2, width // 2, 4 * channels)


def _even(kernel: jax.Array) -> jax.Array:
  """Pads a kernel of odd size with zeros to an even one."""
  odd = kernel.shape[0] % 2
  return jnp.pad(kernel, ((0, odd), (0, odd), (0, 0), (0, 0)))


def _summed_pairs(kernel: jax.Array) -> jax.Array:
  """Convolves a kernel with 2x2 ones: [k, k, I, O] -> [k + 1, k + 1, I, O]."""
  for axis in (0, 1):
    before, after = ([pad if a == axis else (0, 0) for a in range(4)] for pad in ((1, 0), (0, 1)))
    kernel = jnp.pad(kernel, before) + jnp.pad(kernel, after)
  return kernel
