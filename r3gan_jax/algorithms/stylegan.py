"""StyleGAN: a generator that is controlled by styles in every layer (Karras et al. 2019, arXiv 1812.04948).

    w = mapping(z)                  z on the sphere
    G(z) = synthesis(w, noise)      from a constant: w scales and shifts the normalised features of each layer, and the
                                    noise, an image for each layer, adds what is random in the details

One iteration is

    D    mean( softplus(-D(x)) + softplus(D(G(z))) + gamma / 2 |grad D(x)|^2 )     with R1 in every iteration
    G    mean( softplus(-D(G(z))) )                                                with a new z and the updated D

With style mixing (section 3.1), 9 of 10 samples take the w of a second z from a random layer on, so that a layer cannot
rely on the styles of the one before it. Each sample draws its own layer, where the authors' code draws one for a batch.
Truncation (appendix B) moves w towards its running mean, in layers up to 32x32.

The rest is ProGAN's (progan.py): the networks grow with `lod`, here from 8x8, unless `growing` is off; D has the
standard deviation of a group of neighbours as a feature, and R1 differentiates the sum of all logits; Adam has
beta1 = 0.

`noise` is z, then N(0, 1) for the pixels of all layers, 4x4 first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax

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
from r3gan_jax.algorithms.images import Images, check_stages, check_unconditional
from r3gan_jax.algorithms.progan import growth_schedules
from r3gan_jax.errors import UserError
from r3gan_jax.losses.penalised import LogisticR1
from r3gan_jax.networks import karras
from r3gan_jax.networks.karras import fade
from r3gan_jax.networks.stylegan import Synthesis
from r3gan_jax.ops.images import to_float
from r3gan_jax.ops.resample import image_pyramid
from r3gan_jax.optimizers import adam_without_momentum, reset_on_change
from r3gan_jax.schedules import constant
from r3gan_jax.settings import below_one, not_negative, positive, setting

PHASES = ("discriminator", "generator")

MIXING_PROBABILITY = 0.9
W_DECAY = 0.005
"""The weight of a batch's mean w in the running mean, the centre of truncation."""
TRUNCATED_LAYERS = 8
"""The first layers, to which truncation applies: up to 32x32 pixels."""
STYLES, COARSE_LAYERS = 4, 4
"""How many samples give their styles to the others in pictures of mixing, and in how many layers, 4x4 first."""


@dataclass(frozen=True)
class Settings:
  """`config.gan` of StyleGAN; the defaults are the paper's, at 1024x1024."""

  widths: tuple[int, ...] = setting((512, 512, 512, 512, 256, 128, 64, 32, 16), positive)  # from 4x4 upward
  noise_dim: int = setting(512, positive)  # length of z and w
  stddev_group: int = setting(karras.STDDEV_GROUP, positive)  # samples over which D takes a standard deviation
  growing: bool = setting(True)
  hold_images: int = setting(600_000, not_negative)  # at each resolution
  ramp_images: int = setting(600_000, positive)  # from each resolution to the next
  gamma: float = setting(10.0, not_negative)  # weight of R1
  learning_rate: float = setting(1e-3, not_negative)
  beta2: float = setting(0.99, below_one)
  ema_half_life: float = setting(10_000.0, not_negative)  # images


def smoke(settings: Settings) -> dict[str, Any]:
  """Returns the changes for `:smoke`: tiny networks with the same number of stages, a minute on a CPU."""
  return {"widths": (8,) * len(settings.widths), "noise_dim": 8, "hold_images": 8, "ramp_images": 8}


