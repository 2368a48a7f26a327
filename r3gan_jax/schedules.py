"""Values as functions of images seen; none counts steps."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

Schedule = Callable[[jax.Array], jax.Array]
"""images seen, an integer scalar -> the value, a float32 scalar; traceable, so one jitted step serves a whole run."""


def constant(value: float) -> Schedule:
  """The same throughout."""
  return lambda images_seen: jnp.full((), value, jnp.float32)


def linear(start: float, end: float, ramp_images: float) -> Schedule:
  """From `start` to `end` over the first `ramp_images` images, constant after it."""
  return lambda images_seen: start + _progress(images_seen, ramp_images) * (end - start)


def exponential(start: float, end: float, hold_images: int, ramp_images: float) -> Schedule:
  """`start` for `hold_images`, then falling by equal factors to `end` over `ramp_images`, constant after it."""
  return lambda images_seen: start * (end / start) ** _progress(images_seen - hold_images, ramp_images)


def cosine(start: float, end: float, ramp_images: float) -> Schedule:
  """Half a cosine from `start` to `end` over the first `ramp_images` images (the burn-in), constant after it.

  v = v0 + (1 - (1 + cos(pi t)) / 2) (v1 - v0) with t = images_seen / ramp_images, written with
  sin^2(pi t / 2) = 1 - (1 + cos(pi t)) / 2, which keeps its precision in float32 where t is small.
  """
  if ramp_images <= 0:
    raise ValueError(f"a schedule needs a positive burn_in_images, not {ramp_images}")
  return lambda images_seen: start + jnp.sin(0.5 * jnp.pi * _progress(images_seen, ramp_images)) ** 2 * (end - start)


def stairs(values: Sequence[float], boundaries: Sequence[int]) -> Schedule:
  """The first of `values`, and from each of the rising `boundaries`, in images, on the next one."""
  if len(values) != len(boundaries) + 1 or list(boundaries) != sorted(boundaries):
    raise ValueError(f"stairs need one value more than rising boundaries, not {values} and {boundaries}")

  def value(images_seen: jax.Array) -> jax.Array:
    passed = jnp.sum(images_seen >= jnp.asarray(boundaries, jnp.int32), dtype=jnp.int32)
    return jnp.asarray(values, jnp.float32)[passed]

  return value


def inverse_sqrt(peak: float, ramp_up_images: float, decay_images: float) -> Schedule:
  """Linearly from 0 to `peak`, and from `decay_images` on falling as 1 / sqrt(images) (Karras et al. 2024, eq. 67).

  peak * min(n / ramp_up_images, 1) / sqrt(max(n / decay_images, 1)) after n images.
  """

  def value(images_seen: jax.Array) -> jax.Array:
    beyond = jnp.maximum(jnp.asarray(images_seen, jnp.float32) / decay_images, 1.0)
    return peak * _progress(images_seen, ramp_up_images) / jnp.sqrt(beyond)

  return value


def _progress(images_seen: jax.Array, ramp_images: float) -> jax.Array:
  """The part of a ramp that is behind, from 0 to 1."""
  return jnp.clip(jnp.asarray(images_seen, jnp.float32) / ramp_images, 0.0, 1.0)
