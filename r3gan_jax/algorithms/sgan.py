"""SGAN: a semi-supervised DCGAN, whose D is a classifier with one class more, "fake" (Odena 2016, arXiv 1606.01583).

D has a logit l_k for each of the K classes, and a fixed one of 0 for "fake", which loses nothing, as a softmax does not
change when all logits do. With s = logsumexp(l), a logit of "real",

    log p(y) = l_y - softplus(s)    log p(real) = -softplus(-s)    log p(fake) = -softplus(s)

One iteration is DCGAN's two phases; only some reals have a label y, and each mean is over its own kind:

    D    mean( -log p(y) ) over labelled reals + mean( -log p(real) ) over unlabelled ones + mean( -log p(fake) )
    G    mean( -log p(real) )

The paper has no term for unlabelled reals, and its G has the saturating loss mean( log p(fake) ).
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.nn import logsumexp, softplus

from r3gan_jax.algorithms.base import DATA_AXIS, Average, Batch, Carry, Hyperparameters, Metrics, Params
from r3gan_jax.algorithms.capabilities import LearnsFromUnlabelled
from r3gan_jax.algorithms.dcgan import DCGAN
from r3gan_jax.algorithms.images import Images, check_stages
from r3gan_jax.errors import UserError
from r3gan_jax.losses.adversarial import NON_SATURATING, SATURATING
from r3gan_jax.networks.dcgan import Classifier, Generator
from r3gan_jax.networks.layers import apply_trained
from r3gan_jax.ops.images import to_float
from r3gan_jax.optimizers import at_rate
from r3gan_jax.schedules import constant
from r3gan_jax.settings import below_one, not_negative, one_of, positive, setting

PHASES = ("discriminator", "generator")
ERROR_DECAY = 0.99
"""The decay of the running classification error, per batch with a labelled image."""


@dataclass(frozen=True)
class Settings:
  """`config.gan` of SGAN; the networks are DCGAN's, at 32x32."""

  widths: tuple[int, ...] = setting((256, 128, 64), positive)  # channels of each stage, from 4x4 upward
  kernel_size: int = setting(4, one_of((4, 5)))
  noise_dim: int = setting(100, positive)  # length of z
  unlabelled: bool = setting(True)  # whether D learns from reals without a label; the paper: False
  fakes: bool = setting(True)  # whether D learns from fakes; False, to see what G adds: the same D without G
  saturating: bool = setting(False)  # G's loss; the paper: True
  learning_rate: float = setting(2e-4, not_negative)
  beta1: float = setting(0.5, below_one)
  beta2: float = setting(0.999, below_one)
  ema_half_life: float = setting(0.0, not_negative)  # images; 0, as in the paper: no averaging


def smoke(settings: Settings) -> dict[str, Any]:
  """Returns the changes for `:smoke`: tiny networks with the same number of stages, a minute on a CPU."""
  return {"widths": (16,) * len(settings.widths), "noise_dim": 16}


