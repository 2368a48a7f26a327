"""The non-leaking augmentation of StyleGAN2-ADA (Karras et al. 2020, arXiv 2006.06676, appendix B).

An augmentation is drawn (parameters.py), then applied, affinely in the image. A transform that is switched on but not
drawn for a sample is applied with neutral parameters.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from r3gan_jax.augment import colour, corruption, geometry
from r3gan_jax.augment.parameters import Parameters, draw


def augment(images: jax.Array, keys: jax.Array, p: jax.Array, multipliers: Mapping[str, float]) -> jax.Array:
  """Augments each image by draws from its own key.

  Args:
    images: [N, H, W, C], C = 1, 3 or 4 (RGBA, premultiplied), float in [-1, 1]; results may exceed that range.
    keys: [N] keys.
    p: float32 scalar in [0, 1], the probability of each transform, before its multiplier.
    multipliers: transform -> multiplier of p; see `parameters.TRANSFORMS`.
  """
  parameter_keys, noise_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
  return apply(images, draw(parameter_keys, p, multipliers), noise_keys)


def apply(images: jax.Array, parameters: Parameters, noise_keys: jax.Array | None = None) -> jax.Array:
  """Transforms each image of [N, H, W, C] by its parameters, in float32; the result has the images' dtype.

  `noise_keys` [N] are needed for noise only.
  """
  transformed = images.astype(jnp.float32)
  if any(name in parameters for name in geometry.NAMES):
    height, width, _ = images.shape[1:]
    inverses = jax.vmap(lambda parameters: geometry.inverse_matrix(parameters, height, width))(parameters)
    transformed = geometry.resample(transformed, inverses)
  transformed = jax.vmap(_apply)(transformed, parameters, noise_keys)
  return transformed.astype(images.dtype)


def _apply(image: jax.Array, parameters: Parameters, noise_key: jax.Array | None) -> jax.Array:
  if any(name in parameters for name in colour.NAMES):
    image = colour.recolour(image, parameters)
  if "image_filter" in parameters:
    image = corruption.filter_bands(image, parameters["image_filter"])
  if "noise" in parameters:
    assert noise_key is not None, "noise needs keys"
    image = corruption.add_noise(image, noise_key, parameters["noise"][0])
  if "cutout" in parameters:
    image = corruption.cut_out(image, parameters["cutout"])
  return image
