"""GAN: the first one (Goodfellow et al. 2014, arXiv 1406.2661), of two perceptrons.

With z ~ U(-sqrt 3, sqrt 3), one iteration is one phase; both gradients are taken at the same parameters, with the same
fakes and the same dropout:

    D    1/2 mean( softplus(-D(real)) + softplus(D(G(z))) )        equation 1, halved as in the authors' code
    G    mean( softplus(-D(G(z))) )                                section 3: -log D rather than log(1 - D),
    or   mean( -softplus(D(G(z))) )                                the minimax game's, with `saturating`

D has dropout in every pass, also in G's loss. Both players descend with momentum; the learning rate decays
exponentially and the momentum rises linearly, as functions of the images seen.

The biases of G's last layer start at the logit of the mean training pixel. An algorithm sees no data before training,
so the mean is a setting; its default is MNIST's.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from r3gan_jax.algorithms.base import (
  GAN,
  Average,
  Batch,
  Carry,
  Hyperparameters,
  Metrics,
  Params,
  Phase,
  bounds,
  split_keys,
  uniform_noise,
)
from r3gan_jax.algorithms.images import Images, check_unconditional
from r3gan_jax.losses.adversarial import NON_SATURATING, SATURATING
from r3gan_jax.networks.mlp import Discriminator, Generator
from r3gan_jax.ops.images import to_float
from r3gan_jax.optimizers import sgd
from r3gan_jax.schedules import Schedule, constant, exponential, linear
from r3gan_jax.settings import Pair, below_one, not_negative, positive, probability, setting

PHASES = ("both",)
NETWORKS = ("generator", "discriminator")


@dataclass(frozen=True)
class Settings:
  """`config.gan` of GAN; the defaults are the authors', for MNIST."""

  widths: tuple[int, ...] = setting((1200, 1200), positive)  # units of G's hidden layers
  units: tuple[int, ...] = setting((240, 240), positive)  # of D's hidden layers
  pieces: int = setting(5, positive)  # of each unit of maxout
  noise_dim: int = setting(100, positive)  # length of z
  mean_pixel: float = setting(0.1307, probability)  # of the data, in [0, 1]
  learning_rate: Pair = setting((0.1, 1e-6), positive)  # (from, to), exponential over
  decay_images: int = setting(287_823_712, positive)  # 1 / 1.000004 per batch of 100
  momentum: Pair = setting((0.5, 0.7), below_one)  # (from, to), linear over
  momentum_images: int = setting(15_000_000, positive)  # 250 epochs
  ema_half_life: float = setting(0.0, not_negative)  # images; 0, as in the paper: no averaging
  saturating: bool = setting(False)  # G's loss: equation 1's, whose gradient vanishes while D is sure


def smoke(settings: Settings) -> dict[str, Any]:
  """Returns the changes for `:smoke`: tiny networks, a minute on a CPU."""
  return {"widths": (16,) * len(settings.widths), "units": (8,) * len(settings.units), "noise_dim": 8}


