"""MSG-GAN: G and D meet at every resolution (Karnewar and Wang 2020, arXiv 1903.06048).

G is ProGAN's, which has an image of 4x4, 8x8, ... pixels at every stage. D is shown all of them: the finest is its
input, and each other one joins the features of its own resolution (section 3). So gradients reach every stage of G from
the first iteration, and nothing has to grow. With x and z, reals and noise on the sphere, one iteration is

    D    loss.discriminator( D, real = means of x at all resolutions, fake = all images of G(z) )
    G    loss.generator( D(all images of G(z)) )      with a new z and the updated D

where the loss is WGAN-GP's with a penalty that is the mean over resolutions, or the logistic one with R1, likewise:
losses/penalised.py. The paper has a small drift and ProGAN's other inventions, too: networks/karras.py. D takes the
standard deviation of a group of neighbours at every stage; penalties use the gradient of the sum of all logits
nevertheless. The optimiser is the paper's RMSprop, or Adam with beta1 = 0, as in the authors' code.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax

from r3gan_jax.algorithms.base import (
  GAN,
  Average,
  Batch,
  Carry,
  Hyperparameters,
  Metrics,
  Params,
  Phase,
  side_by_side,
  spherical_noise,
  split_keys,
)
from r3gan_jax.algorithms.images import Images, check_stages, check_unconditional
from r3gan_jax.errors import UserError
from r3gan_jax.losses.penalised import LogisticR1, PenalisedLoss, Wasserstein
from r3gan_jax.networks.karras import COMBINATIONS, STDDEV_GROUP, Generator, MultiScaleDiscriminator
from r3gan_jax.ops.images import to_float
from r3gan_jax.ops.resample import image_pyramid
from r3gan_jax.optimizers import at_rate
from r3gan_jax.schedules import constant
from r3gan_jax.settings import below_one, not_negative, one_of, positive, setting

PHASES = ("discriminator", "generator")


@dataclass(frozen=True)
class Settings:
  """`config.gan` of MSG-GAN; the defaults are the paper's, at 1024x1024."""

  widths: tuple[int, ...] = setting((512, 512, 512, 512, 256, 128, 64, 32, 16), positive)  # from 4x4 upward
  noise_dim: int = setting(512, positive)  # length of z
  combine: str = setting("simple", one_of(COMBINATIONS))  # how an image joins D's features
  stddev_group: int = setting(STDDEV_GROUP, positive)  # samples over which D takes a standard deviation
  loss: str = setting("wgan_gp", one_of(("wgan_gp", "logistic")))
  penalty_weight: float = setting(10.0, not_negative)  # of WGAN-GP
  drift: float = setting(0.001, not_negative)  # weight of the square of D(real), of WGAN-GP
  gamma: float = setting(10.0, not_negative)  # weight of R1, of the logistic loss
  optimizer: str = setting("rmsprop", one_of(("adam", "rmsprop")))
  learning_rate: float = setting(0.003, not_negative)
  beta2: float = setting(0.99, below_one)  # the decay of squared gradients, of both optimisers
  ema_half_life: float = setting(11_000.0, not_negative)  # images; a decay of 0.999 for batches of 16


def smoke(settings: Settings) -> dict[str, Any]:
  """Returns the changes for `:smoke`: tiny networks with the same number of stages, a minute on a CPU."""
  return {"widths": (8,) * len(settings.widths), "noise_dim": 8}


