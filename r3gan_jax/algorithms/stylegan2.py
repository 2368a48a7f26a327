"""StyleGAN2 (Karras et al. 2020, arXiv 1912.04958), configuration A of [P]'s roadmap.

With z ~ N(0, I) and w = mapping(z), one iteration is

    G    mean( softplus(-D(synthesis(w))) )
         every 4th: 4 * 2 * mean( (|J^T y| - a)^2 )                the path-length penalty, in an Adam step of its own
    D    mean( softplus(-D(real)) + softplus(D(synthesis(w))) )
         every 16th: 16 * gamma / 2 * mean( |grad D(real)|^2 )     R1, in an Adam step of its own

on one batch of reals. Regularisation is lazy (appendix B): its gradient is multiplied by the interval, and optimisers
compensate for the additional steps (optimizers.py). With style mixing, 9 of 10 samples take the w of a second z from a
random layer on.

Order, batch sizes and constants are those of the published code. D couples a group of samples by their standard
deviation; as in the published code, R1 uses the gradient of the sum of all logits.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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
  bfloat16_stages,
  cosines,
  normal_noise,
  split_keys,
)
from r3gan_jax.algorithms.images import Images, check_stages, check_unconditional
from r3gan_jax.algorithms.stylegan import W_DECAY, mix_styles, towards
from r3gan_jax.errors import UserError
from r3gan_jax.losses.adversarial import NON_SATURATING
from r3gan_jax.losses.penalties import gradient_penalty
from r3gan_jax.networks import karras
from r3gan_jax.networks import stylegan2 as networks
from r3gan_jax.ops.images import to_float
from r3gan_jax.optimizers import adam_without_momentum
from r3gan_jax.settings import Pair, below_one, not_negative, one_of, positive, setting

PATH_LENGTH_EVERY = 4
PATH_LENGTH_WEIGHT = 2.0
PATH_LENGTH_DECAY = 0.01
"""The weight of a batch's mean path length in the running mean."""

R1_EVERY = 16

PHASES = ("discriminator", "generator")


@dataclass(frozen=True)
class Settings:
  """`config.gan` of StyleGAN2; widths are those of stages from 4x4 upward."""

  widths: tuple[int, ...] = setting((512, 512, 512, 512, 256, 128, 64), positive)  # min(512, 16384 / resolution)
  noise_dim: int = setting(512, positive)  # length of z and w
  bfloat16_stages: int = setting(4, not_negative)  # the highest-resolution ones
  bfloat16: str = setting("auto", one_of(("auto", "on", "off")))  # "auto": on except on CPUs

  # Schedules, (from, to): half a cosine over the burn-in, then constant. Lazy regularisation's corrections are added.
  burn_in_images: int = setting(20_000_000, positive)
  learning_rate: Pair = setting((2.5e-3, 2.5e-3), not_negative)
  beta2: Pair = setting((0.99, 0.99), below_one)
  gamma: Pair = setting((1.0, 1.0), not_negative)  # weight of R1
  ema_half_life: Pair = setting((20_000.0, 20_000.0), not_negative)  # images


def smoke(settings: Settings) -> dict[str, Any]:
  """Returns the changes for `:smoke`: tiny networks with the same number of stages, a minute on a CPU."""
  return {"widths": (16,) * len(settings.widths), "noise_dim": 16, "burn_in_images": 64}


