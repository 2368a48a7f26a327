"""Broadcasts small arrays (biases, scales, styles) to activations."""

import jax
import jax.numpy as jnp


def broadcast_as(x: jax.Array, activation: jax.Array) -> jax.Array:
  """Broadcasts x to the shape of `activation`, then casts it to its dtype, so that x's gradient is summed in x's dtype.

  If it were cast first, the sum over samples and pixels would be in the activation's dtype; a sum of ones in bfloat16
  ends at 256.
  """
  return jnp.broadcast_to(x, activation.shape).astype(activation.dtype)
