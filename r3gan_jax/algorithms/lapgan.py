"""LAPGAN: a GAN for every level of a Laplacian pyramid (Denton et al. 2015, arXiv 1506.05751).

With d and u, which halve and double the resolution, an image I is the coarsest of I, d(I), d(d(I)), ... and, for every
level k above it, what is lost by shrinking (equation 3):

    l_k = u(d(I_k)),    h_k = I_k - l_k

The GAN of a level draws residuals h_k for a coarse image l_k and z_k ~ U(-1, 1); at the coarsest, l is 0 and h the
image itself. D judges the sum h + l, so it sees an image of the level. Every level is trained by itself, with the l of
real images:

    D_k    mean( softplus(-D(h_k, l_k)) + softplus(D(G(z_k, l_k), l_k)) )                        equation 2
    G_k    mean( softplus(-D(G(z_k, l_k), l_k)) )      with new z_k and the updated D

Only sampling chains the levels (equation 4), where each gets its l from the image so far:

    I~_k = l~_k + G(z_k, l~_k),    l~_k = u(I~_(k+1))

An iteration is 2 phases for each level, all on the same real images. D has dropout in every pass, also in G's loss. As
no loss couples samples, it does not matter that a fake has the l of a real image of the same batch; the authors draw
others. Different from theirs: d is the mean of 2x2 pixels and u repeats pixels, so that the residuals of 2x2 pixels sum
to 0 (theirs are bilinear); and pixels are in [-1, 1], where the authors standardise them by mean and standard deviation
of the data, which an algorithm does not see before training.

The optimiser "sgd" is the paper's, without its decay of the learning rate, 0.4 % in 100 epochs; with Adam, the
momentum is not used.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from r3gan_jax.algorithms.base import (
  Average,
  Batch,
  Carry,
  Hyperparameters,
  Metrics,
  Params,
  Phase,
  UniformGAN,
  side_by_side,
  split_keys,
  uniform_noise,
)
from r3gan_jax.algorithms.images import Images
from r3gan_jax.errors import UserError
from r3gan_jax.losses.adversarial import NON_SATURATING
from r3gan_jax.networks.lapgan import CoarsestDiscriminator, CoarsestGenerator, Discriminator, Generator
from r3gan_jax.ops.images import to_float
from r3gan_jax.ops.resample import mean2x, repeat2x
from r3gan_jax.optimizers import at_rate, sgd
from r3gan_jax.schedules import constant, linear
from r3gan_jax.settings import Pair, below_one, not_negative, one_of, positive, setting

PHASES = ("discriminator", "generator")
"""Each of them once for every level."""


@dataclass(frozen=True)
class Settings:
  """`config.gan` of LAPGAN; the defaults are the authors', for CIFAR-10, but for the optimiser."""

  coarsest: int = setting(8, positive)  # side of the coarsest images; that of the next ones is twice as long
  generator_units: tuple[int, ...] = setting((1200, 1200), positive)  # of the coarsest level's hidden layers
  discriminator_units: tuple[int, ...] = setting((600, 600), positive)
  width: int = setting(64, positive)  # channels of the other levels' hidden layers
  dropout: float = setting(0.5, below_one)  # in D
  noise_dim: int = setting(100, positive)  # length of the coarsest level's z; others have a number for each pixel
  optimizer: str = setting("adam", one_of(("adam", "sgd")))
  learning_rate: float = setting(2e-4, not_negative)
  beta1: float = setting(0.5, below_one)  # of Adam
  beta2: float = setting(0.999, below_one)
  momentum: Pair = setting((0.5, 0.8), below_one)  # of SGD: (from, to), linear over
  momentum_images: int = setting(18_750_000, positive)  # 375 epochs
  ema_half_life: float = setting(0.0, not_negative)  # images; 0, as in the paper: no averaging


def smoke(settings: Settings) -> dict[str, Any]:
  """Returns the changes for `:smoke`: tiny networks, a minute on a CPU."""
  del settings
  return {"generator_units": (16, 16), "discriminator_units": (16, 16), "width": 8, "noise_dim": 8}


class Level(NamedTuple):
  """A level of the pyramid.

  Attributes:
    side: of its images.
    noise_dim: length of its z.
    generator: (z [N, noise_dim], coarse images [N, H, W, C], one-hot classes or None) -> residuals [N, H, W, C].
    discriminator: (residuals, coarse images, classes, keys for dropout or None) -> logits [N].
  """

  side: int
  noise_dim: int
  generator: nn.Module
  discriminator: nn.Module

  def name(self, player: str) -> str:
    """Returns the name of its "generator" or "discriminator" among all networks."""
    return f"{player}_{self.side}"


