"""The interface between a GAN and the training loop.

An `Algorithm` names its networks, initialises them, and lists the *phases* of one iteration. The loop runs the
phases in order, averages each one's gradients over micro-batches and devices, and hands them to the optimisers of
the networks that the phase updates; a later phase sees the parameters already updated.

A GAN is one module here, which owns its settings, optimisers and schedules: `Settings`, a dataclass that is
`config.gan`; `PHASES`, the names of its phases; `smoke(settings)`, what `:smoke` makes of the settings;
`build(settings, images, platform)`, the algorithm; and one line of factory.py names it. How to:

- several networks updated at once: one phase whose `updates` names them all; each has an optimiser, and so a
  learning rate, of its own;
- n critic steps for one of G: a phase with `repeat`;
- a batch of another size: `batches`;
- a penalty every k iterations only: a phase of its own, with `every`;
- state that gradients do not train (batch-norm moments, a running mean): in `carry`, returned by the phases, and
  averaged as the network's parameters are by an `Average` of its own;
- state that follows from parameters alone (spectral norm's vectors): the phase's `refresh`;
- a constraint on parameters after an update (weight clipping): the last link of that network's optax chain;
- terms that couple samples: among neighbours in the batch, with `group`; over the whole batch, with `group=None` and
  means over `DATA_AXIS` by `jax.lax.pmean` where one device would take the batch's, or 1 and 8 devices train different
  models. A carry computed from samples must be averaged so in any case; JAX refuses it otherwise;
- classes of fakes that are not the reals' own: drawn by the phase, from its keys.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from r3gan_jax.errors import UserError
from r3gan_jax.schedules import Schedule, cosine

DATA_AXIS = "data"
"""The mesh axis over which a batch is split; phases run under `jax.shard_map` over it."""

Params = Mapping[str, Any]
"""Network name -> its tree of parameters."""

Carry = Mapping[str, Any]
"""The algorithm's own small state by name, trees of float arrays, the same on every device; no name is a network's.

Every micro-batch is given the carry from before the phase, and the mean of what they return is kept: the whole batch's,
for whatever moves it by a mean over the batch, such as a running mean.
"""

Batch = Mapping[str, jax.Array]
"""'image' [N, H, W, C], uint8 or float32 in [-1, 1], and, if conditional, 'label' [N] int32."""

Hyperparameters = Mapping[str, jax.Array]
"""Scheduled values of this iteration, float32 scalars by name (learning_rate, gamma, ...)."""

Metrics = dict[str, jax.Array]
"""Float32 scalars by name."""

GradientFunction = Callable[[Params, Carry, Batch, jax.Array, Hyperparameters], tuple[Params, Carry, Metrics]]
"""(params, carry, batch, keys, hyperparameters) -> (gradients, carry, metrics), pure.

`keys` is [N]: one PRNG key a sample, so that a sample's draws do not depend on how the batch is split. Gradients
are of a *mean* over the batch and metrics are scalar means over it, so that averages over equal parts are those
of the whole.
"""


def keep(params: Params, carry: Carry) -> Carry:
  """`Phase.refresh` where nothing follows from the parameters."""
  del params
  return carry


@dataclass(frozen=True)
class Phase:
  """One update of one iteration.

  Attributes:
    name: names the phase's metrics; phases of one name share their micro-batch size, and need metrics of other names.
    updates: the networks that `gradients` returns gradients for.
    gradients: see `GradientFunction`. Gradients rather than a loss, so that there may be a faster exact way to them.
    counts_images: whether the phase's batches advance 'images seen'; only of a phase of every iteration.
    every: it runs in the first of so many iterations. In the others it costs nothing and changes nothing: no
      parameters, no optimiser, no carry.
    repeat: so many updates, one after the other, each on a fresh batch; metrics are means over them.
    batches: its batch is of so many times the configured size.
    fresh_batch: whether it gets a batch of its own; otherwise the last one of the phase before it.
    group: so many samples, neighbours in the batch, belong together: no part of a batch divides them. None: the whole
      batch does, over all devices, and there are no micro-batches.
    refresh: (params, carry) -> the carry that the update begins with. Called once an update, on the parameters as they
      are, before the batch is divided.
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
      raise ValueError("images seen count iterations, so a phase that counts images runs in each of them")
    if not self.fresh_batch and (self.repeat, self.batches) != (1, 1):
      raise ValueError("a phase that reuses the batch of the phase before it takes it once and whole")

  def micro_batch_size(self, images: int, setting: int | None) -> int:
    """Returns how many of a device's `images` the phase takes at a time; a `setting` of None or 0 means all."""
    return min(setting or images, images)


@dataclass(frozen=True)
class Average:
  """An exponential moving average.

  Attributes:
    of: a network, whose parameters are averaged, or an entry of the carry: what a network has beside them (batch-norm
      moments, as mean and mean square) is averaged as they are.
    half_life: the hyperparameter that is its half-life in images.
  """

  of: str
  half_life: str


class Images(NamedTuple):
  """All that a GAN is told of its data; `num_classes` is 0 where there are none."""

  height: int
  width: int
  channels: int
  num_classes: int

  @property
  def shape(self) -> tuple[int, int, int]:
    """(H, W, C)."""
    return self.height, self.width, self.channels


