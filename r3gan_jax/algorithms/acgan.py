"""AC-GAN: a conditional GAN whose D also classifies (Odena et al. 2017, arXiv 1610.09585).

D has two heads: D(x), whether x is real, and C(c | x), its class. G gets z ~ U(-1, 1) and a one-hot class c, drawn
uniformly for fakes. One iteration is two phases:

    D    mean( softplus(-D(real)) + softplus(D(G(z, c))) ) + w mean( -log C(c_real | real) - log C(c | G(z, c)) )
    G    mean( softplus(-D(G(z, c))) ) + w mean( -log C(c | G(z, c)) )      with new z, c and the updated D

With w = 1 these are equations 2 and 3: D maximises L_S + L_C, and G L_C - L_S. Both reward fakes that are easily
classified, and neither their diversity. Reals and fakes pass D in separate batches, as in DCGAN.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from r3gan_jax.algorithms.base import DATA_AXIS, Batch, Carry, Hyperparameters, Metrics, Params, split_keys
from r3gan_jax.algorithms.dcgan import DCGAN
from r3gan_jax.algorithms.images import Images, check_stages
from r3gan_jax.errors import UserError
from r3gan_jax.losses.adversarial import NON_SATURATING
from r3gan_jax.networks import acgan as own
from r3gan_jax.networks import dcgan
from r3gan_jax.networks.layers import MOMENTS, apply_in_training, apply_trained
from r3gan_jax.ops.images import to_float
from r3gan_jax.optimizers import at_rate
from r3gan_jax.schedules import constant
from r3gan_jax.settings import below_one, not_negative, one_of, positive, setting

PHASES = ("discriminator", "generator")
LAYERS_PER_STAGE = {"own": 2, "dcgan": 1}
"""config.gan.networks -> how many layers D has for each resolution."""


@dataclass(frozen=True)
class Settings:
  """`config.gan` of AC-GAN; the defaults are the paper's, for CIFAR-10."""

  networks: str = setting("own", one_of(LAYERS_PER_STAGE))  # the paper's own; or DCGAN's, with 4x4 kernels
  generator_widths: tuple[int, ...] = setting((384, 192, 96), positive)  # channels of each stage, from 4x4 upward
  discriminator_widths: tuple[int, ...] = setting((512, 256, 128, 64, 32, 16), positive)  # two a stage; DCGAN's: one
  dropout: float = setting(0.5, below_one)  # in D; DCGAN's has none
  noise_dim: int = setting(100, positive)  # length of z
  class_weight: float = setting(1.0, not_negative)  # w
  learning_rate: float = setting(2e-4, not_negative)
  beta1: float = setting(0.5, below_one)
  beta2: float = setting(0.999, below_one)
  ema_half_life: float = setting(0.0, not_negative)  # images; 0, as in the paper: no averaging


def smoke(settings: Settings) -> dict[str, Any]:
  """Returns the changes for `:smoke`: tiny networks with the same number of layers, a minute on a CPU."""
  widths = {name: (16,) * len(getattr(settings, name)) for name in ("generator_widths", "discriminator_widths")}
  return widths | {"noise_dim": 16}


