"""A GAN of an autoencoder's latents as a GAN of images: it draws latents, and decodes them.

For samples and scores; what is trained is the GAN of latents.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from r3gan_jax.algorithms.base import Algorithm, Carry, Params
from r3gan_jax.algorithms.capabilities import HasBfloat16
from r3gan_jax.data.latents import STD, Numbers
from r3gan_jax.networks.vae import Autoencoder

AUTOENCODER = "autoencoder"
"""The name of the autoencoder's parameters among those of the networks."""

_AT_ONCE = 8


@dataclass(frozen=True)
class Decoded:
  """The part of an `Algorithm` that `sampling.Sampler` and metrics use; its params have `AUTOENCODER` besides.

  Attributes:
    gan: draws latents.
    autoencoder: decodes them.
    numbers: of the data set of latents.
    at_once: how many images are decoded at a time, as they take more memory than their latents; 0: all.
  """

  gan: Algorithm
  autoencoder: Autoencoder
  numbers: Numbers
  at_once: int = _AT_ONCE

  @property
  def image_shape(self) -> tuple[int, int, int]:
    return self.numbers.image

  @property
  def num_classes(self) -> int:
    return self.gan.num_classes

  def noise(self, keys: jax.Array) -> jax.Array:
    return self.gan.noise(keys)

  def generate(
    self, params: Params, carry: Carry, noise: jax.Array, labels: jax.Array | None, truncation: float = 1.0
  ) -> jax.Array:
    return self.decode(params, self.gan.generate(params, carry, noise, labels, truncation))

  def in_float32(self) -> "Decoded":
    return replace(self, gan=self.gan.in_float32()) if isinstance(self.gan, HasBfloat16) else self

  def decode(self, params: Params, latents: jax.Array) -> jax.Array:
    """Returns the images, float32 [N, H, W, C] in about [-1, 1], of latents [N, h, w, c] as they are trained on."""
    numbers = self.numbers
    scale, shift = (jnp.asarray(values)[None, None, None] for values in (numbers.std, numbers.mean))
    latents = latents.astype(jnp.float32) * (scale / STD) + shift

    def decoded(latents: jax.Array) -> Any:
      return self.autoencoder.apply({"params": params[AUTOENCODER]}, latents, method="decode")

    if self.at_once:
      images = jax.lax.map(lambda latent: decoded(latent[None])[0], latents, batch_size=self.at_once)
    else:
      images = decoded(latents)
    black, white = numbers.range
    return (images - black) * (2 / (white - black)) - 1
