"""BiGAN: a GAN of pairs (x, z), with an encoder E beside G (Donahue et al. 2017, arXiv 1605.09782).

D discriminates pairs of a real image and its code, a = D(x, E(x)), from pairs of a code and its image, b = D(G(z), z),
with z ~ U(-1, 1). One iteration is one phase; all gradients are taken at the same parameters:

    D      1/2 mean( softplus(-a) + softplus(b) )
    G, E   1/2 mean( softplus(a) + softplus(-b) )

At the optimum E inverts G (theorem 2), so G(E(x)) is a reconstruction. The two kinds of pairs pass D in separate
batches, each normalised by its own moments; D's running moments follow the pairs of reals.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from r3gan_jax.algorithms.base import (
  DATA_AXIS,
  Average,
  Batch,
  Carry,
  Hyperparameters,
  Metrics,
  Params,
  Phase,
  UniformGAN,
  pictures_of_autoencoder,
)
from r3gan_jax.algorithms.images import Images, check_unconditional
from r3gan_jax.losses.adversarial import NON_SATURATING
from r3gan_jax.networks.bigan import Discriminator, Encoder, Generator
from r3gan_jax.networks.layers import MOMENTS, apply_in_training, apply_trained
from r3gan_jax.ops.images import to_float
from r3gan_jax.optimizers import at_rate
from r3gan_jax.schedules import constant, exponential
from r3gan_jax.settings import Pair, below_one, not_negative, positive, setting

PHASES = ("pairs",)
NETWORKS = ("generator", "encoder", "discriminator")


@dataclass(frozen=True)
class Settings:
  """`config.gan` of BiGAN; the defaults are the authors', for MNIST."""

  width: int = setting(1024, positive)  # of all hidden layers
  noise_dim: int = setting(50, positive)  # length of z
  learning_rate: Pair = setting((2e-4, 2e-6), positive)  # (from, to): constant, then an exponential decay
  hold_images: int = setting(12_000_000, not_negative)
  decay_images: int = setting(12_000_000, positive)
  beta1: float = setting(0.5, below_one)
  beta2: float = setting(0.999, below_one)
  l2: float = setting(2.5e-5, not_negative)  # this times the weights is added to the gradients
  ema_half_life: float = setting(0.0, not_negative)  # images; 0, as published: no averaging


def smoke(settings: Settings) -> dict[str, Any]:
  """Returns the changes for `:smoke`: tiny networks, a minute on a CPU."""
  del settings
  return {"width": 16, "noise_dim": 8}