def check_stages(settings: Any, names: Sequence[str], images: Images, top: int) -> None:
  """Raises a UserError unless each of these settings has one entry per stage: 4x4, 8x8, ... `top` x `top` pixels."""
  stages = (top // 4).bit_length()
  if top < 4 or top != 4 * 2 ** (stages - 1) or images.height % top:
    raise UserError(f"config.data.resolution = {images.height}: the networks need 4 times a power of 2")
  for name in names:
    entries = getattr(settings, name)
    if len(entries) != stages:
      raise UserError(
        f"config.gan.{name} = {entries} has {len(entries)} entries, but images of config.data.resolution = "
        f"{images.height} need {stages}, one for each stage from 4x4 to {top}x{top}"
      )


def check_unconditional(name: str, images: Images) -> None:
  """Raises a UserError where there are classes, which the GAN of this name has no use for."""
  if images.num_classes:
    raise UserError(f"config.data.num_classes = {images.num_classes}: {name} takes no classes: set it to 0")


def check_samples_apart(critic: Any) -> None:
  """Raises a UserError where a critic declares `couples_samples`, as with batch norm, and penalties are per sample."""
  if getattr(critic, "couples_samples", False):
    raise UserError(
      f"a penalty on the gradient of each sample's own logit is not for {type(critic).__name__}, in which batch norm "
      "makes a logit depend on all samples: choose a discriminator without it"
    )


def bfloat16_stages(settings: Any, platform: str) -> int:
  """How many of the highest-resolution stages compute in bfloat16, by `settings.bfloat16`: "auto", "on", "off"."""
  on = settings.bfloat16 == "on" or (settings.bfloat16 == "auto" and platform != "cpu")
  return settings.bfloat16_stages if on else 0


def cosines(settings: Any, names: Sequence[str]) -> dict[str, Schedule]:
  """The schedules of settings (from, to), each half a cosine over `settings.burn_in_images`, then constant."""
  pairs = {name: getattr(settings, name) for name in names}
  return {name: cosine(start, end, settings.burn_in_images) for name, (start, end) in pairs.items()}


def normal_noise(keys: jax.Array, noise_dim: int) -> jax.Array:
  """Draws z ~ N(0, I), one per key: [N] keys -> float32 [N, noise_dim]."""
  return jax.vmap(lambda key: jax.random.normal(key, (noise_dim,)))(keys)


def uniform_noise(keys: jax.Array, noise_dim: int) -> jax.Array:
  """Draws z ~ U(-1, 1), one per key: [N] keys -> float32 [N, noise_dim]."""
  return jax.vmap(lambda key: jax.random.uniform(key, (noise_dim,), minval=-1.0))(keys)


def split_keys(keys: jax.Array, count: int) -> jax.Array:
  """[N] keys -> [count, N] keys."""
  return jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, count))(keys), 1, 0)


class Algorithm(Protocol):
  """The interface between a GAN and training/, sampling.py and the metrics."""

  @property
  def phases(self) -> Sequence[Phase]:
    """The phases of one iteration, in order."""

  @property
  def optimizers(self) -> Mapping[str, optax.GradientTransformationExtraArgs]:
    """Network -> its optimiser, whose `update` takes `hyperparameters`."""

  @property
  def schedules(self) -> Mapping[str, Schedule]:
    """Schedules by name: the hyperparameters of an iteration are their values at its images seen."""

  @property
  def averages(self) -> Mapping[str, Average]:
    """The moving averages to keep, by name; `generate` takes parameters and carry with all of them put in place."""

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """(H, W, C) of the images it trains on and samples."""

  @property
  def num_classes(self) -> int:
    """How many classes condition it; 0 if none."""

  def init(self, key: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
    """The initial (params, carry); pure and traceable, so `jax.eval_shape` gives the shapes for nothing.

    The same name, in networks of other sizes, is the same place: training/transfer.py goes by names.
    """

  def noise(self, keys: jax.Array) -> jax.Array:
    """Draws what images are made from, one a key: keys [N] -> float32 [N, noise_dim]."""

  def generate(
    self, params: Params, carry: Carry, noise: jax.Array, labels: jax.Array | None, truncation: float = 1.0
  ) -> jax.Array:
    """[N, noise_dim], labels [N] int32 or None -> images, float32 [N, H, W, C] in about [-1, 1].

    Args:
      truncation: from 1, images as trained for, to 0, the same one (of a class) from any noise: less varied, more
        typical images, in whichever way suits the networks.
    """


@runtime_checkable
class HasLeadingRows(Protocol):
  """An algorithm with parameters whose rows are of two kinds; for training/transfer.py."""

  @property
  def leading_rows(self) -> Mapping[str, Mapping[str, int]]:
    """Network -> parameter, "layer/.../name" -> how many of its first rows mean the same whatever the others are."""


@runtime_checkable
class HasPictures(Protocol):
  """An algorithm that has more to show at a snapshot than samples."""

  def pictures(self, params: Params, carry: Carry, images: jax.Array) -> Mapping[str, jax.Array]:
    """Images of the data, float32 [N, H, W, C] in [-1, 1] -> by name, pictures [N, height, width, C]; traceable.

    Those of a name are laid out as a grid, samples/NAME_*.png, which the report shows.
    """


@runtime_checkable
class HasImageDtype(Protocol):
  """An algorithm whose images may be computed in another dtype than float32; for config.run.quantisation."""

  @property
  def image_dtype(self) -> jnp.dtype:
    """The dtype of the generator's last layer."""


@runtime_checkable
class HasImageFeatures(Protocol):
  """An algorithm whose discriminator can compare two images; for inversion.py."""

  @property
  def image_features(self) -> nn.Module:
    """(images, labels) -> logits, by params["discriminator"]; its feature maps of an image ignore the other images."""


class LearnsFromUnlabelled:
  """The base of an algorithm that learns from images without a label, too: a semi-supervised one. No other gets any.

  With config.data.labelled_images, a batch's 'label' is -1 where there is none: an index that JAX takes for the last
  class. A mean over the labelled images alone couples the batch; see `Phase.group`.
  """