@dataclass(frozen=True)
class StyleGAN(GAN):
  """The algorithm (`algorithms.base.Algorithm` and `HasPictures`), unconditional.

  The carry has the running mean of w, and the `lod` of the last iteration, at which samples are drawn.

  Attributes:
    mapping, synthesis: the two parts of the network "generator".
    discriminator: (images [N, H, W, C], lod, or None if the resolution is fixed) -> logits [N].
    loss: see the module.
  """

  mapping: karras.Mapping
  synthesis: Synthesis
  discriminator: karras.Discriminator
  loss: LogisticR1

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
    mapping_key, synthesis_key, discriminator_key = jax.random.split(key, 3)
    z, noise = self._split(jnp.zeros((1, self.noise_dim)))
    images, lod = jnp.zeros((self.discriminator.group, *self.image_shape)), self.schedules["lod"](jnp.int32(0))
    params = {
      "generator": {
        "mapping": self.mapping.init(mapping_key, z)["params"],
        "synthesis": self.synthesis.init(synthesis_key, self._for_all_layers(z), noise)["params"],
      },
      "discriminator": self.discriminator.init(discriminator_key, images, self._growth(lod))["params"],
    }
    return params, {"w": jnp.zeros((self.mapping.width,)), "lod": lod}

  def noise(self, keys: jax.Array) -> jax.Array:
    """Draws z, of length `mapping.width`, and the noise of all layers."""
    return normal_noise(keys, self.noise_dim)

  def generate(
    self, params: Params, carry: Carry, noise: jax.Array, labels: jax.Array | None, truncation: float = 1.0
  ) -> jax.Array:
    """Draws images; truncation moves w towards its running mean (appendix B) in the first `TRUNCATED_LAYERS`.

    It does not change the noise in the layers.
    """
    del labels
    z, planes = self._split(noise)
    w = self._for_all_layers(self._map(params["generator"], z))
    return self._synthesise(params["generator"], truncated(w, carry["w"], truncation), planes, carry["lod"])

  def styles(self, params: Params, noise: jax.Array) -> jax.Array:
    return self._map(params["generator"], self._split(noise)[0])

  def from_styles(self, params: Params, carry: Carry, w: jax.Array, noise: jax.Array) -> jax.Array:
    _, planes = self._split(noise)
    return self._synthesise(params["generator"], self._for_all_layers(w), planes, carry["lod"])

  def pictures(self, params: Params, carry: Carry, images: jax.Array) -> dict[str, jax.Array]:
    """Returns samples beside themselves with the layers of 4x4 and 8x8 controlled by others, as figure 3 of the paper.

    These others are the first `STYLES` samples. All have the same noise.
    """
    generator, samples = params["generator"], images.shape[0]
    z, planes = self._split(self.noise(jax.random.split(jax.random.key(0), samples)))
    planes = [jnp.broadcast_to(plane[:1], plane.shape) for plane in planes]
    w = self._for_all_layers(self._map(generator, z))
    coarse = (jnp.arange(self.synthesis.layers) < COARSE_LAYERS)[None, :, None]
    columns = [w, *(jnp.where(coarse, w[source][None], w) for source in range(min(STYLES, samples)))]
    drawn = [self._synthesise(generator, column, planes, carry["lod"]) for column in columns]
    return {"mixed_styles": jnp.concatenate(drawn, axis=2)}

  def _discriminator_gradients(
    self, params: Params, carry: Carry, batch: Batch, keys: jax.Array, hyperparameters: Hyperparameters
  ) -> tuple[Params, Carry, Metrics]:
    lod = hyperparameters["lod"]
    stages = len(self.synthesis.widths) if self.synthesis.growing else 1
    real = fade(image_pyramid(to_float(batch["image"]), stages), lod)
    fake, _ = self._drawn(params["generator"], keys, lod)

    def loss(discriminator: Any) -> tuple[jax.Array, Metrics]:
      return self.loss.discriminator(partial(self._logits, discriminator, lod), real, fake, keys)

    gradients, metrics = jax.grad(loss, has_aux=True)(params["discriminator"])
    return {"discriminator": gradients}, {**carry, "lod": lod}, metrics

  def _generator_gradients(
    self, params: Params, carry: Carry, batch: Batch, keys: jax.Array, hyperparameters: Hyperparameters
  ) -> tuple[Params, Carry, Metrics]:
    del batch
    lod = hyperparameters["lod"]

    def loss(generator: Any) -> tuple[jax.Array, jax.Array]:
      fake, mean_w = self._drawn(generator, keys, lod)
      return self.loss.generator(self._logits(params["discriminator"], lod, fake)), mean_w

    (total, mean_w), gradients = jax.value_and_grad(loss, has_aux=True)(params["generator"])
    return {"generator": gradients}, {**carry, "w": towards(carry["w"], mean_w, W_DECAY)}, {"loss": total}

  def _drawn(self, generator: Any, keys: jax.Array, lod: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns images with mixed styles, and the mean [width] of the first styles."""
    noise_keys, other_keys, mixing_keys = split_keys(keys, 3)
    z, planes = self._split(self.noise(noise_keys))
    both = jnp.concatenate([z, normal_noise(other_keys, self.mapping.width)])
    w, other = jnp.split(self._map(generator, both), 2)
    mixed = mix_styles(self._for_all_layers(w), self._for_all_layers(other), mixing_keys)
    return self._synthesise(generator, mixed, planes, lod), jnp.mean(w, axis=0)

  def _split(self, noise: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
    """Returns z, and the noise of each layer [N, side, side, 1]."""
    sides = self.synthesis.sides
    ends = [*accumulate([self.mapping.width, *(side * side for side in sides)])]
    z, *planes = jnp.split(noise, ends[:-1], axis=1)
    return z, [plane.reshape(-1, side, side, 1) for plane, side in zip(planes, sides, strict=True)]

  def _for_all_layers(self, w: jax.Array) -> jax.Array:
    return jnp.broadcast_to(w[:, None], (w.shape[0], self.synthesis.layers, w.shape[1]))

  def _map(self, generator: Any, z: jax.Array) -> jax.Array:
    return cast(jax.Array, self.mapping.apply({"params": generator["mapping"]}, z))

  def _synthesise(self, generator: Any, w: jax.Array, noise: Sequence[jax.Array], lod: jax.Array) -> jax.Array:
    return fade(cast(list[jax.Array], self.synthesis.apply({"params": generator["synthesis"]}, w, noise)), lod)

  def _logits(self, discriminator: Any, lod: jax.Array, images: jax.Array) -> jax.Array:
    return cast(jax.Array, self.discriminator.apply({"params": discriminator}, images, self._growth(lod)))

  def _growth(self, lod: jax.Array) -> jax.Array | None:
    """Returns what D is told: None if the resolution is fixed."""
    return lod if self.synthesis.growing else None


def build(settings: Settings, images: Images, platform: str) -> StyleGAN:
  """Builds StyleGAN; arguments and errors are those of `algorithms.r3gan.build`."""
  del platform
  check_stages(settings, ("widths",), images)
  if images.side < 8:
    raise UserError(f"config.data.resolution = {images.side}: stylegan needs at least 8")
  check_unconditional("stylegan", images)
  synthesis = Synthesis(settings.widths, images.channels, settings.growing)
  return StyleGAN(
    mapping=karras.Mapping(settings.noise_dim),
    synthesis=synthesis,
    discriminator=karras.Discriminator(settings.widths, settings.stddev_group, smoothed=True),
    noise_dim=settings.noise_dim + sum(side * side for side in synthesis.sides),
    images=images,
    loss=LogisticR1(settings.gamma),
    schedules={
      **growth_schedules(settings, len(settings.widths) - 2),
      **{name: constant(getattr(settings, name)) for name in ("learning_rate", "beta2", "ema_half_life")},
    },
  )


def mix_styles(w: jax.Array, other: jax.Array, keys: jax.Array) -> jax.Array:
  """Mixes w and other, [N, layers, width]: `other` from a random layer on (section 3.1).

  Each sample mixes with `MIXING_PROBABILITY`, from a layer drawn uniformly from all but the first.
  """
  layers = w.shape[1]

  def crossover(key: jax.Array) -> jax.Array:
    coin, layer = jax.random.split(key)
    return jnp.where(jax.random.bernoulli(coin, MIXING_PROBABILITY), jax.random.randint(layer, (), 1, layers), layers)

  crossed = jnp.arange(layers)[None] >= jax.vmap(crossover)(keys)[:, None]
  return jnp.where(crossed[..., None], other, w)


def truncated(w: jax.Array, mean: jax.Array, truncation: float) -> jax.Array:
  """Returns mean + truncation (w - mean) in the first `TRUNCATED_LAYERS` of w [N, layers, width], and w in the rest."""
  shares = jnp.where(jnp.arange(w.shape[1]) < TRUNCATED_LAYERS, truncation, 1.0).astype(w.dtype)[None, :, None]
  return shares * w + (1 - shares) * mean[None, None]


def towards(mean: jax.Array, of_batch: jax.Array, decay: float) -> jax.Array:
  """Updates a running mean by this device's batch mean, averaged over devices."""
  return mean + decay * (jax.lax.pmean(of_batch, DATA_AXIS) - mean)
