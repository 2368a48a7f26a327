"""The interface between a GAN and the training loop.

An `Algorithm` names its networks, initialises them, and lists the *phases* of one iteration. The loop runs the phases
in order, averages the gradients of each over micro-batches and devices, and passes them to the optimisers of the
networks that the phase updates. A later phase sees the updated parameters.

A GAN is one module in this package, which owns its settings, optimisers and schedules: `Settings`, the dataclass behind
`config.gan`; `PHASES`, the names of its phases; `smoke(settings)`, the changes for `:smoke`; and
`build(settings, images, platform)`, which returns the algorithm. One line of factory.py names the module. What only
some GANs have, such as `HasStandingMoments`, is in capabilities.py. How to:

- update several networks together: one phase whose `updates` names them all; each has its own optimiser;
- take n critic steps per step of G: a phase with `repeat`;
- use a batch of another size: `batches`;
- apply a penalty every k iterations: a phase of its own, with `every`;
- keep state that gradients do not train (batch-norm moments, a running mean): `carry`, returned by the phases, with an
  `Average` of its own if the network's parameters are averaged;
- keep state that depends on parameters alone (spectral norm's vectors): the phase's `refresh`;
- recompute the moments of batch norm for samples: `HasStandingMoments`;
- constrain parameters after an update (weight clipping): the last link of the network's optax chain;
- couple samples: neighbours in the batch with `group`; the whole batch with `group=None` and means over `DATA_AXIS` by
  `jax.lax.pmean`, or 1 and 8 devices train different models. A carry computed from samples must be averaged so in any
  case, or JAX refuses it;
- learn with a pretrained network: `HasPretrainedNetworks`;
- condition fakes on other classes than the reals': the phase draws them from its keys.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from r3gan_jax.algorithms.images import Images
from r3gan_jax.errors import UserError
from r3gan_jax.ops.resample import repeat2x
from r3gan_jax.schedules import Schedule, cosine

DATA_AXIS = "data"
"""The mesh axis over which batches are sharded; phases run under `jax.shard_map` over it."""

Params = Mapping[str, Any]
"""Network -> tree of parameters."""

Carry = Mapping[str, Any]
"""The algorithm's own state by name: trees of float arrays, equal on all devices; no name is that of a network.

Every micro-batch gets the carry from before the phase, and the mean of their results is kept. This equals the
full-batch update if the carry is linear in a batch mean, such as a running mean.
"""

Batch = Mapping[str, jax.Array]
"""'image' [N, H, W, C], uint8 or float32 in [-1, 1], and, if conditional, 'label' [N] int32."""

Hyperparameters = Mapping[str, jax.Array]
"""The scheduled hyperparameters of an iteration, float32 scalars by name (learning_rate, gamma, ...)."""

Metrics = dict[str, jax.Array]
"""Float32 scalars by name."""

GradientFunction = Callable[[Params, Carry, Batch, jax.Array, Hyperparameters], tuple[Params, Carry, Metrics]]
"""(params, carry, batch, keys, hyperparameters) -> (gradients, carry, metrics); pure.

`keys` is [N], one PRNG key per sample, so that a sample's random draws do not depend on how the batch is split.
Gradients are of a *mean* over the batch, and metrics are scalar means, so that averages over equal parts equal those of
the whole batch.
"""


def keep(params: Params, carry: Carry) -> Carry:
  """The default `Phase.refresh`: returns the carry unchanged."""
  del params
  return carry


@dataclass(frozen=True)
class Phase:
  """One update of one iteration.

  Attributes:
    name: prefix of the phase's metrics. Phases of one name share a micro-batch size and need different metrics.
    updates: the networks that `gradients` returns gradients for.
    gradients: see `GradientFunction`. Gradients rather than a loss, to allow faster exact ways to compute them.
    counts_images: whether the phase's batches add to images seen; only for a phase that runs in every iteration.
    every: runs in one iteration of this many, the first; the others leave parameters, optimisers and carry unchanged.
    repeat: number of consecutive updates, each on a fresh batch; metrics are means over them.
    batches: size of the phase's batch, in multiples of the configured one.
    fresh_batch: whether the phase gets a new batch, rather than the last one of the phase before it.
    group: number of neighbours in the batch that are coupled, and never split. None: the whole global batch is coupled,
      and there are no micro-batches.
    refresh: (params, carry) -> the carry at the start of an update, computed before the batch is sharded.
  """

  name: str
  updates: tuple[str, ...]
  gradients: GradientFunction
  counts_images: bool = False
  every: int = 1
  repeat: int = 1
  batches: int = 1
  fresh_batch: bool = True
  group: int | None = 1
  refresh: Callable[[Params, Carry], Carry] = keep

  def __post_init__(self) -> None:
    if self.counts_images and self.every != 1:
      raise ValueError(
        f"phase {self.name!r} counts images, so it must run in every iteration, not in one of {self.every}"
      )
    if not self.fresh_batch and (self.repeat, self.batches) != (1, 1):
      raise ValueError(
        f"phase {self.name!r} reuses a batch, so its repeat and batches must be 1, not {self.repeat} and {self.batches}"
      )

  def micro_batch_size(self, images: int, setting: int | None) -> int:
    """Returns how many of a device's `images` are processed at a time; a `setting` of None or 0 means all."""
    return min(setting or images, images)


