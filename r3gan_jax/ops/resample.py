"""Resampling by 2: separable, with the filter [1, 3, 3, 1], written as shifted sums that XLA fuses, or in 2x2 blocks.

[P] resamples with [1, 2, 1] and bilinear interpolation, which along an axis compose to
[1, 2, 1] * [1, 1] = [1, 3, 3, 1]. The image is zero outside its borders.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from r3gan_jax.ops import resample_tpu


def upsample2x(x: jax.Array) -> jax.Array:
  """Upsamples [N, H, W, C] to [N, 2H, 2W, C]; constants are preserved away from borders."""
  return _up_p.bind(x, scale=1.0)


def downsample2x(x: jax.Array) -> jax.Array:
  """Downsamples [N, 2H, 2W, C] to [N, H, W, C]: the filter [1, 3, 3, 1] / 8 per axis, then every second pixel."""
  return _down_p.bind(x, scale=1.0)


def repeat2x(x: jax.Array) -> jax.Array:
  """Repeats every pixel: [N, H, W, C] -> [N, 2H, 2W, C]."""
  return repeated(x, 2)


def repeated(x: jax.Array, factor: int) -> jax.Array:
  """Repeats every pixel: [N, H, W, C] -> [N, factor H, factor W, C]."""
  samples, height, width, channels = x.shape
  x = jnp.broadcast_to(x[:, :, None, :, None], (samples, height, factor, width, factor, channels))
  return x.reshape(samples, factor * height, factor * width, channels)


def mean2x(x: jax.Array) -> jax.Array:
  """Takes means of 2x2 pixels: [N, 2H, 2W, C] -> [N, H, W, C]."""
  samples, height, width, channels = x.shape
  return jnp.mean(x.reshape(samples, height // 2, 2, width // 2, 2, channels), axis=(2, 4))


def image_pyramid(images: jax.Array, stages: int) -> list[jax.Array]:
  """Returns images [N, H, W, C] at `stages` resolutions, the coarsest first, each the `mean2x` of the next."""
  pyramid = [images]
  for _ in range(stages - 1):
    pyramid.append(mean2x(pyramid[-1]))
  return pyramid[::-1]


def smooth(x: jax.Array) -> jax.Array:
  """Filters [N, H, W, C] with [1, 2, 1] / 4 per axis; the image is zero outside its borders."""
  for axis in (1, 2):
    previous, following = _neighbours(x, x, axis)
    x = 0.5 * x + 0.25 * (previous + following)
  return x


def blur(x: jax.Array, padding: int) -> jax.Array:
  """Filters with [1, 3, 3, 1] / 8 per axis at the same resolution: [N, H, W, C] -> [N, H + 2 padding - 3, ...]."""
  for axis in (1, 2):
    size = x.shape[axis] + 2 * padding - 3
    x = jnp.pad(x, [(padding, padding) if a == axis else (0, 0) for a in range(4)])
    outer, inner, next_inner, next_outer = (jax.lax.slice_in_dim(x, i, i + size, axis=axis) for i in range(4))
    x = 0.125 * (outer + next_outer) + 0.375 * (inner + next_inner)
  return x


def _upsample_both(x: jax.Array, scale: float) -> jax.Array:
  return scale * _upsample(_upsample(x, axis=1), axis=2)


def _downsample_both(x: jax.Array, scale: float) -> jax.Array:
  return scale * _downsample(_downsample(x, axis=1), axis=2)


def _upsample(x: jax.Array, axis: int) -> jax.Array:
  """Computes out[2i] = 3/4 x[i] + 1/4 x[i-1], out[2i+1] = 3/4 x[i] + 1/4 x[i+1]."""
  previous, following = _neighbours(x, x, axis)
  pair = jnp.stack([0.75 * x + 0.25 * previous, 0.75 * x + 0.25 * following], axis=axis + 1)
  return pair.reshape(*x.shape[:axis], 2 * x.shape[axis], *x.shape[axis + 1 :])


def _downsample(x: jax.Array, axis: int) -> jax.Array:
  """Computes out[i] = (x[2i-1] + 3 x[2i] + 3 x[2i+1] + x[2i+2]) / 8."""
  pairs = x.reshape(*x.shape[:axis], x.shape[axis] // 2, 2, *x.shape[axis + 1 :])
  even = jax.lax.index_in_dim(pairs, 0, axis + 1, keepdims=False)
  odd = jax.lax.index_in_dim(pairs, 1, axis + 1, keepdims=False)
  previous_odd, following_even = _neighbours(odd, even, axis)
  return 0.375 * (even + odd) + 0.125 * (previous_odd + following_even)


def _neighbours(x: jax.Array, y: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
  """Returns x[i - 1] and y[i + 1] along `axis`, zero outside."""
  size = x.shape[axis]
  zero = jnp.zeros_like(jax.lax.slice_in_dim(x, 0, 1, axis=axis))
  previous = jnp.concatenate([zero, jax.lax.slice_in_dim(x, 0, size - 1, axis=axis)], axis=axis)
  following = jnp.concatenate([jax.lax.slice_in_dim(y, 1, size, axis=axis), zero], axis=axis)
  return previous, following


# Both are primitives, each 4 times the transpose of the other, so each needs one fast form per platform.


def _define(name: str, ratio: float, portable: Callable, tpu: Callable) -> Primitive:
  primitive = Primitive(name)

  def abstract(x, *, scale):
    del scale
    batch, height, width, channels = x.shape
    return x.update(shape=(batch, int(height * ratio), int(width * ratio), channels), weak_type=False)

  def batch(operands, dimensions, **params):
    (x,), (dimension,) = operands, dimensions
    x = jnp.moveaxis(x, dimension, 0)
    out = primitive.bind(x.reshape(-1, *x.shape[2:]), **params)
    return out.reshape(*x.shape[:2], *out.shape[1:]), 0

  def on_tpu(x, **params):
    # Programs with a symbolic batch are for export, without our kernels.
    form = portable if jax.export.is_symbolic_dim(x.shape[0]) else tpu
    return form(x, **params)

  primitive.def_abstract_eval(abstract)
  primitive.def_impl(lambda x, **params: jax.jit(partial(primitive.bind, **params))(x))
  batching.primitive_batchers[primitive] = batch
  mlir.register_lowering(primitive, mlir.lower_fun(portable, multiple_results=False))
  mlir.register_lowering(primitive, mlir.lower_fun(on_tpu, multiple_results=False), platform="tpu")
  return primitive


_up_p = _define("r3gan_upsample2x", 2, _upsample_both, resample_tpu.upsample2x)
_down_p = _define("r3gan_downsample2x", 0.5, _downsample_both, resample_tpu.downsample2x)
ad.deflinear2(_up_p, lambda dy, x, *, scale: [_down_p.bind(dy, scale=4 * scale)])
ad.deflinear2(_down_p, lambda dy, x, *, scale: [_up_p.bind(dy, scale=scale / 4)])
