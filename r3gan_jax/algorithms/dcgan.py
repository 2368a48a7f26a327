"""DCGAN: the deep convolutional GAN (Radford et al. 2016, arXiv 1511.06434).

One iteration is two phases. With z ~ U(-1, 1),

    D    mean( softplus(-D(real)) + softplus(D(G(z))) )
    G    mean( softplus(-D(G(z))) )      with a new z and the updated D

Reals and fakes pass D in separate batches, each normalised by its own moments, as common moments would leak which is
which. D's running moments follow the reals, G's those of its own phase.
"""

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
)
from r3gan_jax.algorithms.images import Images, check_unconditional, lowest_stage
from r3gan_jax.losses.adversarial import NON_SATURATING
from r3gan_jax.networks.dcgan import Discriminator, Generator
from r3gan_jax.networks.layers import MOMENTS, apply_in_training, apply_trained
from r3gan_jax.ops.images import to_float
from r3gan_jax.optimizers import at_rate
from r3gan_jax.schedules import constant
from r3gan_jax.settings import below_one, not_negative, one_of, positive, setting

PHASES = ("discriminator", "generator")


@dataclass(frozen=True)
class Settings:
  """`config.gan` of DCGAN; the defaults are the paper's, at 64x64."""

  widths: tuple[int, ...] = setting((1024, 512, 256, 128), positive)  # channels of each stage, from 4x4 (or 2x2) upward
  kernel_size: int = setting(5, one_of((4, 5)))
  noise_dim: int = setting(100, positive)  # length of z
  learning_rate: float = setting(2e-4, not_negative)
  beta1: float = setting(0.5, below_one)
  beta2: float = setting(0.999, below_one)
  l2: float = setting(1e-5, not_negative)  # in the authors' code: this times the weights is added to the gradients
  ema_half_life: float = setting(0.0, not_negative)  # images; 0, as in the paper: no averaging


def smoke(settings: Settings) -> dict[str, Any]:
  """Returns the changes for `:smoke`: tiny networks with the same number of stages, a minute on a CPU."""
  return {"widths": (16,) * len(settings.widths), "noise_dim": 16}


@dataclass(frozen=True)
class DCGAN(UniformGAN):
  """The algorithm (`algorithms.base.Algorithm`), unconditional.

  Attributes:
    generator: (z [N, noise_dim], train) -> images [N, H, W, C].
    discriminator: (images, train) -> logits [N].
    optimizers: see `Algorithm`.
  """

  generator: nn.Module
  discriminator: nn.Module
  optimizers: Mapping[str, optax.GradientTransformationExtraArgs] = field(compare=False)

  @property
  def phases(self) -> Sequence[Phase]:
    discriminator, generator = PHASES
    return (
      Phase(discriminator, ("discriminator",), self._discriminator_gradients, counts_images=True, group=None),
      Phase(generator, ("generator",), self._generator_gradients, fresh_batch=False, group=None),
    )

  @property
  def averages(self) -> Mapping[str, Average]:
    return {name: Average(name, "ema_half_life") for name in ("generator", "generator_moments")}

  def init(self, key: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
    generator_key, discriminator_key = jax.random.split(key)
    generator = self.generator.init(generator_key, jnp.zeros((1, self.noise_dim)), train=False)
    discriminator = self.discriminator.init(discriminator_key, jnp.zeros((1, *self.image_shape)), train=False)
    params = {"generator": generator["params"], "discriminator": discriminator["params"]}
    return params, {"generator_moments": generator[MOMENTS], "discriminator_moments": discriminator[MOMENTS]}

  def generate(
    self, params: Params, carry: Carry, noise: jax.Array, labels: jax.Array | None, truncation: float = 1.0
  ) -> jax.Array:
    """Draws images, normalised by running moments. Truncation multiplies the noise (not in the paper)."""
    del labels
    return apply_trained(self.generator, params["generator"], carry["generator_moments"], truncation * noise)

  def _discriminator_gradients(
    self, params: Params, carry: Carry, batch: Batch, keys: jax.Array, hyperparameters: Hyperparameters
  ) -> tuple[Params, Carry, Metrics]:
    del hyperparameters
    fake, _ = self._generate(params["generator"], carry, keys)
    real = to_float(batch["image"])

    def loss(discriminator: Any) -> tuple[jax.Array, tuple[Any, Metrics]]:
      real_logits, moments = self._logits(discriminator, carry, real)
      fake_logits, _ = self._logits(discriminator, carry, fake)
      total = jnp.mean(NON_SATURATING.discriminator(real_logits, fake_logits))
      means = {"real_logits": jnp.mean(real_logits), "fake_logits": jnp.mean(fake_logits)}
      return total, (moments, {"loss": total} | means)

    gradients, (moments, metrics) = jax.grad(loss, has_aux=True)(params["discriminator"])
    return {"discriminator": gradients}, {**carry, "discriminator_moments": moments}, metrics

  def _generator_gradients(
    self, params: Params, carry: Carry, batch: Batch, keys: jax.Array, hyperparameters: Hyperparameters
  ) -> tuple[Params, Carry, Metrics]:
    del batch, hyperparameters

    def loss(generator: Any) -> tuple[jax.Array, Any]:
      fake, moments = self._generate(generator, carry, keys)
      logits, _ = self._logits(params["discriminator"], carry, fake)
      return jnp.mean(NON_SATURATING.generator(logits, logits)), moments

    (total, moments), gradients = jax.value_and_grad(loss, has_aux=True)(params["generator"])
    return {"generator": gradients}, {**carry, "generator_moments": moments}, {"loss": total}

  def _generate(self, generator: Any, carry: Carry, keys: jax.Array) -> tuple[jax.Array, Any]:
    """Returns images of new noise, normalised by batch moments, and the updated running moments."""
    return apply_in_training(self.generator, generator, carry["generator_moments"], self.noise(keys))

  def _logits(self, discriminator: Any, carry: Carry, images: jax.Array) -> tuple[jax.Array, Any]:
    """Returns logits, normalised by batch moments, and the updated running moments."""
    return apply_in_training(self.discriminator, discriminator, carry["discriminator_moments"], images)


def build(settings: Settings, images: Images, platform: str) -> DCGAN:
  """Builds DCGAN; arguments and errors are those of `algorithms.r3gan.build`."""
  del platform
  check_unconditional("dcgan", images)
  lowest = lowest_stage(settings, "widths", images)
  shared: dict[str, Any] = {"widths": settings.widths, "axis_name": DATA_AXIS, "kernel_size": settings.kernel_size}
  adam = optax.scale_by_adam(b1=settings.beta1, b2=settings.beta2)
  optimizer = at_rate(optax.chain(optax.add_decayed_weights(settings.l2), adam))
  return DCGAN(
    generator=Generator(**shared, image_channels=images.channels, lowest=lowest),
    discriminator=Discriminator(**shared),
    noise_dim=settings.noise_dim,
    images=images,
    optimizers={"generator": optimizer, "discriminator": optimizer},
    schedules={name: constant(getattr(settings, name)) for name in ("learning_rate", "ema_half_life")},
  )