@dataclass(frozen=True)
class Average:
  """An exponential moving average, in place of what it averages in samples and metrics.

  Attributes:
    of: a network, whose parameters are averaged, or an entry of the carry, e.g. batch-norm moments as mean and mean
      square.
    half_life: the name of the hyperparameter with the half-life in images.
  """

  of: str
  half_life: str


@dataclass(frozen=True)
class PowerFunctionAverage:
  """An average whose weights are a power of images seen (Karras et al. 2024, arXiv 2312.02696, section 3.1).

  It is kept beside the `Average` of the same network, from which samples are drawn: training/posthoc.py makes averages
  of other lengths from several of these. All of an algorithm are of one network.

  Attributes:
    of: the network.
    std: the standard deviation of the weights over time, relative to the length of the training; below 1 / sqrt(12).
  """

  of: str
  std: float


def check_samples_apart(critic: Any) -> None:
  """Raises a UserError if a critic declares `couples_samples` (batch norm), because penalties are per sample."""
  if getattr(critic, "couples_samples", False):
    raise UserError(
      f"gradient penalties need a discriminator without batch norm, but {type(critic).__name__} has it: a logit would "
      "depend on all samples"
    )


def bfloat16_stages(settings: Any, platform: str) -> int:
  """Returns how many of the highest-resolution stages compute in bfloat16, by `settings.bfloat16`."""
  on = settings.bfloat16 == "on" or (settings.bfloat16 == "auto" and platform != "cpu")
  return settings.bfloat16_stages if on else 0


def cosines(settings: Any, names: Sequence[str]) -> dict[str, Schedule]:
  """Returns schedules for settings (from, to): each half a cosine over `settings.burn_in_images`, then constant."""
  pairs = {name: getattr(settings, name) for name in names}
  return {name: cosine(start, end, settings.burn_in_images) for name, (start, end) in pairs.items()}


def normal_noise(keys: jax.Array, noise_dim: int) -> jax.Array:
  """Draws z ~ N(0, I), one per key: [N] keys -> float32 [N, noise_dim]."""
  return jax.vmap(lambda key: jax.random.normal(key, (noise_dim,)))(keys)


def uniform_noise(keys: jax.Array, noise_dim: int) -> jax.Array:
  """Draws z ~ U(-1, 1), one per key: [N] keys -> float32 [N, noise_dim]."""
  return jax.vmap(lambda key: jax.random.uniform(key, (noise_dim,), minval=-1.0))(keys)


def spherical_noise(keys: jax.Array, noise_dim: int) -> jax.Array:
  """Draws z uniformly from the sphere of radius sqrt(noise_dim), one per key: [N] keys -> float32 [N, noise_dim]."""
  z = normal_noise(keys, noise_dim)
  return z * jax.lax.rsqrt(jnp.mean(jnp.square(z), axis=1, keepdims=True))


def split_keys(keys: jax.Array, count: int) -> jax.Array:
  """Splits every key: [N] keys -> [count, N] keys."""
  return jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, count))(keys), 1, 0)


def side_by_side(images: Sequence[jax.Array]) -> jax.Array:
  """Joins images [N, h, w, C], the last of which are the largest, after enlarging the others by powers of 2."""
  enlarged = []
  for image in images:
    while image.shape[1] < images[-1].shape[1]:
      image = repeat2x(image)
    enlarged.append(image)
  return jnp.concatenate(enlarged, axis=2)