@dataclass(frozen=True)
class AdversarialNets(GAN):
  """The algorithm (`algorithms.base.Algorithm`), unconditional.

  Attributes:
    generator: (z [N, noise_dim], labels, keys for dropout or None) -> pixels [N, H W C] in [0, 1].
    discriminator: (pixels, labels, keys for dropout or None) -> logits [N].
    optimizers: see `Algorithm`.
    saturating: see `Settings`.
  """

  generator: nn.Module
  discriminator: nn.Module
  optimizers: Mapping[str, optax.GradientTransformationExtraArgs] = field(compare=False)
  saturating: bool = False

  @property
  def phases(self) -> Sequence[Phase]:
    (both,) = PHASES
    return (Phase(both, NETWORKS, self._gradients, counts_images=True),)

  @property
  def averages(self) -> Mapping[str, Average]:
    return {"generator": Average("generator", "ema_half_life")}

  def init(self, key: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
    generator_key, discriminator_key = jax.random.split(key)
    z, pixels = jnp.zeros((1, self.noise_dim)), jnp.zeros((1, math.prod(self.image_shape)))
    labels = jnp.zeros(1, jnp.int32)
    params = {
      "generator": self.generator.init(generator_key, z, labels, None)["params"],
      "discriminator": self.discriminator.init(discriminator_key, pixels, labels, None)["params"],
    }
    return params, {}

  def noise(self, keys: jax.Array) -> jax.Array:
    return math.sqrt(3) * uniform_noise(keys, self.noise_dim)

  @property
  def noise_bounds(self) -> tuple[np.ndarray, np.ndarray]:
    return bounds(-math.sqrt(3), math.sqrt(3), self.noise_dim)

  def generate(
    self, params: Params, carry: Carry, noise: jax.Array, labels: jax.Array | None, truncation: float = 1.0
  ) -> jax.Array:
    """Draws images. Truncation multiplies the noise (not in the paper)."""
    del carry
    pixels = self.apply("generator", params["generator"], truncation * noise, labels, None)
    return 2 * pixels.reshape(-1, *self.image_shape) - 1

  def apply(
    self, network: str, params: Any, x: jax.Array, labels: jax.Array | None, keys: jax.Array | None
  ) -> jax.Array:
    """Applies "generator" or "discriminator" with these parameters."""
    return cast(jax.Array, getattr(self, network).apply({"params": params}, x, labels, keys))

  def fake_labels(self, batch: Batch) -> jax.Array | None:
    """Returns the labels of the fakes [N], None if unconditional."""
    del batch
    return None

  def _gradients(
    self, params: Params, carry: Carry, batch: Batch, keys: jax.Array, hyperparameters: Hyperparameters
  ) -> tuple[Params, Carry, Metrics]:
    del hyperparameters
    of_noise, of_generator, of_real, of_fake = split_keys(keys, 4)  # the last three: for dropout
    real = (to_float(batch["image"]).reshape(keys.shape[0], -1) + 1) / 2
    labels, fake_labels = batch.get("label"), self.fake_labels(batch)
    z = self.noise(of_noise)

    def loss_of_discriminator(discriminator: Any) -> tuple[jax.Array, Metrics]:
      fake = self.apply("generator", params["generator"], z, fake_labels, of_generator)
      real_logits = self.apply("discriminator", discriminator, real, labels, of_real)
      fake_logits = self.apply("discriminator", discriminator, fake, fake_labels, of_fake)
      total = jnp.mean(NON_SATURATING.discriminator(real_logits, fake_logits)) / 2
      return total, {"loss": total, "real_logits": jnp.mean(real_logits), "fake_logits": jnp.mean(fake_logits)}

    def loss_of_generator(generator: Any) -> jax.Array:
      fake = self.apply("generator", generator, z, fake_labels, of_generator)
      logits = self.apply("discriminator", params["discriminator"], fake, fake_labels, of_fake)
      loss = SATURATING if self.saturating else NON_SATURATING
      return jnp.mean(loss.generator(logits, logits))

    of_discriminator, metrics = jax.grad(loss_of_discriminator, has_aux=True)(params["discriminator"])
    loss, of_generator_loss = jax.value_and_grad(loss_of_generator)(params["generator"])
    gradients = {"generator": of_generator_loss, "discriminator": of_discriminator}
    return gradients, carry, metrics | {"generator_loss": loss}


def build(settings: Settings, images: Images, platform: str) -> AdversarialNets:
  """Builds GAN; arguments and errors are those of `algorithms.r3gan.build`."""
  del platform
  check_unconditional("gan", images)
  return AdversarialNets(
    generator=Generator(settings.widths, math.prod(images.shape), clipped(settings.mean_pixel)),
    discriminator=Discriminator(settings.units, (settings.pieces,) * len(settings.units), keep_pixels=0.8, keep=0.5),
    noise_dim=settings.noise_dim,
    images=images,
    optimizers=dict.fromkeys(NETWORKS, sgd()),
    schedules=schedules(settings),
    saturating=settings.saturating,
  )


def clipped(mean_pixel: float) -> float:
  """Keeps a mean pixel away from 0 and 1, whose logits are infinite."""
  return min(max(mean_pixel, 1e-3), 1 - 1e-3)


def schedules(settings: Any) -> dict[str, Schedule]:
  """Returns the schedules of `sgd`'s hyperparameters and of the moving average."""
  learning_rate: Pair = settings.learning_rate
  momentum: Pair = settings.momentum
  return {
    "learning_rate": exponential(*learning_rate, 0, settings.decay_images),
    "momentum": linear(*momentum, settings.momentum_images),
    "ema_half_life": constant(settings.ema_half_life),
  }
