"""InfoGAN: codes that G must make visible, found without labels (Chen et al. 2016, arXiv 1606.03657).

G gets z ~ U(-1, 1) and codes: a category k, uniform over K, and c_j ~ U(-1, 1). D has a second head Q, which guesses
the codes of fakes: probabilities q of the category, and means mu of the others, as Gaussians of variance 1. The mutual
information of codes and images is at least L_I (equations 4 and 5), here without the constants of the Gaussians:

    L_I = mean( log q_k + log K - 1/2 sum_j (c_j - mu_j)^2 )

One iteration is two phases, both of which raise L_I; Q has no phase, nor optimiser, of its own:

    D, Q    mean( softplus(-D(real)) + softplus(D(G(z, c))) ) - w L_I
    G       mean( softplus(-D(G(z, c))) ) - w L_I      with new z, c and the updated D

Reals and fakes pass D in separate batches, as in DCGAN.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from r3gan_jax.algorithms.base import (
  DATA_AXIS,
  Batch,
  Carry,
  Hyperparameters,
  Metrics,
  Params,
  split_keys,
  uniform_noise,
)
from r3gan_jax.algorithms.dcgan import DCGAN
from r3gan_jax.algorithms.images import Images, check_unconditional
from r3gan_jax.errors import UserError
from r3gan_jax.losses.adversarial import NON_SATURATING
from r3gan_jax.networks.infogan import Discriminator, Generator
from r3gan_jax.networks.layers import apply_trained
from r3gan_jax.ops.images import to_float
from r3gan_jax.optimizers import at_rate
from r3gan_jax.schedules import constant
from r3gan_jax.settings import below_one, not_negative, positive, setting

PHASES = ("discriminator", "generator")
TRAVERSED = (-2.0, 2.0)
"""The values between which pictures vary a code, as figure 2 of the paper: twice as far as in training."""
SHOWN = 10
"""How many values a picture shows, and how many pictures there are of each code."""


@dataclass(frozen=True)
class Settings:
  """`config.gan` of InfoGAN; the defaults are the paper's, for MNIST."""

  widths: tuple[int, int] = setting((128, 64), positive)  # channels at a quarter and at half of the resolution
  dense_width: int = setting(1024, positive)
  q_width: int = setting(128, positive)  # of Q's own layer
  noise_dim: int = setting(62, positive)  # length of z, without codes
  categories: int = setting(10, positive)  # K
  continuous_codes: int = setting(2, not_negative)
  information_weight: float = setting(1.0, not_negative)  # w
  generator_learning_rate: float = setting(1e-3, not_negative)
  discriminator_learning_rate: float = setting(2e-4, not_negative)
  beta1: float = setting(0.5, below_one)
  beta2: float = setting(0.999, below_one)
  ema_half_life: float = setting(0.0, not_negative)  # images; 0, as in the paper: no averaging


def smoke(settings: Settings) -> dict[str, Any]:
  """Returns the changes for `:smoke`: tiny networks, a minute on a CPU."""
  del settings
  return {"widths": (16, 8), "dense_width": 16, "q_width": 16, "noise_dim": 8}


