"""Exponential moving averages of parameters, with a half-life in images."""

from typing import Any

import jax
import jax.numpy as jnp


def ema_decay(half_life: jax.Array, batch_size: int) -> jax.Array:
  """Returns 0.5^(batch_size / max(half_life, 1e-8)), the decay per batch; 0 for a half-life of 0."""
  return 0.5 ** (batch_size / jnp.maximum(half_life, 1e-8))


def update_ema(average: Any, params: Any, decay: jax.Array) -> Any:
  """Returns params + decay * (average - params), leaf by leaf."""
  return jax.tree.map(lambda a, p: p + decay * (a - p), average, params)
