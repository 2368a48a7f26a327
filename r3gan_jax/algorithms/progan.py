"""ProGAN: networks that grow while they train (Karras et al. 2018, arXiv 1710.10196).

Training begins with images of 4x4 pixels. When these are learnt, the layers for 8x8 are faded in, then those for 16x16,
and so on (section 2, figure 2). `lod`, the level of detail, says how far: at 0 the networks are whole, at 1 the last
stage is missing, and at 0.25 it counts for three quarters, beside the image without it. It is a schedule,

    lod    S - 1 for `hold_images`, down to S - 2 over `ramp_images`, S - 2 for `hold_images`, ..., 0     (S stages)

so that one compiled step serves all of training: every stage is computed, and blended by `lod`. With x and z, reals and
noise on the sphere, one iteration is

    fade(images) = images of all resolutions -> one, without the details above `lod`

    D    loss.discriminator( D_lod,  real = fade(means of x),  fake = fade(G(z)) )
    G    loss.generator( D_lod(fade(G(z))) )      with a new z and the updated D

where the loss is WGAN-GP's with a drift (appendix A.1), or the logistic one with R1: losses/penalised.py. Adam has
beta1 = 0, and forgets its moments whenever a fade begins or ends, as in the authors' code.

With `growing` off, `lod` is 0 from the start: the same networks at a fixed resolution.

The other inventions are in networks/karras.py: equalised learning rates, pixel norm, and the standard deviation of a
group of samples as a feature of D. This couples neighbours in the batch; penalties use the gradient of the sum of all
logits nevertheless, as in the authors' code.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from r3gan_jax.losses.penalised import LogisticR1, PenalisedLoss, Wasserstein
from r3gan_jax.networks.karras import STDDEV_GROUP, Discriminator, Generator, fade
from r3gan_jax.ops.images import to_float
from r3gan_jax.ops.resample import image_pyramid
from r3gan_jax.optimizers import adam_without_momentum, reset_on_change
from r3gan_jax.schedules import Schedule, constant, growth
from r3gan_jax.settings import below_one, not_negative, one_of, positive, setting

PHASES = ("discriminator", "generator")


@dataclass(frozen=True)
class Settings:
  """`config.gan` of ProGAN; the defaults are the paper's, for CIFAR-10."""

  widths: tuple[int, ...] = setting((128, 128, 128, 128), positive)  # channels of each stage, from 4x4 upward
  noise_dim: int = setting(128, positive)  # length of z
  stddev_group: int = setting(STDDEV_GROUP, positive)  # samples over which D takes a standard deviation
  growing: bool = setting(True)
  hold_images: int = setting(400_000, not_negative)  # at each resolution
  ramp_images: int = setting(400_000, positive)  # from each resolution to the next
  loss: str = setting("wgan_gp", one_of(("wgan_gp", "logistic")))
  penalty_weight: float = setting(10.0, not_negative)  # of WGAN-GP
  penalty_norm: float = setting(750.0, positive)  # of D's gradient, that WGAN-GP wants; 1 for other data than CIFAR-10
  drift: float = setting(0.001, not_negative)  # weight of the square of D(real), of WGAN-GP
  gamma: float = setting(10.0, not_negative)  # weight of R1, of the logistic loss
  learning_rate: float = setting(1e-3, not_negative)
  beta2: float = setting(0.99, below_one)
  ema_half_life: float = setting(11_000.0, not_negative)  # images; a decay of 0.999 for batches of 16


def smoke(settings: Settings) -> dict[str, Any]:
  """Returns the changes for `:smoke`: tiny networks that grow at once, a minute on a CPU."""
  return {"widths": (8,) * len(settings.widths), "noise_dim": 8, "hold_images": 8, "ramp_images": 8}


