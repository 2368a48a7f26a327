"""Small arrays (biases, scales, styles) beside activations."""

import jax
import jax.numpy as jnp


def broadcast_as(x: jax.Array, activation: jax.Array) -> jax.Array:
  """`x`, broadcast to the shape of `activation` and then cast to its dtype; its gradient is summed in x's own dtype.

  Cast first, x would get a gradient summed over samples and pixels in the activation's dtype; the sum of ones in
  bfloat16 ends at 256.
  """
  return jnp.broadcast_to(x, activation.shape).astype(activation.dtype)
