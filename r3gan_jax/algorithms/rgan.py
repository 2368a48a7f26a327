"""rGAN: conditional GANs that learn clean classes from noisy labels (Kaneko et al. 2019, arXiv 1811.11165).

The labels y~ of the data are noisy, by known probabilities T_ij = p(y~ = j | y = i). A GAN that matches them would draw
classes as mixed as the data; here the noise is added on the side of G, so that G itself may stay clean. SAGAN's
networks without attention, and without spectral normalisation of G; G gets classes y', drawn uniformly.

rAC-GAN (`form` "ac"), from AC-GAN: D has a second head C for the class, which predicts clean classes, as its loss sees
them through T:

    D    hinge + mean( -log sum_i T_i,y~ C(i | real) )
    G    mean( -D(G(z, y')) ) + w mean( -log C(y' | G(z, y')) )

rcGAN ("c"), from the projection GAN: fakes reach D with a noisy label, drawn from T:

    D    mean( max(0, 1 - D(real, y~)) + max(0, 1 + D(G(z, y'), y~')) )      y~' ~ T_y'
    G    mean( -D(G(z, y'), y~') )

Without noise, T = I, these are AC-GAN and the projection GAN. Reals get noise of one level of their 8 bits.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from r3gan_jax.algorithms import sagan
from r3gan_jax.algorithms.base import Batch, Carry, Metrics, Params, split_keys
from r3gan_jax.algorithms.images import Images
from r3gan_jax.algorithms.sagan import SAGAN, Judge
from r3gan_jax.data.relabelled import transition_matrix
from r3gan_jax.errors import UserError
from r3gan_jax.losses.adversarial import HINGE
from r3gan_jax.networks.resnet_sn import AuxiliaryClassifier, Discriminator, Generator
from r3gan_jax.ops.images import to_float
from r3gan_jax.schedules import linear
from r3gan_jax.settings import below_one, not_negative, one_of, positive, probability, setting

PHASES = sagan.PHASES
SHOWN = 3
"""How many noisy labels pictures show for each clean one."""


@dataclass(frozen=True)
class Settings(sagan.Settings):
  """`config.gan` of rGAN: SAGAN's, with its own; the defaults are the paper's, for CIFAR-10."""

  form: str = setting("ac", one_of(("ac", "c")))  # rAC-GAN or rcGAN
  # T, as G's side knows it: the settings of config.data by these names make the labels noisy. 0: AC-GAN or cGAN.
  label_noise: float = setting(0.0, probability)
  label_noise_pairs: tuple[tuple[int, int], ...] = setting(())
  class_weight: float = setting(0.1, not_negative)  # w; rAC-GAN's only
  generator_widths: tuple[int, ...] = setting((256, 256, 256, 256), positive)
  discriminator_widths: tuple[int, ...] = setting((128, 128, 128, 128), positive)
  whole_blocks: int = setting(2, not_negative)
  attention_side: int = setting(0, not_negative)
  generator_spectral_norm: bool = setting(False)
  discriminator_updates: int = setting(5, positive)
  generator_batches: int = setting(2, positive)
  generator_learning_rate: float = setting(2e-4, not_negative)
  discriminator_learning_rate: float = setting(2e-4, not_negative)
  decay_images: int = setting(32_000_000, positive)  # over which both rates fall linearly to 0
  beta2: float = setting(0.9, below_one)


smoke = sagan.smoke


@dataclass(frozen=True)
class RGAN(SAGAN):
  """The common part of rAC-GAN and rcGAN (`algorithms.base.Algorithm` and `HasPictures`).

  Attributes:
    transition: T, float64 [K, K].
  """

  transition: np.ndarray = field(compare=False)

  def pictures(self, params: Params, carry: Carry, images: jax.Array) -> dict[str, jax.Array]:
    """Returns samples of each class in turn, and beside each others of classes that noise might make of it."""
    count = len(images)
    clean = jnp.arange(count, dtype=jnp.int32) % self.num_classes
    noise_keys, label_keys = split_keys(jax.random.split(jax.random.key(0), count * SHOWN), 2)
    noisy = noisy_labels(jnp.repeat(clean, SHOWN), self.transition, label_keys)
    labels = jnp.concatenate([clean[:, None], noisy.reshape(count, SHOWN)], axis=1)
    of_clean = self.noise(jax.random.split(jax.random.key(1), count))
    noise = jnp.concatenate([of_clean[:, None], self.noise(noise_keys).reshape(count, SHOWN, -1)], axis=1)
    samples = self.generate(params, carry, noise.reshape(-1, self.noise_dim), labels.reshape(-1))
    rows = samples.reshape(count, SHOWN + 1, *self.image_shape)
    beside = jnp.moveaxis(rows, 1, 2).reshape(count, self.image_shape[0], -1, self.image_shape[2])
    return {"clean_classes_and_noisy_labels": beside}

  def _real(self, batch: Batch, keys: jax.Array) -> jax.Array:
    """Returns reals with U(0, 1 / 128) added to each value."""
    real = to_float(batch["image"])
    drawn = jax.vmap(lambda key: jax.random.uniform(key, real.shape[1:], real.dtype, maxval=1 / 128))(keys)
    return real + drawn


@dataclass(frozen=True)
class RACGAN(RGAN):
  """rAC-GAN; also `HasClassifier`.

  Attributes:
    discriminator: (images, labels, ignored) -> logits [N], and C's of the classes [N, K].
    class_weight: see the module.
  """

  class_weight: float

  def classify(self, params: Params, carry: Carry, images: jax.Array) -> jax.Array:
    """Returns C's logits of the clean classes [N, K]."""
    _, classes = self._judge(params["discriminator"], carry)(images, None)
    return jnp.asarray(classes)

  def _discriminator_loss(
    self, judge: Judge, real: jax.Array, labels: jax.Array | None, fake: jax.Array, fake_labels: jax.Array | None
  ) -> tuple[jax.Array, Metrics]:
    (real_logits, classes), (fake_logits, _) = judge(real, None), judge(fake, None)
    assert labels is not None
    class_loss = jnp.mean(forward_corrected(classes, labels, self.transition))
    means = {"real_logits": jnp.mean(real_logits), "fake_logits": jnp.mean(fake_logits), "class_loss": class_loss}
    return jnp.mean(HINGE.discriminator(real_logits, fake_logits)) + class_loss, means

  def _generator_loss(self, judge: Judge, fake: jax.Array, labels: jax.Array | None) -> tuple[jax.Array, Metrics]:
    logits, classes = judge(fake, None)
    assert labels is not None
    class_loss = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(classes, labels))
    return jnp.mean(HINGE.generator(logits, logits)) + self.class_weight * class_loss, {"class_loss": class_loss}