@dataclass(frozen=True)
class ProGAN(GAN):
  """The algorithm (`algorithms.base.Algorithm` and `HasPictures`), unconditional.

  The carry has the `lod` of the last iteration, at which samples are drawn.

  Attributes:
    generator: z [N, noise_dim] -> images [N, 4, 4, C], [N, 8, 8, C], ...
    discriminator: (images [N, H, W, C], lod) -> logits [N].
    loss: see the module.
  """

  generator: Generator
  discriminator: Discriminator
  loss: PenalisedLoss

  @property
  def phases(self) -> Sequence[Phase]:
    discriminator, generator = PHASES
    group = self.discriminator.group
    return (
      Phase(discriminator, ("discriminator",), self._discriminator_gradients, counts_images=True, group=group),
      Phase(generator, ("generator",), self._generator_gradients, fresh_batch=False, group=group),
    )

  @property
  def optimizers(self) -> Mapping[str, optax.GradientTransformationExtraArgs]:
    return dict.fromkeys(("generator", "discriminator"), reset_on_change(adam_without_momentum(), "fades"))

  @property
  def averages(self) -> Mapping[str, Average]:
    return {"generator": Average("generator", "ema_half_life")}

  def init(self, key: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
    generator_key, discriminator_key = jax.random.split(key)
    images, lod = jnp.zeros((self.discriminator.group, *self.image_shape)), self.schedules["lod"](jnp.int32(0))
    params = {
      "generator": self.generator.init(generator_key, jnp.zeros((1, self.noise_dim)))["params"],
      "discriminator": self.discriminator.init(discriminator_key, images, lod)["params"],
    }
    return params, {"lod": lod}

  def noise(self, keys: jax.Array) -> jax.Array:
    return spherical_noise(keys, self.noise_dim)

  def generate(
    self, params: Params, carry: Carry, noise: jax.Array, labels: jax.Array | None, truncation: float = 1.0
  ) -> jax.Array:
    """Draws images of the current resolution, enlarged. Truncation multiplies the noise (not in the paper)."""
    del labels
    return fade(self._images(params["generator"], truncation * noise), carry["lod"])

  def pictures(self, params: Params, carry: Carry, images: jax.Array) -> dict[str, jax.Array]:
    """Returns samples of all stages, side by side, and each real image beside what D sees of it.

    Stages above the current one are not trained yet, and the images of those below it have not been trained since.
    """
    samples = self._images(params["generator"], self.noise(jax.random.split(jax.random.key(0), images.shape[0])))
    return {
      "samples_by_stage": side_by_side(samples),
      "reals_and_what_is_seen": side_by_side([images, self._faded(images, carry["lod"])]),
    }

  def _discriminator_gradients(
    self, params: Params, carry: Carry, batch: Batch, keys: jax.Array, hyperparameters: Hyperparameters
  ) -> tuple[Params, Carry, Metrics]:
    lod, (noise_keys, loss_keys) = hyperparameters["lod"], split_keys(keys, 2)
    real = self._faded(to_float(batch["image"]), lod)
    fake = fade(self._images(params["generator"], self.noise(noise_keys)), lod)

    def loss(discriminator: Any) -> tuple[jax.Array, Metrics]:
      return self.loss.discriminator(partial(self._logits, discriminator, lod), real, fake, loss_keys)

    gradients, metrics = jax.grad(loss, has_aux=True)(params["discriminator"])
    return {"discriminator": gradients}, {**carry, "lod": lod}, metrics

  def _generator_gradients(
    self, params: Params, carry: Carry, batch: Batch, keys: jax.Array, hyperparameters: Hyperparameters
  ) -> tuple[Params, Carry, Metrics]:
    del batch
    lod = hyperparameters["lod"]

    def loss(generator: Any) -> jax.Array:
      fake = fade(self._images(generator, self.noise(keys)), lod)
      return self.loss.generator(self._logits(params["discriminator"], lod, fake))

    total, gradients = jax.value_and_grad(loss)(params["generator"])
    return {"generator": gradients}, carry, {"loss": total}

  def _faded(self, images: jax.Array, lod: jax.Array) -> jax.Array:
    return fade(image_pyramid(images, len(self.generator.widths)), lod)

  def _images(self, generator: Any, z: jax.Array) -> list[jax.Array]:
    return cast(list[jax.Array], self.generator.apply({"params": generator}, z))

  def _logits(self, discriminator: Any, lod: jax.Array, images: jax.Array) -> jax.Array:
    return cast(jax.Array, self.discriminator.apply({"params": discriminator}, images, lod))


def build(settings: Settings, images: Images, platform: str) -> ProGAN:
  """Builds ProGAN; arguments and errors are those of `algorithms.r3gan.build`."""
  del platform
  check_unconditional("progan", images)
  check_stages(settings, ("widths",), images)
  if settings.loss == "logistic":
    loss: PenalisedLoss = LogisticR1(settings.gamma)
  else:
    loss = Wasserstein(settings.penalty_weight, settings.penalty_norm, settings.drift)
  return ProGAN(
    generator=Generator(settings.widths, images.channels),
    discriminator=Discriminator(settings.widths, settings.stddev_group),
    noise_dim=settings.noise_dim,
    images=images,
    loss=loss,
    schedules={
      **growth_schedules(settings, len(settings.widths) - 1),
      **{name: constant(getattr(settings, name)) for name in ("learning_rate", "beta2", "ema_half_life")},
    },
  )


def growth_schedules(settings: Any, start: int) -> dict[str, Schedule]:
  """Returns `lod`, from `start` down to 0 by the settings, and `fades`, which changes when a fade begins or ends."""
  lod = growth(start, settings.hold_images, settings.ramp_images) if settings.growing else constant(0.0)
  return {"lod": lod, "fades": lambda images_seen: jnp.floor(lod(images_seen)) + jnp.ceil(lod(images_seen))}
