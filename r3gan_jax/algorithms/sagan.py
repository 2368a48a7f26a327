"""SAGAN: the GAN with self-attention (Zhang et al. 2019, arXiv 1805.08318).

Residual networks with attention (networks/attention.py) at one resolution; D judges an image x of a class y. With
z ~ N(0, I), and y' drawn uniformly for fakes, one iteration is two phases, of the hinge loss (equation 4):

    D    mean( max(0, 1 - D(real, y)) + max(0, 1 + D(G(z, y'), y')) )
    G    mean( -D(G(z, y'), y') )      with new z, y' and the updated D

Two ideas keep this balanced with one update of D per update of G. The weights of both networks, not only of D, are
normalised spectrally (networks/spectral_norm.py). The vectors of a network take one step per update of it, from the
parameters before; all passes of the phase read them. And D learns faster than G (Heusel et al. 2017, TTUR).

G's moments of batch norm are those of the global batch. Without classes, D and G are unconditional.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
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
  normal_noise,
  split_keys,
)
from r3gan_jax.algorithms.images import Images, check_stages
from r3gan_jax.errors import UserError
from r3gan_jax.losses.adversarial import HINGE
from r3gan_jax.networks.layers import MOMENTS, apply_in_training
from r3gan_jax.networks.resnet_sn import Discriminator, Generator
from r3gan_jax.networks.spectral_norm import STEPS, initial_vectors, normalised, power_iteration
from r3gan_jax.ops.images import to_float
from r3gan_jax.optimizers import at_rate
from r3gan_jax.schedules import constant
from r3gan_jax.settings import below_one, not_negative, positive, setting

PHASES = ("discriminator", "generator")
QUERIES = ((0.5, 0.5), (0.25, 0.25), (0.75, 0.5))
"""The places, as fractions of height and width, of which pictures show what they attend to."""

Judge = Callable[[jax.Array, jax.Array | None], Any]
"""(images, labels) -> what D returns."""


@dataclass(frozen=True)
class Training:
  """The settings of training that SAGAN and its descendants share."""

  noise_dim: int = setting(128, positive)  # length of z
  generator_spectral_norm: bool = setting(True)  # whether G's weights are normalised, as D's
  discriminator_updates: int = setting(1, positive)  # per update of G
  generator_batches: int = setting(1, positive)  # of how many batches of fakes G learns in an update
  generator_learning_rate: float = setting(1e-4, not_negative)
  discriminator_learning_rate: float = setting(4e-4, not_negative)
  beta1: float = setting(0.0, below_one)
  beta2: float = setting(0.9, below_one)
  ema_half_life: float = setting(0.0, not_negative)  # images; 0: no averaging


@dataclass(frozen=True)
class Settings(Training):
  """`config.gan` of SAGAN; the defaults are the paper's, at 128x128."""

  generator_widths: tuple[int, ...] = setting((1024, 1024, 512, 256, 128, 64), positive)  # of each stage, from 4x4
  discriminator_widths: tuple[int, ...] = setting((64, 128, 256, 512, 1024, 1024), positive)  # of blocks, from images
  whole_blocks: int = setting(1, not_negative)  # how many of D's blocks, the last ones, keep the resolution
  attention_side: int = setting(32, not_negative)  # the resolution at which there is attention; 0: none


def smoke(settings: Settings) -> dict[str, Any]:
  """Returns the changes for `:smoke`: tiny networks with the same number of blocks, a minute on a CPU."""
  widths = {name: (16,) * len(getattr(settings, name)) for name in ("generator_widths", "discriminator_widths")}
  return widths | {"noise_dim": 16, "discriminator_updates": min(2, settings.discriminator_updates)}