@dataclass(frozen=True)
class SGAN(DCGAN, LearnsFromUnlabelled):
  """The algorithm (`algorithms.base.Algorithm` and `HasClassifier`): DCGAN's, with labels of reals.

  Samples are unconditional.

  Attributes:
    discriminator: (images, train) -> logits [N, K].
    unlabelled, fakes, saturating: see `Settings`.
  """

  unlabelled: bool
  fakes: bool
  saturating: bool

  @property
  def num_classes(self) -> int:
    return 0

  @property
  def averages(self) -> dict[str, Average]:
    averaged = ("generator", "generator_moments", "discriminator", "discriminator_moments")
    return {name: Average(name, "ema_half_life") for name in averaged}

  def init(self, key: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
    params, carry = super().init(key)
    return params, carry | {"classification_error": jnp.full((), 1 - 1 / self.images.num_classes)}

  def classify(self, params: Params, carry: Carry, images: jax.Array) -> jax.Array:
    """Returns logits of the classes without "fake" [N, K], normalised by running moments."""
    return apply_trained(self.discriminator, params["discriminator"], carry["discriminator_moments"], images)

  def _discriminator_gradients(
    self, params: Params, carry: Carry, batch: Batch, keys: jax.Array, hyperparameters: Hyperparameters
  ) -> tuple[Params, Carry, Metrics]:
    del hyperparameters
    fake, _ = self._generate(params["generator"], carry, keys)
    real, labels = to_float(batch["image"]), batch["label"]
    labelled = labels >= 0

    def loss(discriminator: Any) -> tuple[jax.Array, tuple[Any, jax.Array, Metrics]]:
      logits, moments = self._logits(discriminator, carry, real)
      fake_logits, _ = self._logits(discriminator, carry, fake)
      real_loss = softplus(-logsumexp(logits, axis=-1))
      class_loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)  # -log p(y) + log p(real)
      losses = {
        "labelled_loss": _mean_over(labelled, real_loss + class_loss),
        "unlabelled_loss": _mean_over(~labelled, real_loss),
        "fake_loss": jnp.mean(softplus(logsumexp(fake_logits, axis=-1))),
      }
      total = losses["labelled_loss"] + float(self.unlabelled) * losses["unlabelled_loss"]
      total += float(self.fakes) * losses["fake_loss"]
      wrong = (jax.lax.argmax(logits, 1, labels.dtype) != labels).astype(logits.dtype)
      return total, (moments, wrong, losses | {"loss": total})

    gradients, (moments, wrong, metrics) = jax.grad(loss, has_aux=True)(params["discriminator"])
    before = carry["classification_error"]
    step = (1 - ERROR_DECAY) * (jax.lax.pmean(_mean_over(labelled, wrong), DATA_AXIS) - before)
    error = before + jnp.where(jax.lax.pmax(jnp.any(labelled), DATA_AXIS), step, 0)
    carry = {**carry, "discriminator_moments": moments, "classification_error": error}
    return {"discriminator": gradients}, carry, metrics | {"classification_error": error}

  def _generator_gradients(
    self, params: Params, carry: Carry, batch: Batch, keys: jax.Array, hyperparameters: Hyperparameters
  ) -> tuple[Params, Carry, Metrics]:
    del batch, hyperparameters

    def loss(generator: Any) -> tuple[jax.Array, Any]:
      fake, moments = self._generate(generator, carry, keys)
      logits, _ = self._logits(params["discriminator"], carry, fake)
      s = logsumexp(logits, axis=-1)
      loss = SATURATING if self.saturating else NON_SATURATING
      return jnp.mean(loss.generator(s, s)), moments

    (total, moments), gradients = jax.value_and_grad(loss, has_aux=True)(params["generator"])
    return {"generator": gradients}, {**carry, "generator_moments": moments}, {"loss": total}


def build(settings: Settings, images: Images, platform: str) -> SGAN:
  """Builds SGAN; arguments and errors are those of `algorithms.r3gan.build`."""
  del platform
  if not images.num_classes:
    raise UserError("config.data.num_classes = 0: sgan learns to classify: set it to the number of classes")
  check_stages(settings, ("widths",), images, halvings=1)
  shared: dict[str, Any] = {"widths": settings.widths, "axis_name": DATA_AXIS, "kernel_size": settings.kernel_size}
  optimizer = at_rate(optax.scale_by_adam(b1=settings.beta1, b2=settings.beta2))
  return SGAN(
    generator=Generator(**shared, image_channels=images.channels),
    discriminator=Classifier(**shared, num_classes=images.num_classes),
    noise_dim=settings.noise_dim,
    images=images,
    unlabelled=settings.unlabelled,
    fakes=settings.fakes,
    saturating=settings.saturating,
    optimizers={"generator": optimizer, "discriminator": optimizer},
    schedules={name: constant(getattr(settings, name)) for name in ("learning_rate", "ema_half_life")},
  )


def _mean_over(kind: jax.Array, values: jax.Array) -> jax.Array:
  """Returns the mean of values [N] over the samples of one kind, bool [N], as means over devices add up to it.

  It is 0 if there are none in the global batch.
  """
  share = jax.lax.pmean(jnp.mean(kind.astype(values.dtype)), DATA_AXIS)
  return jnp.mean(jnp.where(kind, values, 0)) / jnp.where(share > 0, share, 1)
