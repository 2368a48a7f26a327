"""Between files' uint8 images and the networks' float images in [-1, 1]."""

import jax
import jax.numpy as jnp


def to_float(images: jax.Array) -> jax.Array:
  """uint8 in [0, 255] -> float32 in [-1, 1]; floating-point images pass through as they are."""
  if images.dtype != jnp.uint8:
    return images
  return images.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(images: jax.Array) -> jax.Array:
  """float in [-1, 1] -> uint8: `clip(x * 127.5 + 128, 0, 255)`, truncated (as the official code writes images)."""
  return jnp.clip(images * 127.5 + 128.0, 0.0, 255.0).astype(jnp.uint8)
