"""Algorithms for ops/grouped_conv.py in XLA's own operations.

Each computes both operations; they agree up to rounding. Arguments and results are those of `grouped_conv` and
`weight_gradient`.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from r3gan_jax.ops.padding import Padding
from r3gan_jax.ops.partitioning import match_varying_axes

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def conv_native(x: jax.Array, kernel: jax.Array, *, groups: int, padding: Padding) -> jax.Array:
  return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=_DIMENSIONS, feature_group_count=groups)


def weight_gradient_native(
  x: jax.Array, dy: jax.Array, *, groups: int, padding: Padding, kernel_size: tuple[int, int]
) -> jax.Array:
  """Computes XLA's own gradient in the kernel; the convolution is linear in it, so any kernel serves as the point."""
  # For a kernel replicated under shard_map, JAX would sum the gradient over devices.
  _, kernel = match_varying_axes(x, jnp.zeros((*kernel_size, x.shape[-1] // groups, dy.shape[-1]), x.dtype))
  _, pull_back = jax.vjp(partial(conv_native, x, groups=groups, padding=padding), kernel)
  (gradient,) = pull_back(dy)
  return gradient


def conv_per_group(x: jax.Array, kernel: jax.Array, *, groups: int, padding: Padding) -> jax.Array:
  """Computes one plain convolution per group."""

  def one_group(operands: tuple[jax.Array, jax.Array]) -> jax.Array:
    return conv_native(*operands, groups=1, padding=padding)

  return join_groups(lax.map(one_group, (split_groups(x, groups), split_groups(kernel, groups))))


def weight_gradient_per_group(
  x: jax.Array, dy: jax.Array, *, groups: int, padding: Padding, kernel_size: tuple[int, int]
) -> jax.Array:
  """Computes, per group, matrix products with patches (im2col), in the way that is fastest on CPUs for the shape.

  Patches of a whole batch do not fit the caches, unless images are small; and patches of dy are smaller than those of x
  if there are fewer outputs than inputs.
  """
  x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
  if 4 * dy.shape[-1] <= x.shape[-1]:
    way = _product_with_patches_of_dy
  elif dy.shape[1] * dy.shape[2] >= _PIXELS_OF_ONE_PRODUCT and max(kernel_size) > 1:
    way = _products_of_each_image
  else:
    way = _product_with_patches

  def one_group(operands: tuple[jax.Array, jax.Array]) -> jax.Array:
    return way(*operands, kernel_size)

  return join_groups(lax.map(one_group, (split_groups(x, groups), split_groups(dy, groups))))


_PIXELS_OF_ONE_PRODUCT = 256
"""From so many pixels of dy on, the products of each image are faster than one of the batch."""

# Three ways to compute a weight gradient: padded x [N, H, W, I], dy [N, H', W', O], (kh, kw) -> [kh, kw, I, O].


def _product_with_patches(x: jax.Array, dy: jax.Array, kernel_size: tuple[int, int]) -> jax.Array:
  """Computes one product."""
  (height, width), (batch, out_height, out_width, outputs) = kernel_size, dy.shape
  patches = jnp.stack(
    [x[:, i : i + out_height, j : j + out_width] for i in range(height) for j in range(width)], axis=3
  )
  patches = patches.reshape(batch * out_height * out_width, height * width * x.shape[-1])
  product = jnp.einsum("mk,mo->ko", patches, dy.reshape(batch * out_height * out_width, outputs))
  return product.reshape(height, width, -1, outputs)


def _product_with_patches_of_dy(x: jax.Array, dy: jax.Array, kernel_size: tuple[int, int]) -> jax.Array:
  """Computes one product: for entry (i, j) of the kernel, pixel (r, s) of x meets pixel (r - i, s - j) of dy."""
  (height, width), (batch, in_height, in_width, inputs) = kernel_size, x.shape
  dy = jnp.pad(dy, ((0, 0), (height - 1,) * 2, (width - 1,) * 2, (0, 0)))
  patches = jnp.stack(
    [dy[:, i : i + in_height, j : j + in_width] for i in reversed(range(height)) for j in reversed(range(width))],
    axis=3,
  )
  patches = patches.reshape(batch * in_height * in_width, height * width * dy.shape[-1])
  product = jnp.einsum("mi,mk->ik", x.reshape(batch * in_height * in_width, inputs), patches)
  return product.reshape(inputs, height, width, -1).transpose(1, 2, 0, 3)


def _products_of_each_image(x: jax.Array, dy: jax.Array, kernel_size: tuple[int, int]) -> jax.Array:
  """Computes, for each image and each row of the kernel, a product with patches of one row."""
  (height, width), (batch, out_height, out_width, outputs) = kernel_size, dy.shape
  rows = jnp.concatenate([x[:, :, j : j + out_width] for j in range(width)], axis=3)
  rows = lax.optimization_barrier(rows.reshape(batch, x.shape[1] * out_width, width * x.shape[-1]))
  pixels = out_height * out_width

  def add(total: jax.Array, image: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
    rows, dy = image
    starts = range(0, height * out_width, out_width)
    return total + jnp.stack([jnp.einsum("mk,mo->ok", rows[i : i + pixels], dy) for i in starts]), None

  zeros = jnp.zeros((height, outputs, width * x.shape[-1]), x.dtype)
  dy = dy.reshape(batch, pixels, outputs)
  total, _ = lax.scan(add, match_varying_axes(zeros, dy)[0], (rows, dy))
  return total.swapaxes(1, 2).reshape(height, width, -1, outputs)


def conv_merged(x: jax.Array, kernel: jax.Array, *, groups: int, padding: Padding, merge: int) -> jax.Array:
  """Computes with `merge` neighbouring groups as one, whose kernel is block-diagonal: wider groups suit GPUs better."""
  height, width, inputs, outputs = kernel.shape
  blocks = kernel.reshape(height, width, 1, inputs, groups // merge, merge, -1)
  kernel = _diagonal(blocks, merge).reshape(height, width, merge * inputs, outputs)
  return conv_native(x, kernel, groups=groups // merge, padding=padding)


def weight_gradient_merged(
  x: jax.Array, dy: jax.Array, *, groups: int, padding: Padding, kernel_size: tuple[int, int], merge: int
) -> jax.Array:
  """Computes the gradient of the block-diagonal kernel, and keeps its blocks."""
  gradient = weight_gradient_native(x, dy, groups=groups // merge, padding=padding, kernel_size=kernel_size)
  blocks = gradient.reshape(*kernel_size, merge, -1, groups // merge, merge, dy.shape[-1] // groups)
  return _diagonal(blocks, merge).sum(2).reshape(*kernel_size, -1, dy.shape[-1])


def _diagonal(blocks: jax.Array, merge: int) -> jax.Array:
  """Returns blocks [kh, kw, merge or 1, I, groups, merge, O], and zeros where the two group axes differ."""
  return jnp.where(jnp.eye(merge, dtype=bool)[:, None, None, :, None], blocks, jnp.zeros((), blocks.dtype))


def conv_pointwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
  return jnp.einsum("nhwi,io->nhwo", x, kernel[0, 0])


def weight_gradient_pointwise(x: jax.Array, dy: jax.Array) -> jax.Array:
  return jnp.einsum("nhwi,nhwo->io", x, dy)[None, None]


def weight_gradient_pointwise_cpu(x: jax.Array, dy: jax.Array) -> jax.Array:
  """Uses pixels as rows: XLA's CPU product over several axes takes up to twice as long. On TPUs it would copy."""
  return (x.reshape(-1, x.shape[-1]).T @ dy.reshape(-1, dy.shape[-1]))[None, None]


def split_groups(x: jax.Array, groups: int) -> jax.Array:
  """[..., G*C] -> [G, ..., C]."""
  return jnp.moveaxis(x.reshape(*x.shape[:-1], groups, -1), -2, 0)


def join_groups(x: jax.Array) -> jax.Array:
  """[G, ..., C] -> [..., G*C]."""
  x = jnp.moveaxis(x, 0, -2)
  return x.reshape(*x.shape[:-2], -1)
