"""What is drawn for each sample: which transforms it meets, and how strong they are.

Strengths and probabilities are those of StyleGAN2-ADA (Karras et al. 2020, arXiv 2006.06676, appendix B). Every part
of a transform is present with probability p times the transform's multiplier, independently of the others. A part's
value is a function of uniform numbers in (0, 1), so that a quantile can take the place of any draw.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Parameters = Mapping[str, jax.Array]
"""Transform -> its values, float32 [N, parts * draws], for each transform that is switched on; see `TRANSFORMS`."""


class Transform(NamedTuple):
  """How a transform's values come about.

  Attributes:
    value: uniform numbers in (0, 1) -> values.
    parts: how many parts are present or absent independently of each other.
    draws: how many values a part has.
    absent: the value of a part that is not present, which leaves the image as it is.
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
  "integer_translation": Transform(_symmetric(0.125), draws=2),  # (x, y) in sides, rounded to pixels when applied
  # general geometry
  "isotropic_scale": Transform(_normal(0.2)),  # log2 of the factor
  "rotation": Transform(_symmetric(np.pi), parts=2),  # radians, before and after the anisotropic scale
  "anisotropic_scale": Transform(_normal(0.2)),  # log2 of the factor along x, minus that along y
  "fractional_translation": Transform(_normal(0.125), draws=2),  # (x, y) in sides
  # colour
  "brightness": Transform(_normal(0.2)),
  "contrast": Transform(_normal(0.5)),  # log2 of the factor
  "luma_flip": Transform(_choice(2)),  # 1: light and dark exchanged, hue kept
  "hue": Transform(_symmetric(np.pi)),  # radians
  "saturation": Transform(_normal(1.0)),  # log2 of the factor
  # corruption
  "image_filter": Transform(_normal(1.0), parts=4),  # log2 of the gain of each band
  "noise": Transform(lambda u: jnp.abs(_normal(0.1)(u))),  # its standard deviation
  "cutout": Transform(lambda u: u, draws=2, absent=-1.0),  # centre (x, y) in sides; -1: the square is off the image
}
"""Every transform, in the order in which they are applied."""


def draw(keys: jax.Array, p: jax.Array, multipliers: Mapping[str, float]) -> Parameters:
  """The parameters of a batch; a sample's depend on its own key alone.

  Args:
    keys: [N] keys.
    p: float32 scalar in [0, 1].
    multipliers: transform -> what p is multiplied by; those of multiplier 0, or not named, are switched off.
  """
  return jax.vmap(lambda key: _draw_sample(key, p, multipliers))(keys)


def at_quantiles(quantiles: Mapping[str, jax.Array]) -> Parameters:
  """The values of transforms that are present, at uniform numbers [..., parts * draws] in (0, 1)."""
  return {name: TRANSFORMS[name].value(u) for name, u in quantiles.items()}


def _draw_sample(key: jax.Array, p: jax.Array, multipliers: Mapping[str, float]) -> Parameters:
  # Numbers for all transforms, so that switching one off changes nothing for the others. Never 0: a normal draw's
  # quantile of 0 is infinite.
  numbers = jax.random.uniform(key, (sum(t.parts + t.parts * t.draws for t in TRANSFORMS.values()),), minval=2.0**-24)
  parameters, start = {}, 0
  for name, transform in TRANSFORMS.items():
    middle = start + transform.parts
    end = middle + transform.parts * transform.draws
    if multiplier := multipliers.get(name):
      probability = jnp.minimum(p * multiplier, 1)
      if name == "rotation":  # of two parts, so that *any* rotation has this probability
        probability = 1 - jnp.sqrt(1 - probability)
      present = jnp.repeat(numbers[start:middle] < probability, transform.draws)
      parameters[name] = jnp.where(present, transform.value(numbers[middle:end]), transform.absent)
    start = end
  return parameters
