"""Between files' uint8 images and the networks' float images in [-1, 1]."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


def to_float(images: jax.Array) -> jax.Array:
  """uint8 in [0, 255] -> float32 in [-1, 1]; floating-point images pass through as they are."""
  if images.dtype != jnp.uint8:
    return images
  return images.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(images: jax.Array, dtype: DTypeLike = jnp.float32) -> jax.Array:
  """float in [-1, 1] -> uint8: `clip(x * 127.5 + 128, 0, 255)`, truncated (as the official code writes images).

  Args:
    images: of any float type.
    dtype: what image, product and sum are each rounded to: float32, or bfloat16, as the official code does where G's
      last stage computes in it. From 128 up bfloat16 has whole numbers only, so what float32 truncates is rounded to
      the nearest: of the recorded images (tests/golden/r3gan_bfloat16_cond_32px.npz) 41 % of the values become one
      level higher, none lower.
  """
  info = jnp.finfo(dtype)

  def rounded(x: jax.Array) -> jax.Array:
    # Casts would not do: XLA may leave them out, and so compute in float32 after all.
    return jax.lax.reduce_precision(x, info.nexp, info.nmant)

  levels = rounded(rounded(rounded(images) * 127.5) + 128.0)
  return jnp.clip(levels, 0.0, 255.0).astype(jnp.uint8)
