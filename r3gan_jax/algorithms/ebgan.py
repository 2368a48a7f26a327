"""EBGAN: the energy-based GAN, whose D is an autoencoder (Zhao et al. 2017, arXiv 1609.03126).

D gives an image the energy E(x) = |x - D(x)|, a norm over all pixels: low where it reconstructs well. One iteration is
two phases. With z ~ U(-1, 1) and the margin m,

    D    mean( E(real) + max(0, m - E(G(z))) )               per image: a fake of energy m or more has no gradient
    G    mean( E(G(z)) ) + pulling_away_weight PT(codes)     with a new z and the updated D

PT is the pulling-away term (equation 4): the mean squared cosine between the codes, in D, of different fakes. It is a
mean over all pairs of the global batch. With random codes of length s it is about 1 / s.

Reals and fakes pass D in separate batches, each normalised by its own moments. D's running moments follow the reals,
G's those of its own phase.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from r3gan_jax.algorithms.base import DATA_AXIS, Batch, Carry, Hyperparameters, Metrics, Params, pictures_of_autoencoder
from r3gan_jax.algorithms.dcgan import DCGAN
from r3gan_jax.algorithms.images import Images, check_unconditional, lowest_stage
from r3gan_jax.errors import UserError
from r3gan_jax.networks.autoencoder import StridedAutoencoder
from r3gan_jax.networks.dcgan import Generator
from r3gan_jax.networks.layers import apply_in_training, apply_trained
from r3gan_jax.ops.images import to_float
from r3gan_jax.optimizers import at_rate
from r3gan_jax.schedules import constant
from r3gan_jax.settings import below_one, not_negative, positive, setting

PHASES = ("discriminator", "generator")


@dataclass(frozen=True)
class Settings:
  """`config.gan` of EBGAN; the defaults are the paper's, for CelebA at 64x64."""

  generator_widths: tuple[int, ...] = setting((1024, 512, 256, 128), positive)  # of each stage, from 4x4 (or 2x2) up
  discriminator_widths: tuple[int, ...] = setting((256, 128, 64), positive)  # of the code and each stage, upward
  noise_dim: int = setting(100, positive)  # length of z
  margin: float = setting(20.0, not_negative)  # a little above the energy of reals if D is trained alone
  pulling_away_weight: float = setting(0.1, not_negative)
  learning_rate: float = setting(2e-4, not_negative)
  beta1: float = setting(0.5, below_one)
  beta2: float = setting(0.999, below_one)
  ema_half_life: float = setting(0.0, not_negative)  # images; 0, as in the paper: no averaging


def smoke(settings: Settings) -> dict[str, Any]:
  """Returns the changes for `:smoke`: tiny networks with the same number of stages, a minute on a CPU."""
  widths = {name: (16,) * len(getattr(settings, name)) for name in ("generator_widths", "discriminator_widths")}
  return {**widths, "noise_dim": 16}


def energy(images: jax.Array, reconstructions: jax.Array) -> jax.Array:
  """Returns the Euclidean distance of each image [N, H, W, C] from its reconstruction, [N]."""
  squares = jnp.sum(jnp.square(images - reconstructions), axis=(1, 2, 3))
  return jnp.sqrt(squares + 1e-12)  # sqrt has no derivative at 0


def pulling_away(codes: jax.Array, axis_name: str) -> jax.Array:
  """Returns the mean squared cosine of each code [N, D] with all others of the global batch, [N].

  The mean over the batch is (|S S^T|^2 - N) / (N (N - 1)), with the codes at unit length as the rows of S.
  """
  rows = codes * jax.lax.rsqrt(jnp.sum(jnp.square(codes), axis=1, keepdims=True) + 1e-12)
  everyone = jax.lax.all_gather(rows, axis_name, tiled=True)
  with_itself = jnp.sum(jnp.square(rows), axis=1) ** 2
  return (jnp.sum(jnp.square(rows @ everyone.T), axis=1) - with_itself) / (everyone.shape[0] - 1)


