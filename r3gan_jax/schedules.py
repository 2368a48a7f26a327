"""Values as functions of images seen; none counts steps."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Schedule = Callable[[jax.Array], jax.Array]
"""images seen, an integer scalar -> the value, a float32 scalar; traceable, so one jitted step serves a whole run."""


def cosine(start: float, end: float, ramp_images: float) -> Schedule:
  """Half a cosine from `start` to `end` over the first `ramp_images` images (the burn-in), constant after it.

  v = v0 + (1 - (1 + cos(pi t)) / 2) (v1 - v0) with t = images_seen / ramp_images, written with
  sin^2(pi t / 2) = 1 - (1 + cos(pi t)) / 2, which keeps its precision in float32 where t is small.
  """
  if ramp_images <= 0:
    raise ValueError(f"a schedule needs a positive burn_in_images, not {ramp_images}")

  def value(images_seen: jax.Array) -> jax.Array:
    t = jnp.minimum(jnp.asarray(images_seen, jnp.float32) / ramp_images, 1.0)
    return start + jnp.sin(0.5 * jnp.pi * t) ** 2 * (end - start)

  return value
