"""WGAN-GP: the Wasserstein GAN with a gradient penalty (Gulrajani et al. 2017, arXiv 1704.00028, algorithm 1).

One iteration is five updates of the critic D, each with new reals and a new z, and one of G. With z ~ N(0, I) and
mixed = e real + (1 - e) G(z), e ~ U(0, 1),

    D    mean( D(G(z)) - D(real) ) + penalty_weight mean( (|grad D(mixed)| - 1)^2 )
    G    mean( -D(G(z)) )

G is DCGAN's, with batch norm. D has none, as the penalty is on the gradient of each image's own logit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from r3gan_jax.algorithms.base import (
  DATA_AXIS,
  GAN,
  Average,
  Batch,
  Carry,
  Hyperparameters,
  Metrics,
  Params,
  Phase,
  check_samples_apart,
  normal_noise,
  split_keys,
)
from r3gan_jax.algorithms.images import Images, check_unconditional, lowest_stage
from r3gan_jax.errors import UserError
from r3gan_jax.losses.penalties import directional, grad_of_grad
from r3gan_jax.networks.dcgan import Generator
from r3gan_jax.networks.layers import MOMENTS, apply_in_training, apply_trained
from r3gan_jax.networks.wgan_gp import Critic
from r3gan_jax.ops.images import to_float
from r3gan_jax.optimizers import at_rate
from r3gan_jax.schedules import constant, linear
from r3gan_jax.settings import Pair, below_one, not_negative, one_of, positive, setting

PHASES = ("discriminator", "generator")


@dataclass(frozen=True)
class Settings:
  """`config.gan` of WGAN-GP; the defaults are the paper's, at 64x64."""

  widths: tuple[int, ...] = setting((512, 256, 128, 64), positive)  # channels of each stage, from 4x4 (or 2x2) upward
  critic_norm: str = setting("none", one_of(("none", "layer", "batch")))  # "batch" is an error
  noise_dim: int = setting(128, positive)  # length of z
  critic_updates: int = setting(5, positive)  # per update of G
  penalty_weight: float = setting(10.0, not_negative)
  learning_rate: Pair = setting((1e-4, 1e-4), not_negative)  # (from, to), linear over
  decay_images: int = setting(30_000_000, positive)
  beta1: float = setting(0.0, below_one)
  beta2: float = setting(0.9, below_one)
  ema_half_life: float = setting(0.0, not_negative)  # images; 0, as in the paper: no averaging


def smoke(settings: Settings) -> dict[str, Any]:
  """Returns the changes for `:smoke`: tiny networks and two updates of D, a minute on a CPU."""
  return {"widths": (16,) * len(settings.widths), "noise_dim": 16, "critic_updates": 2}