def pyramid(images: jax.Array, levels: int) -> list[tuple[jax.Array, jax.Array]]:
  """Returns (h, l) of each level, the coarsest first, from images [N, H, W, C]; their sum is the image of the level."""
  pairs = []
  for _ in range(levels - 1):
    smaller = mean2x(images)
    coarse = repeat2x(smaller)
    pairs.append((images - coarse, coarse))
    images = smaller
  return [(images, jnp.zeros_like(images)), *reversed(pairs)]


@dataclass(frozen=True)
class LAPGAN(UniformGAN):
  """The algorithm (`algorithms.base.Algorithm` and `HasPictures`), conditional if the data have classes.

  `noise` is that of all levels, the coarsest first.

  Attributes:
    levels: the coarsest first.
    optimizers: see `Algorithm`.
  """

  levels: tuple[Level, ...]
  optimizers: Mapping[str, optax.GradientTransformationExtraArgs] = field(compare=False)

  @property
  def phases(self) -> Sequence[Phase]:
    discriminator, generator = PHASES
    phases = []
    for index, level in enumerate(self.levels):
      updates, first = (level.name(discriminator),), index == 0
      gradients = partial(self._discriminator_gradients, index)
      phases.append(Phase(discriminator, updates, gradients, counts_images=first, fresh_batch=first))
      updates = (level.name(generator),)
      phases.append(Phase(generator, updates, partial(self._generator_gradients, index), fresh_batch=False))
    return phases

  @property
  def averages(self) -> Mapping[str, Average]:
    names = (level.name("generator") for level in self.levels)
    return {name: Average(name, "ema_half_life") for name in names}

  def init(self, key: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
    params = {}
    classes = self._one_hot(jnp.zeros(1, jnp.int32))
    for level, level_key in zip(self.levels, jax.random.split(key, len(self.levels)), strict=True):
      generator_key, discriminator_key = jax.random.split(level_key)
      z, image = jnp.zeros((1, level.noise_dim)), jnp.zeros((1, *self._shape(level)))
      params[level.name("generator")] = level.generator.init(generator_key, z, image, classes)["params"]
      variables = level.discriminator.init(discriminator_key, image, image, classes, None)
      params[level.name("discriminator")] = variables["params"]
    return params, {}

  def generate(
    self, params: Params, carry: Carry, noise: jax.Array, labels: jax.Array | None, truncation: float = 1.0
  ) -> jax.Array:
    """Draws images. Truncation multiplies the noise (not in the paper)."""
    del carry
    return self._drawn(params, truncation * noise, self._one_hot(labels))[-1]

  def pictures(self, params: Params, carry: Carry, images: jax.Array) -> dict[str, jax.Array]:
    """Returns samples at all levels, side by side, and each real image beside those drawn from its own coarsest one.

    With classes there are samples only, as those of the images are not given.
    """
    del carry
    noise = self.noise(jax.random.split(jax.random.key(0), images.shape[0]))
    if self.num_classes:
      labels = jnp.arange(images.shape[0], dtype=jnp.int32) % self.num_classes
      return {"samples_by_level": side_by_side(self._drawn(params, noise, self._one_hot(labels)))}
    (coarsest, _), *_ = pyramid(images, len(self.levels))
    redrawn = self._drawn(params, noise, None, coarsest)
    return {
      "samples_by_level": side_by_side(self._drawn(params, noise, None)),
      "reals_and_redrawn_by_level": side_by_side([images, *redrawn]),
    }

  def _discriminator_gradients(
    self, index: int, params: Params, carry: Carry, batch: Batch, keys: jax.Array, hyperparameters: Hyperparameters
  ) -> tuple[Params, Carry, Metrics]:
    del hyperparameters
    level, name = self.levels[index], self.levels[index].name("discriminator")
    of_noise, of_real, of_fake = split_keys(keys, 3)  # the last two: for dropout
    residual, coarse, classes = self._real(index, batch)
    fake = self._residual(level, params, uniform_noise(of_noise, level.noise_dim), coarse, classes)

    def loss(discriminator: Any) -> tuple[jax.Array, Metrics]:
      judged = partial(level.discriminator.apply, {"params": discriminator})
      real_logits = jnp.asarray(judged(residual, coarse, classes, of_real))
      fake_logits = jnp.asarray(judged(fake, coarse, classes, of_fake))
      total = jnp.mean(NON_SATURATING.discriminator(real_logits, fake_logits))
      means = {"loss": total, "real_logits": jnp.mean(real_logits), "fake_logits": jnp.mean(fake_logits)}
      return total, {f"{metric}_{level.side}": value for metric, value in means.items()}

    gradients, metrics = jax.grad(loss, has_aux=True)(params[name])
    return {name: gradients}, carry, metrics

  def _generator_gradients(
    self, index: int, params: Params, carry: Carry, batch: Batch, keys: jax.Array, hyperparameters: Hyperparameters
  ) -> tuple[Params, Carry, Metrics]:
    del hyperparameters
    level, name = self.levels[index], self.levels[index].name("generator")
    of_noise, of_fake = split_keys(keys, 2)
    _, coarse, classes = self._real(index, batch)
    z = uniform_noise(of_noise, level.noise_dim)

    def loss(generator: Any) -> jax.Array:
      fake = self._residual(level, {name: generator}, z, coarse, classes)
      variables = {"params": params[level.name("discriminator")]}
      logits = jnp.asarray(level.discriminator.apply(variables, fake, coarse, classes, of_fake))
      return jnp.mean(NON_SATURATING.generator(logits, logits))

    total, gradients = jax.value_and_grad(loss)(params[name])
    return {name: gradients}, carry, {f"loss_{level.side}": total}

  def _real(self, index: int, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Returns the residuals and coarse images of a level, and one-hot classes."""
    residual, coarse = pyramid(to_float(batch["image"]), len(self.levels))[index]
    return residual, coarse, self._one_hot(batch.get("label"))

  def _residual(
    self, level: Level, params: Params, z: jax.Array, coarse: jax.Array, classes: jax.Array | None
  ) -> jax.Array:
    return jnp.asarray(level.generator.apply({"params": params[level.name("generator")]}, z, coarse, classes))

  def _drawn(
    self, params: Params, noise: jax.Array, classes: jax.Array | None, coarsest: jax.Array | None = None
  ) -> list[jax.Array]:
    """Draws images of every level, the coarsest first, which may be given instead."""
    ends = [*accumulate(level.noise_dim for level in self.levels)]
    first, *others = zip(self.levels, jnp.split(noise, ends[:-1], axis=1), strict=True)
    if coarsest is None:
      level, z = first
      zeros = jnp.zeros((noise.shape[0], *self._shape(level)), noise.dtype)
      coarsest = self._residual(level, params, z, zeros, classes)
    images = [coarsest]
    for level, z in others:
      coarse = repeat2x(images[-1])
      images.append(coarse + self._residual(level, params, z, coarse, classes))
    return images

  def _one_hot(self, labels: jax.Array | None) -> jax.Array | None:
    """Returns classes [N, K]; None if unconditional."""
    if not self.num_classes:
      return None
    if labels is None:
      raise ValueError(f"labels are missing: the networks are conditional on {self.num_classes} classes")
    return jax.nn.one_hot(labels, self.num_classes)

  def _shape(self, level: Level) -> tuple[int, int, int]:
    return level.side, level.side, self.images.channels


def build(settings: Settings, images: Images, platform: str) -> LAPGAN:
  """Builds LAPGAN; arguments and errors are those of `algorithms.r3gan.build`."""
  del platform
  coarsest, keep = settings.coarsest, 1 - settings.dropout
  scale, remainder = divmod(images.side, coarsest)
  if remainder or scale < 2 or scale.bit_count() != 1:
    raise UserError(
      f"config.data.resolution = {images.side}: lapgan needs 2, 4, 8, ... times config.gan.coarsest = {coarsest}: "
      "change one of them"
    )
  if coarsest < 3:
    raise UserError(
      f"config.gan.coarsest = {coarsest}: D's two convolutions of the next level need 6x6 pixels: choose 3 or more"
    )
  perceptrons = CoarsestGenerator(settings.generator_units), CoarsestDiscriminator(settings.discriminator_units, keep)
  levels = [Level(coarsest, settings.noise_dim, *perceptrons)]
  while levels[-1].side < images.side:
    side = 2 * levels[-1].side
    levels.append(Level(side, side * side, Generator(settings.width), Discriminator(settings.width, keep)))
  adam = at_rate(optax.scale_by_adam(b1=settings.beta1, b2=settings.beta2))
  optimizer = adam if settings.optimizer == "adam" else sgd()
  schedules = {name: constant(getattr(settings, name)) for name in ("learning_rate", "ema_half_life")}
  if settings.optimizer == "sgd":
    schedules["momentum"] = linear(*settings.momentum, settings.momentum_images)
  return LAPGAN(
    levels=tuple(levels),
    noise_dim=sum(level.noise_dim for level in levels),
    images=images,
    optimizers={level.name(player): optimizer for level in levels for player in PHASES},
    schedules=schedules,
  )