@dataclass(frozen=True)
class MSGGAN(GAN):
  """The algorithm (`algorithms.base.Algorithm` and `HasPictures`), unconditional.

  Attributes:
    generator: z [N, noise_dim] -> images [N, 4, 4, C], [N, 8, 8, C], ...
    discriminator: images of all resolutions -> logits [N].
    loss: see the module.
    optimizers: see `Algorithm`.
  """

  generator: Generator
  discriminator: MultiScaleDiscriminator
  loss: PenalisedLoss
  optimizers: Mapping[str, optax.GradientTransformationExtraArgs] = field(compare=False)

  @property
  def phases(self) -> Sequence[Phase]:
    discriminator, generator = PHASES
    group = self.discriminator.group
    return (
      Phase(discriminator, ("discriminator",), self._discriminator_gradients, counts_images=True, group=group),
      Phase(generator, ("generator",), self._generator_gradients, fresh_batch=False, group=group),
    )

  @property
  def averages(self) -> Mapping[str, Average]:
    return {"generator": Average("generator", "ema_half_life")}

  def init(self, key: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
    generator_key, discriminator_key = jax.random.split(key)
    images = self._pyramid(jnp.zeros((self.discriminator.group, *self.image_shape)))
    params = {
      "generator": self.generator.init(generator_key, jnp.zeros((1, self.noise_dim)))["params"],
      "discriminator": self.discriminator.init(discriminator_key, images)["params"],
    }
    return params, {}

  def noise(self, keys: jax.Array) -> jax.Array:
    return spherical_noise(keys, self.noise_dim)

  def generate(
    self, params: Params, carry: Carry, noise: jax.Array, labels: jax.Array | None, truncation: float = 1.0
  ) -> jax.Array:
    """Draws images of the highest resolution. Truncation multiplies the noise (not in the paper)."""
    del carry, labels
    return self._images(params["generator"], truncation * noise)[-1]

  def pictures(self, params: Params, carry: Carry, images: jax.Array) -> dict[str, jax.Array]:
    """Returns samples at all resolutions, side by side."""
    del carry
    noise = self.noise(jax.random.split(jax.random.key(0), images.shape[0]))
    return {"samples_by_resolution": side_by_side(self._images(params["generator"], noise))}

  def _discriminator_gradients(
    self, params: Params, carry: Carry, batch: Batch, keys: jax.Array, hyperparameters: Hyperparameters
  ) -> tuple[Params, Carry, Metrics]:
    del hyperparameters
    noise_keys, loss_keys = split_keys(keys, 2)
    real = self._pyramid(to_float(batch["image"]))
    fake = self._images(params["generator"], self.noise(noise_keys))

    def loss(discriminator: Any) -> tuple[jax.Array, Metrics]:
      return self.loss.discriminator(partial(self._logits, discriminator), real, fake, loss_keys)

    gradients, metrics = jax.grad(loss, has_aux=True)(params["discriminator"])
    return {"discriminator": gradients}, carry, metrics

  def _generator_gradients(
    self, params: Params, carry: Carry, batch: Batch, keys: jax.Array, hyperparameters: Hyperparameters
  ) -> tuple[Params, Carry, Metrics]:
    del batch, hyperparameters

    def loss(generator: Any) -> jax.Array:
      return self.loss.generator(self._logits(params["discriminator"], self._images(generator, self.noise(keys))))

    total, gradients = jax.value_and_grad(loss)(params["generator"])
    return {"generator": gradients}, carry, {"loss": total}

  def _pyramid(self, images: jax.Array) -> list[jax.Array]:
    return image_pyramid(images, len(self.generator.widths))

  def _images(self, generator: Any, z: jax.Array) -> list[jax.Array]:
    return cast(list[jax.Array], self.generator.apply({"params": generator}, z))

  def _logits(self, discriminator: Any, images: Sequence[jax.Array]) -> jax.Array:
    return cast(jax.Array, self.discriminator.apply({"params": discriminator}, images))


def build(settings: Settings, images: Images, platform: str) -> MSGGAN:
  """Builds MSG-GAN; arguments and errors are those of `algorithms.r3gan.build`."""
  del platform
  check_unconditional("msggan", images)
  check_stages(settings, ("widths",), images)
  if settings.combine == "lin_cat" and min(settings.widths) < 2:
    raise UserError(f"config.gan.widths = {settings.widths}: 'lin_cat' takes halves of them: choose 2 or more")
  adam, rms = optax.scale_by_adam(b1=0.0, b2=settings.beta2), optax.scale_by_rms(decay=settings.beta2)
  optimizer = at_rate(adam if settings.optimizer == "adam" else rms)
  if settings.loss == "logistic":
    loss: PenalisedLoss = LogisticR1(settings.gamma)
  else:
    loss = Wasserstein(settings.penalty_weight, drift=settings.drift)
  return MSGGAN(
    generator=Generator(settings.widths, images.channels),
    discriminator=MultiScaleDiscriminator(settings.widths, settings.combine, settings.stddev_group),
    noise_dim=settings.noise_dim,
    images=images,
    loss=loss,
    optimizers=dict.fromkeys(("generator", "discriminator"), optimizer),
    schedules={name: constant(getattr(settings, name)) for name in ("learning_rate", "ema_half_life")},
  )
