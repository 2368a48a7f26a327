"""Moving averages of parameters: exponential ones, with a half-life in images, and those with power functions."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from r3gan_jax.algorithms.base import Average, Hyperparameters, PowerFunctionAverage


def updated(
  rule: Average | PowerFunctionAverage,
  average: Any,
  params: Any,
  hyperparameters: Hyperparameters,
  images_seen: jax.Array,
  batch_size: int,
) -> Any:
  """Returns a tree `average` after an update of `params` by `batch_size` images, the last of `images_seen`."""
  if isinstance(rule, Average):
    return update_ema(average, params, ema_decay(hyperparameters[rule.half_life], batch_size))
  return update_power_average(average, params, power_weight(rule.std, images_seen, batch_size))


def ema_decay(half_life: jax.Array, batch_size: int) -> jax.Array:
  """Returns 0.5^(batch_size / max(half_life, 1e-8)), the decay per batch; 0 for a half-life of 0."""
  return 0.5 ** (batch_size / jnp.maximum(half_life, 1e-8))


def update_ema(average: Any, params: Any, decay: jax.Array) -> Any:
  """Returns params + decay * (average - params), leaf by leaf."""
  return jax.tree.map(lambda a, p: p + decay * (a - p), average, params)


def power_exponent(std: float) -> float:
  """Returns the exponent of the power function whose relative standard deviation is `std`.

  It is the largest root of (x + 1) / ((x + 2)^2 (x + 3)) = std^2 (Karras et al. 2024, arXiv 2312.02696, equations 123
  and 126); positive for 0 < std < 1 / sqrt(12).
  """
  inverse = std**-2
  return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def power_weight(std: float, images_seen: jax.Array, batch_size: int) -> jax.Array:
  """Returns the weight of the newest parameters, 1 - (1 - batch_size / images_seen)^(exponent + 1).

  The weights of all parameters so far are then the integrals of the power function over their batches. In float32 this
  form is precise where the weight is small; a decay near 1 is not. The weight of the first batch is 1.

  Args:
    std: see `power_exponent`.
    images_seen: int32 scalar, after the batch.
    batch_size: images.
  """
  return -jnp.expm1((power_exponent(std) + 1) * jnp.log1p(-batch_size / images_seen.astype(jnp.float32)))


def update_power_average(average: Any, params: Any, weight: jax.Array) -> Any:
  """Returns average + weight * (params - average), leaf by leaf; `params` bit for bit if the weight is 1."""
  return jax.tree.map(lambda a, p: jnp.where(weight == 1, p, a + weight * (p - a)), average, params)
