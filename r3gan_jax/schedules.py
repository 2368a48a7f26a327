"""Schedules as functions of images seen, not of steps."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

Schedule = Callable[[jax.Array], jax.Array]
"""images seen, an integer scalar -> value, a float32 scalar; traceable, so that a run compiles one step."""


def constant(value: float) -> Schedule:
  """Returns a constant schedule."""
  return lambda images_seen: jnp.full((), value, jnp.float32)


def linear(start: float, end: float, ramp_images: float) -> Schedule:
  """Returns a linear schedule from `start` to `end` over `ramp_images` images, then constant."""
  return lambda images_seen: start + _progress(images_seen, ramp_images) * (end - start)


def exponential(start: float, end: float, hold_images: int, ramp_images: float) -> Schedule:
  """Returns `start` for `hold_images`, then an exponential decay to `end` over `ramp_images`, then constant."""
  return lambda images_seen: start * (end / start) ** _progress(images_seen - hold_images, ramp_images)


def cosine(start: float, end: float, ramp_images: float) -> Schedule:
  """Returns half a cosine from `start` to `end` over `ramp_images` images (the burn-in), then constant.

  v = v0 + (1 - (1 + cos(pi t)) / 2) (v1 - v0) with t = images_seen / ramp_images, written with
  sin^2(pi t / 2) = 1 - (1 + cos(pi t)) / 2, which is precise in float32 for small t.
  """
  if ramp_images <= 0:
    raise ValueError(f"ramp_images = {ramp_images} must be positive")
  return lambda images_seen: start + jnp.sin(0.5 * jnp.pi * _progress(images_seen, ramp_images)) ** 2 * (end - start)


def stairs(values: Sequence[float], boundaries: Sequence[int]) -> Schedule:
  """Returns a step function: `values[i]` from `boundaries[i - 1]` images on; boundaries rise."""
  if len(values) != len(boundaries) + 1 or list(boundaries) != sorted(boundaries):
    raise ValueError(f"values = {values} must be one more than boundaries = {boundaries}, which must increase")

  def value(images_seen: jax.Array) -> jax.Array:
    passed = jnp.sum(images_seen >= jnp.asarray(boundaries, jnp.int32), dtype=jnp.int32)
    return jnp.asarray(values, jnp.float32)[passed]

  return value


def growth(start: int, hold_images: int, ramp_images: int) -> Schedule:
  """Returns stairs with slopes from `start` down to 0: each whole number for `hold_images`, then a ramp to the next."""

  def value(images_seen: jax.Array) -> jax.Array:
    passed, position = jnp.divmod(images_seen, hold_images + ramp_images)
    ramp = _progress(position - hold_images, ramp_images)
    return jnp.maximum(start - passed.astype(jnp.float32) - ramp, 0.0)

  return value


def inverse_sqrt(peak: float, ramp_up_images: float, decay_images: float) -> Schedule:
  """Returns a linear ramp to `peak`, and from `decay_images` on a decay by 1 / sqrt(n) (Karras et al. 2024, eq. 67).

  peak * min(n / ramp_up_images, 1) / sqrt(max(n / decay_images, 1)) after n images.
  """

  def value(images_seen: jax.Array) -> jax.Array:
    beyond = jnp.maximum(jnp.asarray(images_seen, jnp.float32) / decay_images, 1.0)
    return peak * _progress(images_seen, ramp_up_images) / jnp.sqrt(beyond)

  return value


def _progress(images_seen: jax.Array, ramp_images: float) -> jax.Array:
  """Returns the fraction of a ramp that has passed, from 0 to 1."""
  return jnp.clip(jnp.asarray(images_seen, jnp.float32) / ramp_images, 0.0, 1.0)