@dataclass(frozen=True)
class BiGAN(UniformGAN):
  """The algorithm (`algorithms.base.Algorithm`, `HasPictures` and `HasCodes`), unconditional.

  Attributes:
    generator: (z [N, noise_dim], train) -> pixels [N, H W C] in [0, 1].
    encoder: (pixels, train) -> codes [N, noise_dim].
    discriminator: (pixels, codes, train) -> logits [N].
    optimizers: see `Algorithm`.
  """

  generator: nn.Module
  encoder: nn.Module
  discriminator: nn.Module
  optimizers: Mapping[str, optax.GradientTransformationExtraArgs] = field(compare=False)

  @property
  def phases(self) -> Sequence[Phase]:
    (pairs,) = PHASES
    return (Phase(pairs, NETWORKS, self._gradients, counts_images=True, group=None),)

  @property
  def averages(self) -> Mapping[str, Average]:
    averaged = ("generator", "generator_moments", "encoder", "encoder_moments")
    return {name: Average(name, "ema_half_life") for name in averaged}

  def init(self, key: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
    z, pixels = jnp.zeros((1, self.noise_dim)), jnp.zeros((1, math.prod(self.image_shape)))
    generator_key, encoder_key, discriminator_key = jax.random.split(key, 3)
    variables = {
      "generator": self.generator.init(generator_key, z, train=False),
      "encoder": self.encoder.init(encoder_key, pixels, train=False),
      "discriminator": self.discriminator.init(discriminator_key, pixels, z, train=False),
    }
    params = {network: variables[network]["params"] for network in NETWORKS}
    return params, {f"{network}_moments": variables[network][MOMENTS] for network in NETWORKS}

  def generate(
    self, params: Params, carry: Carry, noise: jax.Array, labels: jax.Array | None, truncation: float = 1.0
  ) -> jax.Array:
    """Draws images, normalised by running moments. Truncation multiplies the code (not in the paper)."""
    del labels
    pixels = apply_trained(self.generator, params["generator"], carry["generator_moments"], truncation * noise)
    return 2 * pixels.reshape(-1, *self.image_shape) - 1

  def encode(self, params: Params, carry: Carry, images: jax.Array) -> jax.Array:
    """Encodes images as codes [N, noise_dim], normalised by running moments."""
    return apply_trained(self.encoder, params["encoder"], carry["encoder_moments"], _pixels(images))

  def pictures(self, params: Params, carry: Carry, images: jax.Array) -> dict[str, jax.Array]:
    """Returns each image beside its reconstruction G(E(x)), and beside the image of the nearest code."""
    codes = self.encode(params, carry, images)
    return pictures_of_autoencoder(images, self.generate(params, carry, codes, None), codes)

  def _gradients(
    self, params: Params, carry: Carry, batch: Batch, keys: jax.Array, hyperparameters: Hyperparameters
  ) -> tuple[Params, Carry, Metrics]:
    del hyperparameters
    x, z = _pixels(to_float(batch["image"])), self.noise(keys)

    def logits(params: Params) -> tuple[jax.Array, jax.Array, Carry]:
      """Returns a, b and the updated moments."""
      moments = dict(carry)

      def apply(network: str, *inputs: jax.Array) -> jax.Array:
        name = f"{network}_moments"
        result, moments[name] = apply_in_training(getattr(self, network), params[network], carry[name], *inputs)
        return result

      b = apply("discriminator", apply("generator", z), z)
      a = apply("discriminator", x, apply("encoder", x))  # last, so that its moments are kept
      return a, b, moments

    def loss_of_discriminator(discriminator: Any) -> tuple[jax.Array, Any]:
      a, b, moments = logits({**params, "discriminator": discriminator})
      total = jnp.mean(NON_SATURATING.discriminator(a, b)) / 2
      return total, (moments, {"loss": total, "real_logits": jnp.mean(a), "fake_logits": jnp.mean(b)})

    def loss_of_others(others: Params) -> jax.Array:
      a, b, _ = logits({**params, **others})
      return jnp.mean(NON_SATURATING.discriminator(b, a)) / 2  # with the roles exchanged

    others = {network: params[network] for network in ("generator", "encoder")}
    gradient, (moments, metrics) = jax.grad(loss_of_discriminator, has_aux=True)(params["discriminator"])
    loss, gradients = jax.value_and_grad(loss_of_others)(others)
    return {"discriminator": gradient, **gradients}, moments, metrics | {"generator_and_encoder_loss": loss}


def build(settings: Settings, images: Images, platform: str) -> BiGAN:
  """Builds BiGAN; arguments and errors are those of `algorithms.r3gan.build`."""
  del platform
  check_unconditional("bigan", images)
  adam = optax.scale_by_adam(b1=settings.beta1, b2=settings.beta2)
  optimizer = at_rate(optax.chain(optax.add_decayed_weights(settings.l2), adam))
  return BiGAN(
    generator=Generator(settings.width, math.prod(images.shape), DATA_AXIS),
    encoder=Encoder(settings.width, settings.noise_dim, DATA_AXIS),
    discriminator=Discriminator(settings.width, DATA_AXIS),
    noise_dim=settings.noise_dim,
    images=images,
    optimizers=dict.fromkeys(NETWORKS, optimizer),
    schedules={
      "learning_rate": exponential(*settings.learning_rate, settings.hold_images, settings.decay_images),
      "ema_half_life": constant(settings.ema_half_life),
    },
  )


def _pixels(images: jax.Array) -> jax.Array:
  """Flattens [N, H, W, C] in [-1, 1] to [N, H W C] in [0, 1]."""
  return (images.reshape(images.shape[0], -1) + 1) / 2
