"""R3GAN with an image as condition: super-resolution, colourisation, inpainting ([P] has classes only).

G draws an image from noise and a condition c, and D judges pairs. One iteration is that of algorithms/r3gan.py, with

    D    fake = G(z, c)                c: the condition of the real image, by config.gan.condition
         other = G(z', c)              constant, in both phases
         mean( softplus(-(D(real, other, c) - D(fake, other, c))) + gamma / 2 (R1 + R2) )
    G    mean( softplus(-(D(G(z, c), other, c) - D(real, other, c))) )

A real image is not to be told from a sample beside another sample of its condition: so D finds out a G that ignores z,
whose fakes are equal to the other sample, as it never sees two reals of one condition (Adler and Öktem 2018, arXiv
1811.05910, whose critic sees two images of a condition). Without the other sample, samples hardly differ: see
docs/image_to_image.md. Other and fake have the same distribution, so what is learnt is still p(image | c).

G(z, c) is the guess without a network, `Condition.restore`, plus the output of the networks, which so learn what the
guess lacks (residual learning: Kim et al. 2016, arXiv 1511.04587).

R1 and R2 are on the gradient with respect to the image alone, as for every c and other there is a GAN of its own.
There is no loss of pixels: what c leaves open is drawn, not averaged.

There is no augmentation, which would have to change all that D sees alike; config.data.x_flip does.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np

from r3gan_jax.algorithms import r3gan
from r3gan_jax.algorithms.base import Batch, Carry, Params, split_keys
from r3gan_jax.algorithms.conditions import CONDITIONS, PAIRS, Condition, build_condition
from r3gan_jax.algorithms.images import Images, check_unconditional
from r3gan_jax.algorithms.r3gan import PHASES as PHASES
from r3gan_jax.algorithms.r3gan import R3GAN
from r3gan_jax.errors import UserError
from r3gan_jax.losses.penalties import PENALISED_GRADIENTS
from r3gan_jax.networks.image_to_image import ConditionalGenerator, PairDiscriminator
from r3gan_jax.networks.r3gan import Discriminator, Generator
from r3gan_jax.ops.grouped_conv import ALGORITHMS as GROUPED_CONV_ALGORITHMS
from r3gan_jax.ops.images import to_float
from r3gan_jax.ops.resample import repeated
from r3gan_jax.settings import Pair, below_one, not_negative, one_of, positive, setting

Array = TypeVar("Array", jax.Array, np.ndarray)

SAMPLES_SHOWN = 3
"""How many samples of a condition a picture has."""

_OF_CONDITIONS, _OF_OTHERS = 3, 4
"""Set the keys of conditions and of the other samples apart from those of a phase's other draws."""


@dataclass(frozen=True)
class Settings:
  """`config.gan`; those that R3GAN has, too, mean the same and have its defaults."""

  condition: str = setting("downscale_4", one_of((*CONDITIONS, PAIRS)))  # algorithms/conditions.py

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
  """The algorithm: R3GAN whose networks see a condition image in the place of a label, D also another sample of it.

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
    """Returns conditions uint8 [N, h, w, c] of uint8 or float images `input_shape` [N, ...], with keys [N]."""
    return self.condition.make(to_float(images), keys)

  def true(self, images: Array) -> Array:
    """Returns images [N, H, W, C] of `input_shape` [N, ...], without the conditions that come with them."""
    return images[..., : self.images.channels]

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
    return {"conditions_samples_and_reals": jnp.concatenate([shown, *samples, self.true(images)], axis=2)}

  def _real(self, batch: Batch) -> jax.Array:
    return to_float(self.true(batch["image"]))

  def _condition(self, batch: Batch, keys: jax.Array) -> jax.Array:
    return to_float(self.conditions(batch["image"], _apart(keys, _OF_CONDITIONS)))

  def _beside(self, params: Params, labels: jax.Array | None, keys: jax.Array) -> jax.Array:
    conditions = cast(jax.Array, labels)
    other = self._generate(params["generator"], self.noise(_apart(keys, _OF_OTHERS)), conditions)
    shown = repeated(conditions, self.condition.factor).astype(other.dtype)
    return jnp.concatenate([shown, other], axis=-1)

  def _generate(self, generator: Any, z: jax.Array, labels: jax.Array | None) -> jax.Array:
    drawn = super()._generate(generator, z, labels)
    return drawn + self.condition.restore(cast(jax.Array, labels), self.images.channels).astype(drawn.dtype)

  def _example(self) -> tuple[jax.Array, jax.Array]:
    return jnp.zeros((1, *self.image_shape)), jnp.zeros((1, *self.condition_shape))


def build(settings: Settings, images: Images, platform: str) -> ImageToImage:
  """Builds the algorithm; arguments and errors are those of `r3gan.build`."""
  check_unconditional("image_to_image", images)
  condition = build_condition(settings.condition, images)
  plain = r3gan.build(_of_r3gan(settings), images, platform)
  most = 2 ** (len(settings.widths) - 1)
  if condition.factor > most:
    raise UserError(
      f"config.gan.condition = {settings.condition!r} of images of {images.height}x{images.width} is smaller than the "
      f"first stage of the networks: choose a factor up to {most}"
    )
  kept = {field.name: getattr(plain, field.name) for field in fields(plain)}
  networks = {
    "generator": ConditionalGenerator(cast(Generator, plain.generator)),
    "discriminator": PairDiscriminator(cast(Discriminator, plain.discriminator)),
  }
  return ImageToImage(**kept | networks, condition=condition)


def _apart(keys: jax.Array, number: int) -> jax.Array:
  return jax.vmap(partial(jax.random.fold_in, data=number))(keys)


def _of_r3gan(settings: Settings) -> r3gan.Settings:
  shared = {
    field.name: getattr(settings, field.name) for field in fields(r3gan.Settings) if hasattr(settings, field.name)
  }
  return r3gan.Settings(**shared)