@dataclass(frozen=True)
class SAGAN(GAN):
  """The algorithm (`algorithms.base.Algorithm` and `HasPictures`), conditional if the data have classes.

  Attributes:
    generator: (z [N, noise_dim], labels [N] or None, train) -> images [N, H, W, C].
    discriminator: (images, labels) -> logits [N].
    generator_spectral_norm, discriminator_updates, generator_batches: see `Settings`.
    optimizers: see `Algorithm`.
  """

  generator: nn.Module
  discriminator: nn.Module
  generator_spectral_norm: bool
  discriminator_updates: int
  generator_batches: int
  optimizers: Mapping[str, optax.GradientTransformationExtraArgs] = field(compare=False)

  @property
  def phases(self) -> Sequence[Phase]:
    discriminator, generator = PHASES
    return (
      Phase(
        discriminator,
        ("discriminator",),
        self._discriminator_gradients,
        counts_images=True,
        repeat=self.discriminator_updates,
        group=None,
        refresh=partial(self._refreshed, "discriminator"),
      ),
      Phase(
        generator,
        ("generator",),
        self._generator_gradients,
        fresh_batch=False,
        group=None,
        refresh=partial(self._refreshed, "generator"),
      ),
    )

  @property
  def averages(self) -> Mapping[str, Average]:
    return {name: Average(name, "ema_half_life") for name in ("generator", "generator_moments")}

  def init(self, key: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
    keys = jax.random.split(key, 4)
    labels = jnp.zeros((1,), jnp.int32) if self.num_classes else None
    generator = self.generator.init(keys[0], jnp.zeros((1, self.noise_dim)), labels, train=False)
    discriminator = self.discriminator.init(keys[1], jnp.zeros((1, *self.image_shape)), labels)
    params = {"generator": generator["params"], "discriminator": discriminator["params"]}
    carry = {"generator_moments": generator[MOMENTS]}
    for network, vectors_key in zip(self._spectral, keys[2:], strict=False):
      carry[f"{network}_vectors"] = initial_vectors(vectors_key, params[network])
    return params, carry

  def noise(self, keys: jax.Array) -> jax.Array:
    return normal_noise(keys, self.noise_dim)

  def generate(
    self, params: Params, carry: Carry, noise: jax.Array, labels: jax.Array | None, truncation: float = 1.0
  ) -> jax.Array:
    """Draws images, normalised by running moments. Truncation multiplies the noise (not in the paper)."""
    return self._trained(params, carry, truncation * noise, labels)[0]

  def pictures(self, params: Params, carry: Carry, images: jax.Array) -> dict[str, jax.Array]:
    """Returns samples, each beside maps of how much three places of it, white, attend to others; {} without attention.

    With several heads, it is their mean.
    """
    side: int = self.generator.attention_side
    if not side:
      return {}
    count = len(images)
    labels = jnp.arange(count) % self.num_classes if self.num_classes else None
    samples, state = self._trained(params, carry, self.noise(jax.random.split(jax.random.key(0), count)), labels)
    (weights,) = state["intermediates"][f"attention_{side}"]["weights"]
    pixels = self.image_shape[0] // side  # of a place

    def attended(row: int, column: int) -> jax.Array:
      of_query = jnp.mean(weights, axis=1)[:, row * side + column].reshape(count, side // 2, side // 2)
      scaled = 1.5 * of_query / jnp.max(of_query, axis=(1, 2), keepdims=True) - 1
      scaled = jnp.repeat(jnp.repeat(scaled, 2 * pixels, axis=1), 2 * pixels, axis=2)
      place = (slice(row * pixels, (row + 1) * pixels), slice(column * pixels, (column + 1) * pixels))
      return jnp.broadcast_to(scaled.at[:, *place].set(1.0)[..., None], samples.shape)

    maps = [attended(int(row * side), int(column * side)) for row, column in QUERIES]
    return {"samples_and_attention": jnp.concatenate([samples, *maps], axis=2)}

  def _discriminator_gradients(
    self, params: Params, carry: Carry, batch: Batch, keys: jax.Array, hyperparameters: Hyperparameters
  ) -> tuple[Params, Carry, Metrics]:
    del hyperparameters
    drawing_keys, real_keys = split_keys(keys, 2)
    fake, fake_labels, _ = self._fakes(params["generator"], carry, drawing_keys)
    real = self._real(batch, real_keys)

    def loss(discriminator: Any) -> tuple[jax.Array, Metrics]:
      judge = self._judge(discriminator, carry)
      total, metrics = self._discriminator_loss(judge, real, batch.get("label"), fake, fake_labels)
      return total, {"loss": total} | metrics

    gradients, metrics = jax.grad(loss, has_aux=True)(params["discriminator"])
    return {"discriminator": gradients}, carry, metrics

  def _generator_gradients(
    self, params: Params, carry: Carry, batch: Batch, keys: jax.Array, hyperparameters: Hyperparameters
  ) -> tuple[Params, Carry, Metrics]:
    del batch, hyperparameters
    keys = split_keys(keys, self.generator_batches).reshape(-1)

    def loss(generator: Any) -> tuple[jax.Array, tuple[Any, Metrics]]:
      fake, labels, moments = self._fakes(generator, carry, keys)
      total, metrics = self._generator_loss(self._judge(params["discriminator"], carry), fake, labels)
      return total, (moments, {"loss": total} | metrics)

    gradients, (moments, metrics) = jax.grad(loss, has_aux=True)(params["generator"])
    return {"generator": gradients}, {**carry, "generator_moments": moments}, metrics

  def _discriminator_loss(
    self, judge: Judge, real: jax.Array, labels: jax.Array | None, fake: jax.Array, fake_labels: jax.Array | None
  ) -> tuple[jax.Array, Metrics]:
    real_logits, fake_logits = judge(real, labels), judge(fake, fake_labels)
    means = {"real_logits": jnp.mean(real_logits), "fake_logits": jnp.mean(fake_logits)}
    return jnp.mean(HINGE.discriminator(real_logits, fake_logits)), means

  def _generator_loss(self, judge: Judge, fake: jax.Array, labels: jax.Array | None) -> tuple[jax.Array, Metrics]:
    logits = judge(fake, labels)
    return jnp.mean(HINGE.generator(logits, logits)), {}

  def _real(self, batch: Batch, keys: jax.Array) -> jax.Array:
    """Returns the reals that D sees, [N, H, W, C]."""
    del keys
    return to_float(batch["image"])

  def _fakes(self, generator: Any, carry: Carry, keys: jax.Array) -> tuple[jax.Array, jax.Array | None, Any]:
    """Returns images of new noise and classes, the labels [N] that D gets, and G's updated moments."""
    z_keys, label_keys = split_keys(keys, 2)
    labels = self._drawn_labels(label_keys) if self.num_classes else None
    inputs = (self.noise(z_keys), *(() if labels is None else (labels,)))
    weights = self._weights("generator", generator, carry)
    images, moments = apply_in_training(self.generator, weights, carry["generator_moments"], *inputs)
    return images, labels, moments

  def _drawn_labels(self, keys: jax.Array) -> jax.Array:
    """Draws classes, one per key: int32 [N]."""
    return jax.vmap(lambda key: jax.random.randint(key, (), 0, self.num_classes, jnp.int32))(keys)

  def _judge(self, discriminator: Any, carry: Carry) -> Judge:
    weights = self._weights("discriminator", discriminator, carry)
    return lambda images, labels: self.discriminator.apply({"params": weights}, images, labels)

  def _trained(
    self, params: Params, carry: Carry, noise: jax.Array, labels: jax.Array | None
  ) -> tuple[jax.Array, Mapping[str, Any]]:
    """Returns G's images by running moments, and what it sows."""
    variables = {"params": self._trained_weights(params, carry), MOMENTS: carry["generator_moments"]}
    images, state = self.generator.apply(variables, noise, labels, train=False, mutable=["intermediates"])
    return cast(jax.Array, images), cast(Mapping[str, Any], state)

  def _trained_weights(self, params: Params, carry: Carry) -> Any:
    """Returns G's parameters for samples. Averaged ones need vectors of their own, to which these are a start."""
    weights = params["generator"]
    if "generator_vectors" not in carry:
      return weights
    return normalised(weights, power_iteration(weights, carry["generator_vectors"], STEPS))

  @property
  def _spectral(self) -> tuple[str, ...]:
    """The networks with spectral normalisation."""
    return ("discriminator", *(("generator",) if self.generator_spectral_norm else ()))

  def _refreshed(self, network: str, params: Params, carry: Carry) -> Carry:
    """Returns the carry after one step of the network's vectors, if it has any."""
    name = f"{network}_vectors"
    return {**carry, name: power_iteration(params[network], carry[name])} if name in carry else carry

  def _weights(self, network: str, params: Any, carry: Carry) -> Any:
    """Returns a network's parameters, normalised by its vectors, if it has any."""
    name = f"{network}_vectors"
    return normalised(params, carry[name]) if name in carry else params


def of_networks(settings: Settings, images: Images, heads: int = 1) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns the attributes of G and of D that follow from the settings of SAGAN and its descendants.

  Raises:
    UserError: widths or attention do not fit the images.
  """
  check_stages(settings, ("generator_widths",), images)
  halvings = len(settings.discriminator_widths) - settings.whole_blocks
  if halvings < 1 or images.side % 2**halvings:
    raise UserError(
      f"config.gan.discriminator_widths = {settings.discriminator_widths}: all but the last config.gan.whole_blocks = "
      f"{settings.whole_blocks} must halve config.data.resolution = {images.side}, and never an odd side"
    )
  side = settings.attention_side
  if side:
    of_generator = {4 * 2**stage: width for stage, width in enumerate(settings.generator_widths) if stage}
    of_discriminator = {images.side >> i + 1: settings.discriminator_widths[i] for i in range(halvings)}
    possible = sorted(of_generator.keys() & of_discriminator.keys())
    if side not in possible:
      raise UserError(
        f"config.gan.attention_side = {side}: choose a resolution of both networks' blocks, {possible}, or 0 for none"
      )
    for name, width in (("generator", of_generator[side]), ("discriminator", of_discriminator[side])):
      if width % (8 * heads):
        raise UserError(
          f"config.gan.{name}_widths has {width} channels at config.gan.attention_side = {side}: attention needs a "
          f"multiple of {8 * heads}"
        )
  shared: dict[str, Any] = {"num_classes": images.num_classes, "attention_side": side, "heads": heads}
  return (
    shared | {"widths": settings.generator_widths, "axis_name": DATA_AXIS, "image_channels": images.channels},
    shared | {"widths": settings.discriminator_widths, "whole_blocks": settings.whole_blocks},
  )


def of_training(settings: Training, images: Images) -> dict[str, Any]:
  """Returns the attributes of SAGAN and its descendants that are not networks."""
  adam = optax.scale_by_adam(b1=settings.beta1, b2=settings.beta2)
  rates = {network: f"{network}_learning_rate" for network in ("generator", "discriminator")}
  return {
    "images": images,
    "noise_dim": settings.noise_dim,
    "generator_spectral_norm": settings.generator_spectral_norm,
    "discriminator_updates": settings.discriminator_updates,
    "generator_batches": settings.generator_batches,
    "optimizers": {network: at_rate(adam, rate) for network, rate in rates.items()},
    "schedules": {name: constant(getattr(settings, name)) for name in (*rates.values(), "ema_half_life")},
  }


def build(settings: Settings, images: Images, platform: str) -> SAGAN:
  """Builds SAGAN; arguments and errors are those of `algorithms.r3gan.build`."""
  del platform
  of_generator, of_discriminator = of_networks(settings, images)
  return SAGAN(
    generator=Generator(**of_generator),
    discriminator=Discriminator(**of_discriminator),
    **of_training(settings, images),
  )