def pictures_of_autoencoder(images: jax.Array, reconstructions: jax.Array, codes: jax.Array) -> dict[str, jax.Array]:
  """Returns pictures, for `HasPictures`: each image beside its reconstruction, and beside that of the nearest code.

  Args:
    images, reconstructions: [N, H, W, C].
    codes: [N, D]; distances are Euclidean, and an image is not its own neighbour.
  """
  distances = jnp.sum(jnp.square(codes[:, None] - codes[None]), axis=-1) + jnp.diag(jnp.full(len(codes), jnp.inf))
  pairs = {"reconstructions": reconstructions, "nearest_codes": images[jnp.argmin(distances, axis=1)]}
  return {f"reals_and_{name}": jnp.concatenate([images, other], axis=2) for name, other in pairs.items()}


class Algorithm(Protocol):
  """The interface of a GAN to training/, sampling.py and the metrics."""

  @property
  def phases(self) -> Sequence[Phase]:
    """The phases of one iteration, in order."""

  @property
  def optimizers(self) -> Mapping[str, optax.GradientTransformationExtraArgs]:
    """Network -> optimiser, whose `update` takes `hyperparameters`."""

  @property
  def schedules(self) -> Mapping[str, Schedule]:
    """Schedules by name; their values at the images seen are the hyperparameters of an iteration."""

  @property
  def averages(self) -> Mapping[str, Average | PowerFunctionAverage]:
    """The moving averages by name; `generate` gets parameters and carry with each `Average` in place."""

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """(H, W, C) of samples."""

  @property
  def input_shape(self) -> tuple[int, int, int]:
    """(H, W, C) of real images in a batch, which may have more channels than samples: a condition's."""

  @property
  def input_dtype(self) -> jnp.dtype:
    """The dtype of real images in a batch: integers, or float32 of latents."""

  @property
  def num_classes(self) -> int:
    """The number of classes; 0 if unconditional."""

  def init(self, key: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the initial (params, carry); pure and traceable.

    Equal names in networks of other sizes must mean the same layer: training/transfer.py matches by name.
    """

  def noise(self, keys: jax.Array) -> jax.Array:
    """Draws latents, one per key: keys [N] -> float32 [N, noise_dim]."""

  def generate(
    self, params: Params, carry: Carry, noise: jax.Array, labels: jax.Array | None, truncation: float = 1.0
  ) -> jax.Array:
    """[N, noise_dim], labels [N] int32 or None -> images, float32 [N, H, W, C] in about [-1, 1].

    Args:
      params, carry: with averages in place.
      noise: from `noise`.
      labels: None if unconditional.
      truncation: from 1, as trained, to 0, where all noise gives one image (per class): less varied, more typical
        images, in a way that suits the networks; a constant or a traced scalar.
    """


@dataclass(frozen=True, kw_only=True)
class GAN:
  """The base class of the algorithms here: the fields that all of them have.

  Attributes:
    images: the images that it trains on and samples.
    noise_dim: length of z.
    schedules: see `Algorithm`.
  """

  images: Images
  noise_dim: int
  schedules: Mapping[str, Schedule] = field(default_factory=dict, compare=False)

  @property
  def image_shape(self) -> tuple[int, int, int]:
    return self.images.shape

  @property
  def input_shape(self) -> tuple[int, int, int]:
    return self.images.input_shape

  @property
  def input_dtype(self) -> jnp.dtype:
    return jnp.dtype(jnp.float32 if self.images.latents else jnp.uint8)

  @property
  def num_classes(self) -> int:
    return self.images.num_classes


@dataclass(frozen=True, kw_only=True)
class UniformGAN(GAN):
  """The base class of the algorithms (`HasBoundedNoise`) with z ~ U(-1, 1)."""

  def noise(self, keys: jax.Array) -> jax.Array:
    return uniform_noise(keys, self.noise_dim)

  @property
  def noise_bounds(self) -> tuple[np.ndarray, np.ndarray]:
    return bounds(-1.0, 1.0, self.noise_dim)


def bounds(lowest: float, highest: float, noise_dim: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns equal `HasBoundedNoise.noise_bounds` for all of the noise."""
  return np.full(noise_dim, lowest, np.float32), np.full(noise_dim, highest, np.float32)
