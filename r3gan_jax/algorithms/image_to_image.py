"""R3GAN with an image as condition: super-resolution, colourisation, inpainting ([P] has classes only).

G draws an image from noise and a condition c, and D judges pairs. One iteration is that of algorithms/r3gan.py, with

    D    fake = G(z, c)                c: the condition of the real image, of which config.gan.condition makes it
         mean( softplus(-(D(real, c) - D(fake, c))) + gamma / 2 (R1 + R2) )
    G    mean( softplus(-(D(G(z, c), c) - D(real, c))) )

G(z, c) is the guess without a network, `Condition.restore`, plus the output of the networks, which so learn what the
guess lacks (residual learning: Kim et al. 2016, arXiv 1511.04587).

R1 and R2 are on the gradient with respect to the image alone, as for every c there is a GAN of its own. There is no
loss of pixels: what c leaves open is drawn, not averaged.

There is no augmentation, which would have to change both images of a pair alike; config.data.x_flip does.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp

from r3gan_jax.algorithms import r3gan
from r3gan_jax.algorithms.base import Batch, Carry, Params, split_keys
from r3gan_jax.algorithms.conditions import CONDITIONS, Condition
from r3gan_jax.algorithms.images import Images, check_unconditional
from r3gan_jax.algorithms.r3gan import PHASES as PHASES
from r3gan_jax.algorithms.r3gan import R3GAN
from r3gan_jax.errors import UserError
from r3gan_jax.losses.penalties import PENALISED_GRADIENTS
from r3gan_jax.networks.image_to_image import ConditionalGenerator, PairDiscriminator
from r3gan_jax.networks.r3gan import Discriminator, Generator
from r3gan_jax.ops.grouped_conv import ALGORITHMS as GROUPED_CONV_ALGORITHMS
from r3gan_jax.ops.images import to_float
from r3gan_jax.settings import Pair, below_one, not_negative, one_of, positive, setting

SAMPLES_SHOWN = 3
"""How many samples of a condition a picture has."""

_OF_CONDITIONS = 3
"""Sets the keys of conditions apart from those of a phase's other draws, `R3GAN._split_keys`."""


@dataclass(frozen=True)
class Settings:
  """`config.gan`; those that R3GAN has, too, mean the same and have its defaults."""

  condition: str = setting("downscale_4", one_of(CONDITIONS))  # algorithms/conditions.py

  widths: tuple[int, ...] = setting((768, 768, 768, 768), positive)
  cardinalities: tuple[int, ...] = setting((96, 96, 96, 96), positive)
  blocks: tuple[int, ...] = setting((2, 2, 2, 2), positive)
  expansion: float = setting(2.0, positive)
  noise_dim: int = setting(64, positive)
  bfloat16_stages: int = setting(4, not_negative)
  bfloat16: str = setting("auto", one_of(("auto", "on", "off")))
  grouped_conv: str = setting("auto", one_of(("auto", "fused", *GROUPED_CONV_ALGORITHMS)))
  penalised_gradient: str = setting("directional", one_of(PENALISED_GRADIENTS))

  # Schedules, (from, to): half a cosine over the burn-in, then constant.
  burn_in_images: int = setting(20_000_000, positive)
  learning_rate: Pair = setting((2e-4, 5e-5), not_negative)
  beta2: Pair = setting((0.9, 0.99), below_one)
  gamma: Pair = setting((1.0, 0.1), not_negative)
  ema_half_life: Pair = setting((0.0, 500_000.0), not_negative)


def smoke(settings: Settings) -> dict[str, Any]:
  """Returns the changes for `:smoke`."""
  changes = r3gan.smoke(_of_r3gan(settings))
  return {name: value for name, value in changes.items() if hasattr(settings, name)}


@dataclass(frozen=True, kw_only=True)
class ImageToImage(R3GAN):
  """The algorithm: R3GAN whose networks see a condition image in the place of a label.

  Attributes:
    condition: its kind.
  """

  condition: Condition

  @property
  def leading_rows(self) -> Mapping[str, Mapping[str, int]]:
    return {}

  @property
  def condition_shape(self) -> tuple[int, int, int]:
    """(h, w, c) of a condition."""
    return self.condition.shape(self.images)

  def conditions(self, images: jax.Array, keys: jax.Array) -> jax.Array:
    """Makes conditions uint8 [N, h, w, c] from uint8 or float images [N, H, W, C] and keys [N]."""
    return self.condition.make(to_float(images), keys)

  def generate(
    self, params: Params, carry: Carry, noise: jax.Array, conditions: jax.Array | None, truncation: float = 1.0
  ) -> jax.Array:
    """Draws images as `R3GAN.generate`, of conditions uint8 [N, h, w, c]; see `Conditioned` for those that have none.

    Raises:
      UserError: there are no conditions.
    """
    if conditions is None:
      raise UserError(
        "an image-to-image GAN draws from images: name them by r3gan sample --condition=FOLDER; other commands draw "
        "from seeds alone"
      )
    return super().generate(params, carry, noise, to_float(conditions), truncation)

  def pictures(self, params: Params, carry: Carry, images: jax.Array) -> Mapping[str, jax.Array]:
    """Shows, side by side, the condition of each image, samples of it, and the image."""
    condition_keys, *sample_keys = split_keys(jax.random.split(jax.random.key(0), len(images)), 1 + SAMPLES_SHOWN)
    conditions = self.conditions(images, condition_keys)
    samples = [self.generate(params, carry, self.noise(keys), conditions) for keys in sample_keys]
    shown = self.condition.shown(conditions, self.images.channels)
    return {"conditions_samples_and_reals": jnp.concatenate([shown, *samples, images], axis=2)}

  def _condition(self, batch: Batch, keys: jax.Array) -> jax.Array:
    keys = jax.vmap(partial(jax.random.fold_in, data=_OF_CONDITIONS))(keys)
    return to_float(self.conditions(batch["image"], keys))

  def _generate(self, generator: Any, z: jax.Array, labels: jax.Array | None) -> jax.Array:
    drawn = super()._generate(generator, z, labels)
    return drawn + self.condition.restore(cast(jax.Array, labels), self.images.channels).astype(drawn.dtype)

  def _example(self) -> tuple[jax.Array, jax.Array]:
    return jnp.zeros((1, *self.image_shape)), jnp.zeros((1, *self.condition_shape))


def build(settings: Settings, images: Images, platform: str) -> ImageToImage:
  """Builds the algorithm; arguments and errors are those of `r3gan.build`."""
  name, condition = f"config.gan.condition = {settings.condition!r}", CONDITIONS[settings.condition]
  check_unconditional("image_to_image", images)
  plain = r3gan.build(_of_r3gan(settings), images, platform)
  most = 2 ** (len(settings.widths) - 1)
  if condition.factor > most:
    raise UserError(
      f"{name} of images of {images.height}x{images.width} is smaller than the first stage of the networks: choose a "
      f"factor up to {most}"
    )
  condition.check(images)
  kept = {field.name: getattr(plain, field.name) for field in fields(plain)}
  networks = {
    "generator": ConditionalGenerator(cast(Generator, plain.generator)),
    "discriminator": PairDiscriminator(cast(Discriminator, plain.discriminator)),
  }
  return ImageToImage(**kept | networks, condition=condition)


def _of_r3gan(settings: Settings) -> r3gan.Settings:
  shared = {
    field.name: getattr(settings, field.name) for field in fields(r3gan.Settings) if hasattr(settings, field.name)
  }
  return r3gan.Settings(**shared)