@dataclass(frozen=True)
class WGANGP(GAN):
  """The algorithm (`algorithms.base.Algorithm`), unconditional.

  Attributes:
    generator: (z [N, noise_dim], train) -> images [N, H, W, C].
    discriminator: the critic, (images, bias_scale) -> logits [N]; each depends on its image alone.
    critic_updates: per update of G.
    penalty_weight: see the module.
    optimizers: see `Algorithm`.

  Raises:
    UserError: the critic couples samples.
  """

  generator: nn.Module
  discriminator: nn.Module
  critic_updates: int
  penalty_weight: float
  optimizers: Mapping[str, optax.GradientTransformationExtraArgs] = field(compare=False)

  def __post_init__(self) -> None:
    check_samples_apart(self.discriminator)

  @property
  def phases(self) -> Sequence[Phase]:
    discriminator, generator = PHASES
    return (
      Phase(
        discriminator,
        ("discriminator",),
        self._discriminator_gradients,
        counts_images=True,
        repeat=self.critic_updates,
        group=None,
      ),
      Phase(generator, ("generator",), self._generator_gradients, fresh_batch=False, group=None),
    )

  @property
  def averages(self) -> Mapping[str, Average]:
    return {name: Average(name, "ema_half_life") for name in ("generator", "generator_moments")}

  def init(self, key: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
    generator_key, discriminator_key = jax.random.split(key)
    generator = self.generator.init(generator_key, jnp.zeros((1, self.noise_dim)), train=False)
    discriminator = self.discriminator.init(discriminator_key, jnp.zeros((1, *self.image_shape)))
    params = {"generator": generator["params"], "discriminator": discriminator["params"]}
    return params, {"generator_moments": generator[MOMENTS]}

  def noise(self, keys: jax.Array) -> jax.Array:
    return normal_noise(keys, self.noise_dim)

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
    z_keys, mixing_keys = split_keys(keys, 2)
    real = to_float(batch["image"])
    fake, _ = self._generate(params["generator"], carry, z_keys)
    e = jax.vmap(lambda key: jax.random.uniform(key, (1, 1, 1)))(mixing_keys)
    images = jnp.concatenate([real, fake, e * real + (1 - e) * fake])

    def objective(logits: jax.Array, squared_norms: jax.Array) -> tuple[jax.Array, Metrics]:
      real_logits, fake_logits, _ = jnp.split(logits, 3)
      norms = jnp.sqrt(jnp.split(squared_norms, 3)[2] + 1e-12)  # sqrt has no derivative at 0
      penalty = jnp.square(norms - 1)
      return jnp.mean(fake_logits - real_logits + self.penalty_weight * penalty), {
        "wasserstein_estimate": jnp.mean(real_logits - fake_logits),
        "penalty": jnp.mean(penalty),
        "input_gradient_norm": jnp.mean(norms),
      }

    piecewise_linear = getattr(self.discriminator, "piecewise_linear", False)
    penalised_gradient = directional if piecewise_linear else grad_of_grad
    gradients, metrics = penalised_gradient(
      self._logits, params["discriminator"], images, lambda images: images, objective
    )
    return {"discriminator": gradients}, carry, metrics

  def _generator_gradients(
    self, params: Params, carry: Carry, batch: Batch, keys: jax.Array, hyperparameters: Hyperparameters
  ) -> tuple[Params, Carry, Metrics]:
    del batch, hyperparameters

    def loss(generator: Any) -> tuple[jax.Array, Any]:
      fake, moments = self._generate(generator, carry, keys)
      return -jnp.mean(self._logits(params["discriminator"], fake)), moments

    (total, moments), gradients = jax.value_and_grad(loss, has_aux=True)(params["generator"])
    return {"generator": gradients}, {**carry, "generator_moments": moments}, {"loss": total}

  def _generate(self, generator: Any, carry: Carry, keys: jax.Array) -> tuple[jax.Array, Any]:
    """Returns images of new noise, normalised by batch moments, and the updated running moments."""
    return apply_in_training(self.generator, generator, carry["generator_moments"], self.noise(keys))

  def _logits(self, discriminator: Any, images: jax.Array, bias_scale: jax.Array | None = None) -> jax.Array:
    return cast(jax.Array, self.discriminator.apply({"params": discriminator}, images, bias_scale))


def build(settings: Settings, images: Images, platform: str) -> WGANGP:
  """Builds WGAN-GP; arguments and errors are those of `algorithms.r3gan.build`."""
  del platform
  check_unconditional("wgan_gp", images)
  lowest = lowest_stage(settings, "widths", images)
  if settings.critic_norm == "batch":
    raise UserError(
      "config.gan.critic_norm = 'batch': the penalty needs logits that depend on one image each: choose 'layer' or "
      "'none'"
    )
  optimizer = at_rate(optax.scale_by_adam(b1=settings.beta1, b2=settings.beta2))
  return WGANGP(
    generator=Generator(settings.widths, DATA_AXIS, image_channels=images.channels, lowest=lowest),
    discriminator=Critic(settings.widths, layer_norm=settings.critic_norm == "layer"),
    noise_dim=settings.noise_dim,
    images=images,
    critic_updates=settings.critic_updates,
    penalty_weight=settings.penalty_weight,
    optimizers={"generator": optimizer, "discriminator": optimizer},
    schedules={
      "learning_rate": linear(*settings.learning_rate, settings.decay_images),
      "ema_half_life": constant(settings.ema_half_life),
    },
  )