@dataclass(frozen=True)
class InfoGAN(DCGAN):
  """The algorithm (`algorithms.base.Algorithm`, `HasPictures` and `HasCategories`): DCGAN's, with codes.

  `noise` is [z, one-hot category, continuous codes].

  Attributes:
    generator: (noise [N, noise_dim], train) -> pixels [N, H, W, C] in [0, 1].
    discriminator: (pixels, train) -> logits [N], and Q's logits of the categories and means, [N, codes].
    categories, continuous_codes, information_weight: see `Settings`.
  """

  categories: int
  continuous_codes: int
  information_weight: float

  def noise(self, keys: jax.Array) -> jax.Array:
    uniform_keys, category_keys = split_keys(keys, 2)
    drawn = jax.vmap(lambda key: jax.random.randint(key, (), 0, self.categories, jnp.int32))(category_keys)
    uniform = uniform_noise(uniform_keys, self.noise_dim - self.categories)
    z, continuous = jnp.split(uniform, [uniform.shape[1] - self.continuous_codes], axis=1)
    return jnp.concatenate([z, jax.nn.one_hot(drawn, self.categories, dtype=z.dtype), continuous], axis=1)

  @property
  def noise_bounds(self) -> tuple[np.ndarray, np.ndarray]:
    """U(-1, 1), but for the category; what is between two categories is a mixture."""
    lowest, highest = super().noise_bounds
    first = self.noise_dim - self.categories - self.continuous_codes
    lowest[first : first + self.categories] = 0
    return lowest, highest

  def generate(
    self, params: Params, carry: Carry, noise: jax.Array, labels: jax.Array | None, truncation: float = 1.0
  ) -> jax.Array:
    """Draws images, normalised by running moments. Truncation multiplies all but the category (not in the paper)."""
    z, category, continuous = self._split(noise)
    noise = jnp.concatenate([truncation * z, category, truncation * continuous], axis=1)
    return 2 * super().generate(params, carry, noise, labels) - 1

  def pictures(self, params: Params, carry: Carry, images: jax.Array) -> dict[str, jax.Array]:
    """Returns traversals: columns of images that differ in one code alone, a picture for each code."""
    del images
    noise = self.noise(jax.random.split(jax.random.key(0), SHOWN))
    z, category, continuous = (part[:, None] for part in self._split(noise))  # [columns, 1, part]
    categories = jnp.eye(self.categories, dtype=noise.dtype)[None]  # [1, values, K]
    values = jnp.linspace(*TRAVERSED, SHOWN, dtype=noise.dtype)

    def columns(*parts: jax.Array) -> jax.Array:
      values = max(part.shape[1] for part in parts)
      rows = [jnp.broadcast_to(part, (SHOWN, values, part.shape[2])) for part in parts]
      drawn = self.generate(params, carry, jnp.concatenate(rows, axis=2).reshape(SHOWN * values, -1), None)
      return drawn.reshape(SHOWN, -1, *self.image_shape[1:])

    traversals = {"traversals_of_the_category": columns(z, categories, continuous)}
    for code in range(self.continuous_codes):
      changed = jnp.repeat(continuous, SHOWN, axis=1).at[:, :, code].set(values)
      traversals[f"traversals_of_code_{code + 1}"] = columns(z, category, changed)
    return traversals

  def categorise(self, params: Params, carry: Carry, images: jax.Array) -> jax.Array:
    """Returns Q's logits of the category [N, K], normalised by running moments."""
    moments = carry["discriminator_moments"]
    _, guesses = apply_trained(self.discriminator, params["discriminator"], moments, (images + 1) / 2)
    return guesses[:, : self.categories]

  def _split(self, noise: jax.Array) -> list[jax.Array]:
    """Returns the parts of noise [N, noise_dim]: z, the one-hot category, and the continuous codes."""
    first = self.noise_dim - self.categories - self.continuous_codes
    return jnp.split(noise, [first, first + self.categories], axis=1)

  def _discriminator_gradients(
    self, params: Params, carry: Carry, batch: Batch, keys: jax.Array, hyperparameters: Hyperparameters
  ) -> tuple[Params, Carry, Metrics]:
    del hyperparameters
    fake, _ = self._generate(params["generator"], carry, keys)
    real = (to_float(batch["image"]) + 1) / 2

    def loss(discriminator: Any) -> tuple[jax.Array, tuple[Any, Metrics]]:
      (real_logits, _), moments = self._logits(discriminator, carry, real)
      (fake_logits, guesses), _ = self._logits(discriminator, carry, fake)
      adversarial = jnp.mean(NON_SATURATING.discriminator(real_logits, fake_logits))
      information = self._information(guesses, keys)
      total = adversarial - self.information_weight * sum(information.values())
      means = {"real_logits": jnp.mean(real_logits), "fake_logits": jnp.mean(fake_logits)}
      return total, (moments, {"loss": total} | means | information)

    gradients, (moments, metrics) = jax.grad(loss, has_aux=True)(params["discriminator"])
    return {"discriminator": gradients}, {**carry, "discriminator_moments": moments}, metrics

  def _generator_gradients(
    self, params: Params, carry: Carry, batch: Batch, keys: jax.Array, hyperparameters: Hyperparameters
  ) -> tuple[Params, Carry, Metrics]:
    del batch, hyperparameters

    def loss(generator: Any) -> tuple[jax.Array, Any]:
      fake, moments = self._generate(generator, carry, keys)
      (logits, guesses), _ = self._logits(params["discriminator"], carry, fake)
      information = sum(self._information(guesses, keys).values())
      return jnp.mean(NON_SATURATING.generator(logits, logits)) - self.information_weight * information, moments

    (total, moments), gradients = jax.value_and_grad(loss, has_aux=True)(params["generator"])
    return {"generator": gradients}, {**carry, "generator_moments": moments}, {"loss": total}

  def _information(self, guesses: jax.Array, keys: jax.Array) -> dict[str, jax.Array]:
    """Returns the two terms of L_I, of Q's guesses [N, codes] and the keys that the codes were drawn from."""
    _, category, continuous = self._split(self.noise(keys))
    logits, means = jnp.split(guesses, [self.categories], axis=1)
    return {
      "information_of_the_category": jnp.mean(category_information(logits, category)),
      "information_of_other_codes": jnp.mean(gaussian_information(means, continuous)),
    }


def category_information(logits: jax.Array, category: jax.Array) -> jax.Array:
  """Returns log q_k + log K from Q's logits and one-hot categories, [N, K] -> [N]: log K at best, 0 for the prior."""
  return jnp.sum(category * jax.nn.log_softmax(logits), axis=1) + jnp.log(jnp.asarray(logits.shape[1], logits.dtype))


def gaussian_information(means: jax.Array, codes: jax.Array) -> jax.Array:
  """Returns -1/2 sum_j (c_j - mu_j)^2, [N, C] -> [N]; without ln 2 - ln(2 pi) / 2 for each j, the entropy included."""
  return -jnp.sum(jnp.square(codes - means), axis=1) / 2


def build(settings: Settings, images: Images, platform: str) -> InfoGAN:
  """Builds InfoGAN; arguments and errors are those of `algorithms.r3gan.build`."""
  del platform
  check_unconditional("infogan", images)
  if images.side % 4:
    raise UserError(f"config.data.resolution = {images.side}: infogan's networks need a multiple of 4")
  codes = settings.categories + settings.continuous_codes
  shared: dict[str, Any] = {
    "widths": settings.widths,
    "dense_width": settings.dense_width,
    "axis_name": DATA_AXIS,
  }
  adam = optax.scale_by_adam(b1=settings.beta1, b2=settings.beta2)
  rates = {network: f"{network}_learning_rate" for network in ("generator", "discriminator")}
  return InfoGAN(
    generator=Generator(**shared, side=images.side, image_channels=images.channels),
    discriminator=Discriminator(**shared, q_width=settings.q_width, codes=codes),
    noise_dim=settings.noise_dim + codes,
    images=images,
    categories=settings.categories,
    continuous_codes=settings.continuous_codes,
    information_weight=settings.information_weight,
    optimizers={network: at_rate(adam, rate) for network, rate in rates.items()},
    schedules={name: constant(getattr(settings, name)) for name in (*rates.values(), "ema_half_life")},
  )