@dataclass(frozen=True)
class RCGAN(RGAN):
  """rcGAN: fakes have noisy labels for D."""

  def _fakes(self, generator: Any, carry: Carry, keys: jax.Array) -> tuple[jax.Array, jax.Array | None, Any]:
    drawing_keys, noise_keys = split_keys(keys, 2)
    images, labels, moments = super()._fakes(generator, carry, drawing_keys)
    assert labels is not None
    return images, noisy_labels(labels, self.transition, noise_keys), moments


def noisy_labels(labels: jax.Array, transition: np.ndarray, keys: jax.Array) -> jax.Array:
  """Draws a noisy label for each of `labels`, int32 [N]."""
  drawn = jax.vmap(jax.random.categorical)(keys, _logarithm(transition, jnp.float32)[labels])
  return drawn.astype(labels.dtype)


def forward_corrected(logits: jax.Array, labels: jax.Array, transition: np.ndarray) -> jax.Array:
  """Returns -log sum_i T_i,y~ C(i), the loss of noisy labels, [N], from logits of clean classes [N, K].

  It is the forward correction of Patrini et al. (2017, arXiv 1609.03683).
  """
  given_noisy = _logarithm(transition, logits.dtype).T[labels]
  return -jax.nn.logsumexp(jax.nn.log_softmax(logits) + given_noisy, axis=-1)


def _logarithm(transition: np.ndarray, dtype: Any) -> jax.Array:
  with np.errstate(divide="ignore"):
    return jnp.asarray(np.log(transition), dtype)


def build(settings: Settings, images: Images, platform: str) -> RGAN:
  """Builds rGAN; arguments and errors are those of `algorithms.r3gan.build`."""
  del platform
  if not images.num_classes:
    raise UserError("config.data.num_classes = 0: rgan is conditional: set it to the number of classes")
  noise = settings.label_noise, settings.label_noise_pairs
  of_generator, of_discriminator = sagan.of_networks(settings, images)
  shared: dict[str, Any] = sagan.of_training(settings, images)
  rates: Mapping[str, float] = {
    name: getattr(settings, name) for name in ("generator_learning_rate", "discriminator_learning_rate")
  }
  shared["schedules"] |= {name: linear(rate, 0.0, settings.decay_images) for name, rate in rates.items()}
  shared["transition"] = transition_matrix(images.num_classes, *noise, section="gan")
  generator = Generator(**of_generator)
  if settings.form == "c":
    return RCGAN(generator=generator, discriminator=Discriminator(**of_discriminator, head_bias=False), **shared)
  classifier = AuxiliaryClassifier(**of_discriminator)
  return RACGAN(generator=generator, discriminator=classifier, class_weight=settings.class_weight, **shared)
