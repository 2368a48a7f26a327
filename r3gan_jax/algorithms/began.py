"""BEGAN: boundary equilibrium GAN, whose D is an autoencoder (Berthelot et al. 2017, arXiv 1703.10717).

With L(x) = mean |x - D(x)| over all pixels and z ~ U(-1, 1), one iteration is one phase. All gradients are taken at the
same parameters, and one z serves both networks:

    D    L(real) - k L(G(z))
    G    L(G(z))                through D(G(z)) and through G(z), which it is compared with

Afterwards k, initially 0, balances the two, with means of the global batch:

    k <- clip(k + balance_rate (diversity L(real) - L(G(z))), 0, 1)

At equilibrium L(G(z)) = diversity L(real). The measure of convergence is L(real) + |diversity L(real) - L(G(z))|.
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
  pictures_of_autoencoder,
)
from r3gan_jax.algorithms.images import Images, check_unconditional
from r3gan_jax.errors import UserError
from r3gan_jax.networks.autoencoder import BalancedAutoencoder, Decoder
from r3gan_jax.ops.images import to_float
from r3gan_jax.optimizers import at_rate
from r3gan_jax.schedules import constant, exponential
from r3gan_jax.settings import Pair, below_one, not_negative, positive, probability, setting

PHASES = ("balance",)
NETWORKS = ("generator", "discriminator")


@dataclass(frozen=True)
class Settings:
  """`config.gan` of BEGAN; the defaults are the paper's, but for the schedule of the learning rate.

  The paper halves the rate whenever the measure of convergence stalls.
  """

  width: int = setting(128, positive)  # channels of G, and of D's first stage
  noise_dim: int = setting(64, positive)  # length of z and of D's code
  diversity: float = setting(0.5, probability)  # gamma: low for sharp images that are alike
  balance_rate: float = setting(0.001, not_negative)  # lambda
  learning_rate: Pair = setting((1e-4, 1e-5), positive)  # (from, to): constant, then an exponential decay
  hold_images: int = setting(1_000_000, not_negative)
  decay_images: int = setting(2_000_000, positive)
  beta1: float = setting(0.9, below_one)
  beta2: float = setting(0.999, below_one)
  ema_half_life: float = setting(0.0, not_negative)  # images; 0, as in the paper: no averaging


def smoke(settings: Settings) -> dict[str, Any]:
  """Returns the changes for `:smoke`: tiny networks, a minute on a CPU."""
  del settings
  return {"width": 8, "noise_dim": 8}


def balanced(k: jax.Array, real: jax.Array, fake: jax.Array, diversity: float, rate: float) -> jax.Array:
  """Returns the next k; `real` and `fake` are the mean errors of D on the global batch."""
  return jnp.clip(k + rate * (diversity * real - fake), 0, 1)


def convergence(real: jax.Array, fake: jax.Array, diversity: float) -> jax.Array:
  """Returns the measure of convergence (section 3.4.1); arguments are those of `balanced`."""
  return real + jnp.abs(diversity * real - fake)


@dataclass(frozen=True)
class BEGAN(UniformGAN):
  """The algorithm (`algorithms.base.Algorithm`, `HasPictures` and `HasCodes`), unconditional.

  Attributes:
    generator: z [N, noise_dim] -> images [N, H, W, C].
    discriminator: images -> (reconstructions [N, H, W, C], codes [N, noise_dim]).
    diversity, balance_rate: see the module.
    optimizers: see `Algorithm`.
  """

  generator: nn.Module
  discriminator: nn.Module
  diversity: float
  balance_rate: float
  optimizers: Mapping[str, optax.GradientTransformationExtraArgs] = field(compare=False)

  @property
  def phases(self) -> Sequence[Phase]:
    (balance,) = PHASES
    return (Phase(balance, NETWORKS, self._gradients, counts_images=True, group=None),)

  @property
  def averages(self) -> Mapping[str, Average]:
    return {"generator": Average("generator", "ema_half_life")}

  def init(self, key: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
    generator_key, discriminator_key = jax.random.split(key)
    generator = self.generator.init(generator_key, jnp.zeros((1, self.noise_dim)))
    discriminator = self.discriminator.init(discriminator_key, jnp.zeros((1, *self.image_shape)))
    return {"generator": generator["params"], "discriminator": discriminator["params"]}, {"k": jnp.zeros(())}

  def generate(
    self, params: Params, carry: Carry, noise: jax.Array, labels: jax.Array | None, truncation: float = 1.0
  ) -> jax.Array:
    """Draws images. Truncation multiplies the noise (not in the paper)."""
    del carry, labels
    return jnp.asarray(self.generator.apply({"params": params["generator"]}, truncation * noise))

  def pictures(self, params: Params, carry: Carry, images: jax.Array) -> dict[str, jax.Array]:
    """Returns each image beside its reconstruction by D, and beside the image of the nearest code."""
    del carry
    reconstructions, codes = self.discriminator.apply({"params": params["discriminator"]}, images)
    return pictures_of_autoencoder(images, reconstructions, jnp.asarray(codes))

  def encode(self, params: Params, carry: Carry, images: jax.Array) -> jax.Array:
    """Returns D's codes [N, noise_dim]."""
    del carry
    _, codes = self.discriminator.apply({"params": params["discriminator"]}, images)
    return jnp.asarray(codes)

  def _gradients(
    self, params: Params, carry: Carry, batch: Batch, keys: jax.Array, hyperparameters: Hyperparameters
  ) -> tuple[Params, Carry, Metrics]:
    del hyperparameters
    z, k = self.noise(keys), carry["k"]

    def error(discriminator: Any, images: jax.Array) -> jax.Array:
      reconstructions, _ = self.discriminator.apply({"params": discriminator}, images)
      return jnp.mean(jnp.abs(images - reconstructions))

    def generate(generator: Any) -> jax.Array:
      return jnp.asarray(self.generator.apply({"params": generator}, z))

    fakes, pull_back = jax.vjp(generate, params["generator"])
    real, of_reals = jax.value_and_grad(error)(params["discriminator"], to_float(batch["image"]))
    # One pass serves both: D's gradient times -k, and G's, by way of the fakes.
    fake, (of_fakes, gradient_of_images) = jax.value_and_grad(error, argnums=(0, 1))(params["discriminator"], fakes)
    gradients = {
      "generator": pull_back(gradient_of_images)[0],
      "discriminator": jax.tree.map(lambda of_real, of_fake: of_real - k * of_fake, of_reals, of_fakes),
    }
    real, fake = jax.lax.pmean((real, fake), DATA_AXIS)
    metrics = {
      "real_error": real,
      "fake_error": fake,
      "k": k,
      "convergence": convergence(real, fake, self.diversity),
    }
    return gradients, {"k": balanced(k, real, fake, self.diversity, self.balance_rate)}, metrics


def build(settings: Settings, images: Images, platform: str) -> BEGAN:
  """Builds BEGAN; arguments and errors are those of `algorithms.r3gan.build`."""
  del platform
  check_unconditional("began", images)
  scale, remainder = divmod(images.side, 8)
  if remainder or scale.bit_count() != 1:
    raise UserError(f"config.data.resolution = {images.side}: began's networks need 8 times a power of 2")
  optimizer = at_rate(optax.scale_by_adam(b1=settings.beta1, b2=settings.beta2))
  return BEGAN(
    generator=Decoder(settings.width, images.side, images.channels),
    discriminator=BalancedAutoencoder(settings.width, settings.noise_dim),
    noise_dim=settings.noise_dim,
    images=images,
    diversity=settings.diversity,
    balance_rate=settings.balance_rate,
    optimizers=dict.fromkeys(NETWORKS, optimizer),
    schedules={
      "learning_rate": exponential(*settings.learning_rate, settings.hold_images, settings.decay_images),
      "ema_half_life": constant(settings.ema_half_life),
    },
  )