@dataclass(frozen=True)
class ACGAN(DCGAN):
  """The algorithm (`algorithms.base.Algorithm` and `HasClassifier`): DCGAN's phases and averages, conditional.

  Attributes:
    generator: (z and one-hot classes [N, noise_dim + num_classes], train) -> images [N, H, W, C].
    discriminator: (images, keys for dropout, train) -> logits of "real" [N] and of the classes [N, num_classes].
    class_weight: see the module.
  """

  class_weight: float

  def init(self, key: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
    generator_key, discriminator_key = jax.random.split(key)
    generator = self.generator.init(generator_key, jnp.zeros((1, self.noise_dim + self.num_classes)), train=False)
    discriminator = self.discriminator.init(discriminator_key, jnp.zeros((1, *self.image_shape)), train=False)
    params = {"generator": generator["params"], "discriminator": discriminator["params"]}
    return params, {"generator_moments": generator[MOMENTS], "discriminator_moments": discriminator[MOMENTS]}

  def generate(
    self, params: Params, carry: Carry, noise: jax.Array, labels: jax.Array | None, truncation: float = 1.0
  ) -> jax.Array:
    """Draws images of classes, normalised by running moments. Truncation multiplies the noise (not in the paper)."""
    if labels is None:
      raise ValueError(f"labels are missing: the generator is conditional on {self.num_classes} classes")
    inputs = self._conditioned(truncation * noise, labels)
    return apply_trained(self.generator, params["generator"], carry["generator_moments"], inputs)

  def classify(self, params: Params, carry: Carry, images: jax.Array) -> jax.Array:
    """Returns C's logits [N, K], normalised by running moments."""
    _, logits = apply_trained(self.discriminator, params["discriminator"], carry["discriminator_moments"], images)
    return logits

  def _discriminator_gradients(
    self, params: Params, carry: Carry, batch: Batch, keys: jax.Array, hyperparameters: Hyperparameters
  ) -> tuple[Params, Carry, Metrics]:
    del hyperparameters
    drawing_keys, real_keys, fake_keys = split_keys(keys, 3)
    fake, fake_labels, _ = self._fakes(params["generator"], carry, drawing_keys)
    real, real_labels = to_float(batch["image"]), batch["label"]

    def loss(discriminator: Any) -> tuple[jax.Array, tuple[Any, Metrics]]:
      real_logits, real_class_loss, moments = self._judged(discriminator, carry, real, real_labels, real_keys)
      fake_logits, fake_class_loss, _ = self._judged(discriminator, carry, fake, fake_labels, fake_keys)
      adversarial = jnp.mean(NON_SATURATING.discriminator(real_logits, fake_logits))
      total = adversarial + self.class_weight * (real_class_loss + fake_class_loss)
      class_losses = {"real_class_loss": real_class_loss, "fake_class_loss": fake_class_loss}
      means = {"real_logits": jnp.mean(real_logits), "fake_logits": jnp.mean(fake_logits)}
      return total, (moments, {"loss": total} | means | class_losses)

    gradients, (moments, metrics) = jax.grad(loss, has_aux=True)(params["discriminator"])
    return {"discriminator": gradients}, {**carry, "discriminator_moments": moments}, metrics

  def _generator_gradients(
    self, params: Params, carry: Carry, batch: Batch, keys: jax.Array, hyperparameters: Hyperparameters
  ) -> tuple[Params, Carry, Metrics]:
    del batch, hyperparameters
    drawing_keys, fake_keys = split_keys(keys, 2)

    def loss(generator: Any) -> tuple[jax.Array, tuple[Any, Metrics]]:
      fake, labels, moments = self._fakes(generator, carry, drawing_keys)
      logits, class_loss, _ = self._judged(params["discriminator"], carry, fake, labels, fake_keys)
      total = jnp.mean(NON_SATURATING.generator(logits, logits)) + self.class_weight * class_loss
      return total, (moments, {"loss": total, "class_loss": class_loss})

    gradients, (moments, metrics) = jax.grad(loss, has_aux=True)(params["generator"])
    return {"generator": gradients}, {**carry, "generator_moments": moments}, metrics

  def _conditioned(self, z: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns G's input, [N, noise_dim + num_classes]."""
    return jnp.concatenate([z, jax.nn.one_hot(labels, self.num_classes, dtype=z.dtype)], axis=1)

  def _fakes(self, generator: Any, carry: Carry, keys: jax.Array) -> tuple[jax.Array, jax.Array, Any]:
    """Returns images of new noise and classes, their labels [N], and G's updated moments."""
    z_keys, label_keys = split_keys(keys, 2)
    labels = jax.vmap(lambda key: jax.random.randint(key, (), 0, self.num_classes, jnp.int32))(label_keys)
    inputs = self._conditioned(self.noise(z_keys), labels)
    images, moments = apply_in_training(self.generator, generator, carry["generator_moments"], inputs)
    return images, labels, moments

  def _judged(
    self, discriminator: Any, carry: Carry, images: jax.Array, labels: jax.Array, keys: jax.Array
  ) -> tuple[jax.Array, jax.Array, Any]:
    """Returns logits [N], the mean class loss, and D's updated moments."""
    moments = carry["discriminator_moments"]
    (logits, classes), moments = apply_in_training(self.discriminator, discriminator, moments, images, keys)
    class_losses = optax.softmax_cross_entropy_with_integer_labels(classes, labels)
    return logits, jnp.mean(class_losses), moments


def build(settings: Settings, images: Images, platform: str) -> ACGAN:
  """Builds AC-GAN; arguments and errors are those of `algorithms.r3gan.build`."""
  del platform
  if not images.num_classes:
    raise UserError("config.data.num_classes = 0: acgan is conditional: set it to the number of classes")
  check_stages(settings, ("generator_widths",), images, halvings=1)
  needed = LAYERS_PER_STAGE[settings.networks] * len(settings.generator_widths)
  if len(settings.discriminator_widths) != needed:
    raise UserError(
      f"config.gan.discriminator_widths = {settings.discriminator_widths} has {len(settings.discriminator_widths)} "
      f"entries, but config.gan.networks = {settings.networks!r} need {needed}"
    )
  if settings.networks == "dcgan" and settings.dropout:
    raise UserError(f"config.gan.dropout = {settings.dropout}: config.gan.networks = 'dcgan' have none: set it to 0")
  of_generator: dict[str, Any] = {"widths": settings.generator_widths, "image_channels": images.channels}
  of_discriminator: dict[str, Any] = {"widths": settings.discriminator_widths, "num_classes": images.num_classes}
  generator: nn.Module
  discriminator: nn.Module
  if settings.networks == "own":
    generator = own.Generator(**of_generator, axis_name=DATA_AXIS)
    discriminator = own.Discriminator(**of_discriminator, axis_name=DATA_AXIS, dropout=settings.dropout)
  else:
    generator = dcgan.Generator(**of_generator, axis_name=DATA_AXIS)
    discriminator = dcgan.AuxiliaryClassifier(**of_discriminator, axis_name=DATA_AXIS)
  optimizer = at_rate(optax.scale_by_adam(b1=settings.beta1, b2=settings.beta2))
  return ACGAN(
    generator=generator,
    discriminator=discriminator,
    noise_dim=settings.noise_dim,
    images=images,
    class_weight=settings.class_weight,
    optimizers={"generator": optimizer, "discriminator": optimizer},
    schedules={name: constant(getattr(settings, name)) for name in ("learning_rate", "ema_half_life")},
  )