@dataclass(frozen=True)
class EBGAN(DCGAN):
  """The algorithm (`algorithms.base.Algorithm`, `HasPictures` and `HasCodes`): DCGAN's phases and averages.

  Attributes:
    discriminator: (images, train) -> (reconstructions [N, H, W, C], codes [N, D]).
    margin, pulling_away_weight: see the module.
  """

  margin: float
  pulling_away_weight: float

  def pictures(self, params: Params, carry: Carry, images: jax.Array) -> dict[str, jax.Array]:
    """Returns each image beside its reconstruction by D, and beside the image of the nearest code."""
    moments = carry["discriminator_moments"]
    return pictures_of_autoencoder(images, *apply_trained(self.discriminator, params["discriminator"], moments, images))

  def encode(self, params: Params, carry: Carry, images: jax.Array) -> jax.Array:
    """Returns D's codes [N, D], normalised by running moments."""
    _, codes = apply_trained(self.discriminator, params["discriminator"], carry["discriminator_moments"], images)
    return codes

  def _discriminator_gradients(
    self, params: Params, carry: Carry, batch: Batch, keys: jax.Array, hyperparameters: Hyperparameters
  ) -> tuple[Params, Carry, Metrics]:
    del hyperparameters
    fake, _ = self._generate(params["generator"], carry, keys)
    real = to_float(batch["image"])

    def loss(discriminator: Any) -> tuple[jax.Array, tuple[Any, Metrics]]:
      of_reals, _, moments = self._judge(discriminator, carry, real)
      of_fakes, _, _ = self._judge(discriminator, carry, fake)
      total = jnp.mean(of_reals + nn.relu(self.margin - of_fakes))
      means = {"real_energy": jnp.mean(of_reals), "fake_energy": jnp.mean(of_fakes)}
      return total, (moments, {"loss": total} | means)

    gradients, (moments, metrics) = jax.grad(loss, has_aux=True)(params["discriminator"])
    return {"discriminator": gradients}, {**carry, "discriminator_moments": moments}, metrics

  def _generator_gradients(
    self, params: Params, carry: Carry, batch: Batch, keys: jax.Array, hyperparameters: Hyperparameters
  ) -> tuple[Params, Carry, Metrics]:
    del batch, hyperparameters

    def loss(generator: Any) -> tuple[jax.Array, tuple[Any, Metrics]]:
      fake, moments = self._generate(generator, carry, keys)
      energies, codes, _ = self._judge(params["discriminator"], carry, fake)
      alike = jnp.mean(pulling_away(codes, DATA_AXIS))
      total = jnp.mean(energies) + self.pulling_away_weight * alike
      return total, (moments, {"loss": total, "pulling_away": alike})

    gradients, (moments, metrics) = jax.grad(loss, has_aux=True)(params["generator"])
    return {"generator": gradients}, {**carry, "generator_moments": moments}, metrics

  def _judge(self, discriminator: Any, carry: Carry, images: jax.Array) -> tuple[jax.Array, jax.Array, Any]:
    """Returns energies [N] and codes [N, D], normalised by batch moments, and the updated running moments."""
    moments = carry["discriminator_moments"]
    (reconstructions, codes), moments = apply_in_training(self.discriminator, discriminator, moments, images)
    return energy(images, reconstructions), codes, moments


def build(settings: Settings, images: Images, platform: str) -> EBGAN:
  """Builds EBGAN; arguments and errors are those of `algorithms.r3gan.build`."""
  del platform
  check_unconditional("ebgan", images)
  lowest = lowest_stage(settings, "generator_widths", images)
  if not settings.discriminator_widths or images.side % 2 ** len(settings.discriminator_widths):
    raise UserError(
      f"config.gan.discriminator_widths = {settings.discriminator_widths} must halve config.data.resolution = "
      f"{images.side} at least once, and never an odd side"
    )
  optimizer = at_rate(optax.scale_by_adam(b1=settings.beta1, b2=settings.beta2))
  return EBGAN(
    generator=Generator(settings.generator_widths, DATA_AXIS, image_channels=images.channels, lowest=lowest),
    discriminator=StridedAutoencoder(settings.discriminator_widths, DATA_AXIS),
    noise_dim=settings.noise_dim,
    images=images,
    margin=settings.margin,
    pulling_away_weight=settings.pulling_away_weight,
    optimizers={"generator": optimizer, "discriminator": optimizer},
    schedules={name: constant(getattr(settings, name)) for name in ("learning_rate", "ema_half_life")},
  )
