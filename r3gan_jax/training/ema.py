"""Exponential moving averages of parameters, by half-life in images."""

from typing import Any

import jax
import jax.numpy as jnp


def ema_decay(half_life: jax.Array, batch_size: int) -> jax.Array:
  """0.5^(batch / max(half_life, 1e-8)): what is kept of the average after one batch; 0 for a half-life of 0."""
  return 0.5 ** (batch_size / jnp.maximum(half_life, 1e-8))


def update_ema(average: Any, params: Any, decay: jax.Array) -> Any:
  """lerp(params, average, decay), leaf by leaf."""
  return jax.tree.map(lambda a, p: p + decay * (a - p), average, params)
