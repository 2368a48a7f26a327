"""StyleGAN2's convolutions that change the resolution by 2, with 3x3 kernels and the filter [1, 3, 3, 1].

Each is written as a convolution of stride 1 between blocks of 2x2 pixels as channels, for which `grouped_conv` has fast
derivatives of every order; on CPUs XLA's own, of strided convolutions, are up to 10 times as slow. That one takes 16
products where the 3x3 kernel has 9: the others are zero.
"""

import jax
import jax.numpy as jnp
import numpy as np

from r3gan_jax.ops.grouped_conv import grouped_conv
from r3gan_jax.ops.resample import blur


def downsampling_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """The filter, then the convolution at every second place: [N, 2H, 2W, I], [3, 3, I, O] -> [N, H, W, O]."""
  x = jnp.pad(blur(x, padding=2), ((0, 0), (0, 1), (0, 1), (0, 0)))
  batch, height, width, inputs = x.shape
  x = x.reshape(batch, height // 2, 2, width // 2, 2, inputs).swapaxes(2, 3)
  x = x.reshape(batch, height // 2, width // 2, 4 * inputs)
  # The block (i, j) of the 4x4 kernel holds the places (2i, 2j) to (2i + 1, 2j + 1).
  kernel = jnp.pad(kernel, ((0, 1), (0, 1), (0, 0), (0, 0))).reshape(2, 2, 2, 2, inputs, -1).swapaxes(1, 2)
  return grouped_conv(x, kernel.reshape(2, 2, 4 * inputs, -1), groups=1, padding=((0, 0), (0, 0)))


def upsampling_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Zeros between pixels, the convolution, the filter times 4: [N, H, W, I], [3, 3, I, O] -> [N, 2H, 2W, O]."""
  batch, height, width, inputs = x.shape
  outputs = kernel.shape[-1]
  # Along an axis, pixel 2i of the convolution is k[0] x[i-1] + k[2] x[i], pixel 2i + 1 is k[1] x[i]. In order [tap,
  # pixel], of the kernel with a zero behind it:
  taps = np.array([0, 3, 2, 1])
  kernel = jnp.pad(kernel, ((0, 1), (0, 1), (0, 0), (0, 0)))[taps][:, taps]
  kernel = kernel.reshape(2, 2, 2, 2, inputs, outputs).transpose(0, 2, 4, 1, 3, 5).reshape(2, 2, inputs, 4 * outputs)
  y = grouped_conv(x, kernel, groups=1, padding=((1, 1), (1, 1)))
  y = y.reshape(batch, height + 1, width + 1, 2, 2, outputs).swapaxes(2, 3)
  y = y.reshape(batch, 2 * height + 2, 2 * width + 2, outputs)[:, :-1, :-1]
  return 4 * blur(y, padding=1)
