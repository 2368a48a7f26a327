"""Draws the parameters of augmentations: which transforms are applied to a sample, and how strongly.

Strengths and probabilities are those of StyleGAN2-ADA (Karras et al. 2020, arXiv 2006.06676, appendix B). Every part of
a transform is present with probability p times the transform's multiplier, independently of the others. Values are
functions of uniform numbers in (0, 1), so that quantiles can replace random draws.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Parameters = Mapping[str, jax.Array]
"""Transform -> values, float32 [N, parts * draws], for each transform that is switched on; see `TRANSFORMS`."""


class Transform(NamedTuple):
  """The distribution of a transform's values.

  Attributes:
    value: uniform numbers in (0, 1) -> values.
    parts: number of parts that are present or absent independently.
    draws: number of values of a part.
    absent: the value of an absent part, which leaves the image unchanged.
  """

  value: Callable[[jax.Array], jax.Array]
  parts: int = 1
  draws: int = 1
  absent: float = 0.0


def _normal(std: float) -> Callable[[jax.Array], jax.Array]:
  return lambda u: std * np.float32(np.sqrt(2)) * jax.lax.erf_inv(2 * u - 1)


def _symmetric(bound: float) -> Callable[[jax.Array], jax.Array]:
  return lambda u: bound * (2 * u - 1)


def _choice(count: int) -> Callable[[jax.Array], jax.Array]:
  return lambda u: jnp.floor(count * u)


TRANSFORMS: Mapping[str, Transform] = {
  # pixel blitting
  "x_flip": Transform(_choice(2)),  # 1: mirrored
  "rotate90": Transform(_choice(4)),  # quarter turns
  "integer_translation": Transform(_symmetric(0.125), draws=2),  # (x, y) as fractions of the sides, rounded to pixels
  # general geometry
  "isotropic_scale": Transform(_normal(0.2)),  # log2 of the factor
  "rotation": Transform(_symmetric(np.pi), parts=2),  # radians, before and after the anisotropic scale
  "anisotropic_scale": Transform(_normal(0.2)),  # log2 of the factor along x, minus that along y
  "fractional_translation": Transform(_normal(0.125), draws=2),  # (x, y) as fractions of the sides
  # colour
  "brightness": Transform(_normal(0.2)),
  "contrast": Transform(_normal(0.5)),  # log2 of the factor
  "luma_flip": Transform(_choice(2)),  # 1: light and dark exchanged, same hue
  "hue": Transform(_symmetric(np.pi)),  # radians
  "saturation": Transform(_normal(1.0)),  # log2 of the factor
  # corruption
  "image_filter": Transform(_normal(1.0), parts=4),  # log2 of the gain of each band
  "noise": Transform(lambda u: jnp.abs(_normal(0.1)(u))),  # standard deviation
  "cutout": Transform(
    lambda u: u, draws=2, absent=-1.0
  ),  # centre (x, y) as fractions of the sides; -1: outside the image
}
"""All transforms, in the order of application."""


def draw(keys: jax.Array, p: jax.Array, multipliers: Mapping[str, float]) -> Parameters:
  """Draws the parameters of a batch; a sample's depend on its own key alone.

  Args:
    keys: [N] keys.
    p: float32 scalar in [0, 1].
    multipliers: transform -> multiplier of p; transforms with 0 or no multiplier are switched off.
  """
  return jax.vmap(lambda key: _draw_sample(key, p, multipliers))(keys)


def _draw_sample(key: jax.Array, p: jax.Array, multipliers: Mapping[str, float]) -> Parameters:
  # Numbers for all transforms, so that switching one off does not change the others. Never 0, the quantile at which a
  # normal value is infinite.
  numbers = jax.random.uniform(key, (sum(t.parts + t.parts * t.draws for t in TRANSFORMS.values()),), minval=2.0**-24)
  parameters, start = {}, 0
  for name, transform in TRANSFORMS.items():
    middle = start + transform.parts
    end = middle + transform.parts * transform.draws
    if multiplier := multipliers.get(name):
      probability = jnp.minimum(p * multiplier, 1)
      if name == "rotation":  # two parts: *any* rotation shall have this probability
        probability = 1 - jnp.sqrt(1 - probability)
      present = jnp.repeat(numbers[start:middle] < probability, transform.draws)
      parameters[name] = jnp.where(present, transform.value(numbers[middle:end]), transform.absent)
    start = end
  return parameters