@dataclass(frozen=True)
class StyleGAN2(GAN):
  """The algorithm (`algorithms.base.Algorithm`), unconditional.

  Attributes:
    mapping, synthesis: the two parts of the network "generator".
    discriminator: images [N, H, W, C] -> logits [N].
  """

  mapping: karras.Mapping
  synthesis: networks.Synthesis
  discriminator: networks.Discriminator

  @property
  def phases(self) -> Sequence[Phase]:
    of_generator, of_discriminator = ("generator", ("generator",)), ("discriminator", ("discriminator",))
    group = karras.STDDEV_GROUP
    return (
      Phase(*of_generator, self._generator_gradients, group=group),
      # On every second sample.
      Phase(*of_generator, self._path_length_gradients, every=PATH_LENGTH_EVERY, fresh_batch=False, group=2),
      Phase(*of_discriminator, self._discriminator_gradients, counts_images=True, fresh_batch=False, group=group),
      Phase(*of_discriminator, self._r1_gradients, every=R1_EVERY, fresh_batch=False, group=group),
    )

  @property
  def optimizers(self) -> Mapping[str, optax.GradientTransformationExtraArgs]:
    """Adam, compensated for the updates of lazy regularisation."""
    intervals = {"generator": PATH_LENGTH_EVERY, "discriminator": R1_EVERY}
    return {name: adam_without_momentum(share=1 / (1 + 1 / every)) for name, every in intervals.items()}

  @property
  def averages(self) -> Mapping[str, Average]:
    return {"generator": Average("generator", "ema_half_life")}

  def init(self, key: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
    mapping_key, synthesis_key, discriminator_key = jax.random.split(key, 3)
    images = jnp.zeros((karras.STDDEV_GROUP, *self.image_shape))
    w = jnp.zeros((1, self.synthesis.inputs, self.mapping.width))
    params = {
      "generator": {
        "mapping": self.mapping.init(mapping_key, jnp.zeros((1, self.noise_dim)))["params"],
        "synthesis": self.synthesis.init(synthesis_key, w)["params"],
      },
      "discriminator": self.discriminator.init(discriminator_key, images)["params"],
    }
    return params, {"path_length": jnp.zeros(()), "w": jnp.zeros((self.mapping.width,))}

  def noise(self, keys: jax.Array) -> jax.Array:
    return normal_noise(keys, self.noise_dim)

  def generate(
    self, params: Params, carry: Carry, noise: jax.Array, labels: jax.Array | None, truncation: float = 1.0
  ) -> jax.Array:
    """Draws images; truncation moves w towards its running mean (Karras et al. 2019, arXiv 1812.04948, appendix B).

    Pixel noise is the same for all images, as with `noise_mode = const` in the published code.
    """
    del labels
    w = truncation * self.styles(params, noise) + (1 - truncation) * carry["w"][None]
    return self.from_styles(params, carry, w, noise)

  def styles(self, params: Params, noise: jax.Array) -> jax.Array:
    return self._map(params["generator"], noise)

  def from_styles(self, params: Params, carry: Carry, w: jax.Array, noise: jax.Array) -> jax.Array:
    del carry, noise
    return self._synthesise(params["generator"], self._for_all_layers(w))

  def in_float32(self) -> "StyleGAN2":
    return replace(self, synthesis=self.synthesis.clone(bfloat16_stages=0))

  def _generator_gradients(
    self, params: Params, carry: Carry, batch: Batch, keys: jax.Array, hyperparameters: Hyperparameters
  ) -> tuple[Params, Carry, Metrics]:
    del batch, hyperparameters

    def loss(generator: Any) -> tuple[jax.Array, jax.Array]:
      w, mean_w, noise_keys = self._draw_w(generator, keys)
      logits = self._logits(params["discriminator"], self._synthesise(generator, w, noise_keys))
      return jnp.mean(NON_SATURATING.generator(logits, logits)), mean_w

    (total, mean_w), gradients = jax.value_and_grad(loss, has_aux=True)(params["generator"])
    carry = {**carry, "w": towards(carry["w"], mean_w, W_DECAY)}
    return {"generator": gradients}, carry, {"loss": total}

  def _path_length_gradients(
    self, params: Params, carry: Carry, batch: Batch, keys: jax.Array, hyperparameters: Hyperparameters
  ) -> tuple[Params, Carry, Metrics]:
    """Computes the gradient of section 3.2, with the running mean a from before this batch, so samples stay uncoupled.

    Uses every second sample, as in the published code, to save memory and time.
    """
    del batch, hyperparameters
    y_keys, w_keys = split_keys(keys[::2], 2)

    def loss(generator: Any) -> tuple[jax.Array, jax.Array]:
      w, _, noise_keys = self._draw_w(generator, w_keys)
      lengths = path_lengths(lambda w: self._synthesise(generator, w, noise_keys), w, y_keys)
      return jnp.mean(jnp.square(lengths - carry["path_length"])), jnp.mean(lengths)

    (penalty, mean_length), gradients = jax.value_and_grad(loss, has_aux=True)(params["generator"])
    gradients = jax.tree.map(lambda g: PATH_LENGTH_EVERY * PATH_LENGTH_WEIGHT * g, gradients)
    carry = {**carry, "path_length": towards(carry["path_length"], mean_length, PATH_LENGTH_DECAY)}
    return {"generator": gradients}, carry, {"path_length": mean_length, "path_length_penalty": penalty}

  def _discriminator_gradients(
    self, params: Params, carry: Carry, batch: Batch, keys: jax.Array, hyperparameters: Hyperparameters
  ) -> tuple[Params, Carry, Metrics]:
    del hyperparameters
    w, _, noise_keys = self._draw_w(params["generator"], keys)
    images = jnp.concatenate([to_float(batch["image"]), self._synthesise(params["generator"], w, noise_keys)])

    def loss(discriminator: Any) -> tuple[jax.Array, Metrics]:
      real_logits, fake_logits = jnp.split(self._logits(discriminator, images), 2)
      total = jnp.mean(NON_SATURATING.discriminator(real_logits, fake_logits))
      means = {"real_logits": jnp.mean(real_logits), "fake_logits": jnp.mean(fake_logits)}
      return total, {"adversarial_loss": total} | means

    gradients, metrics = jax.grad(loss, has_aux=True)(params["discriminator"])
    return {"discriminator": gradients}, carry, metrics

  def _r1_gradients(
    self, params: Params, carry: Carry, batch: Batch, keys: jax.Array, hyperparameters: Hyperparameters
  ) -> tuple[Params, Carry, Metrics]:
    del keys
    real = to_float(batch["image"])

    def loss(discriminator: Any) -> jax.Array:
      return jnp.mean(gradient_penalty(lambda images: self._logits(discriminator, images), real)[1])

    r1, gradients = jax.value_and_grad(loss)(params["discriminator"])
    return (
      {"discriminator": jax.tree.map(lambda g: R1_EVERY * hyperparameters["gamma"] / 2 * g, gradients)},
      carry,
      {"r1": r1},
    )

  def _draw_w(self, generator: Any, keys: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns w [N, inputs, width] with mixed styles, the first styles' mean [width], and keys [N] for pixel noise."""
    z_keys, other_keys, mixing_keys, noise_keys = split_keys(keys, 4)
    w, other = jnp.split(self._map(generator, self.noise(jnp.concatenate([z_keys, other_keys]))), 2)
    mixed = mix_styles(self._for_all_layers(w), self._for_all_layers(other), mixing_keys)
    return mixed, jnp.mean(w, axis=0), noise_keys

  def _for_all_layers(self, w: jax.Array) -> jax.Array:
    return jnp.broadcast_to(w[:, None], (w.shape[0], self.synthesis.inputs, w.shape[1]))

  def _map(self, generator: Any, z: jax.Array) -> jax.Array:
    return cast(jax.Array, self.mapping.apply({"params": generator["mapping"]}, z))

  def _synthesise(self, generator: Any, w: jax.Array, keys: jax.Array | None = None) -> jax.Array:
    return cast(jax.Array, self.synthesis.apply({"params": generator["synthesis"]}, w, keys))

  def _logits(self, discriminator: Any, images: jax.Array) -> jax.Array:
    return cast(jax.Array, self.discriminator.apply({"params": discriminator}, images))


def build(settings: Settings, images: Images, platform: str) -> StyleGAN2:
  """Builds StyleGAN2; arguments and errors are those of `algorithms.r3gan.build`."""
  check_stages(settings, ("widths",), images)
  if images.side < 8:
    raise UserError(f"config.data.resolution = {images.side}: stylegan2 needs at least 8")
  check_unconditional("stylegan2", images)
  shared: dict[str, Any] = {
    "widths": settings.widths,
    "bfloat16_stages": bfloat16_stages(settings, platform),
  }
  return StyleGAN2(
    mapping=karras.Mapping(settings.noise_dim),
    synthesis=networks.Synthesis(**shared, image_channels=images.channels),
    discriminator=networks.Discriminator(**shared),
    noise_dim=settings.noise_dim,
    images=images,
    schedules=cosines(settings, ("learning_rate", "beta2", "gamma", "ema_half_life")),
  )


def path_lengths(synthesise: Callable[[jax.Array], jax.Array], w: jax.Array, keys: jax.Array) -> jax.Array:
  """Returns |J^T y| of each sample, [N] (section 3.2).

  Args:
    synthesise: w -> images [N, H, W, C], without coupling samples.
    w: [N, layers, width]; the squared norm is that of a layer's gradient, averaged over layers.
    keys: [N], for y ~ N(0, 1 / (H W)).
  """
  images, pull_back = jax.vjp(synthesise, w)
  shape = images.shape[1:]
  y = jax.vmap(lambda key: jax.random.normal(key, shape))(keys) / math.sqrt(shape[0] * shape[1])
  (gradient,) = pull_back(y)
  return jnp.sqrt(jnp.mean(jnp.sum(jnp.square(gradient), axis=2), axis=1))
