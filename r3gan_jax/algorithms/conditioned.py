"""An image-to-image GAN with fixed conditions as a class-conditional GAN: a class is one of them.

For samples. So whatever draws classes draws from images, too: a row of a grid is a condition.
"""

from dataclasses import dataclass
from typing import cast

import jax
import numpy as np

from r3gan_jax.algorithms.base import Algorithm, Carry, Params
from r3gan_jax.algorithms.image_to_image import ImageToImage

CONDITIONS = "conditions"
"""The name of the condition images, uint8 [K, h, w, c], among the parameters of the networks."""


@dataclass(frozen=True)
class Conditioned:
  """The part of an `Algorithm` that `sampling.Sampler` uses; its params have `CONDITIONS` besides.

  Attributes:
    gan: draws from them.
    num_classes: K, how many there are.
  """

  gan: ImageToImage
  num_classes: int

  @property
  def image_shape(self) -> tuple[int, int, int]:
    return self.gan.image_shape

  def noise(self, keys: jax.Array) -> jax.Array:
    return self.gan.noise(keys)

  def generate(
    self, params: Params, carry: Carry, noise: jax.Array, labels: jax.Array, truncation: float = 1.0
  ) -> jax.Array:
    return self.gan.generate(params, carry, noise, params[CONDITIONS][labels], truncation)


def conditioned(gan: ImageToImage, conditions: np.ndarray) -> tuple[Algorithm, Params]:
  """Returns what draws from `conditions`, uint8 [K, h, w, c]: (algorithm, parameters that it needs besides its own)."""
  return cast(Algorithm, Conditioned(gan, len(conditions))), {CONDITIONS: conditions}
