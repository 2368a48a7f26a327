"""The one translator from a configuration to objects.

Names in a configuration are looked up in the plain dicts below; adding a GAN, a loss or a data source is one line.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from ml_collections import ConfigDict

from r3gan_jax import schedules
from r3gan_jax.algorithms.base import Algorithm
from r3gan_jax.algorithms.r3gan import R3GAN, Augment
from r3gan_jax.algorithms.stylegan2 import StyleGAN2
from r3gan_jax.augment.parameters import TRANSFORMS
from r3gan_jax.augment.pipeline import augment
from r3gan_jax.data.cache import cached
from r3gan_jax.data.folder import FolderSource
from r3gan_jax.data.generated import GeneratedSource
from r3gan_jax.data.images import FITS, Decoder
from r3gan_jax.data.loader import Loader
from r3gan_jax.data.skipping import SkippingSource
from r3gan_jax.data.source import Source
from r3gan_jax.data.stacked import StackedSource, load_small_digits
from r3gan_jax.data.tfds import TfdsSource
from r3gan_jax.errors import UserError
from r3gan_jax.losses.adversarial import NON_SATURATING, RELATIVISTIC
from r3gan_jax.losses.penalties import directional, grad_of_grad
from r3gan_jax.networks import stylegan2
from r3gan_jax.networks.r3gan import Discriminator, Generator
from r3gan_jax.networks.roadmap import SkeletonDiscriminator, SkeletonGenerator, SkipGenerator
from r3gan_jax.ops.grouped_conv import ALGORITHMS as GROUPED_CONV_ALGORITHMS
from r3gan_jax.training.loop import Experiment
from r3gan_jax.training.optimizer import adam_without_momentum

LOSSES = {"relativistic": RELATIVISTIC, "non_saturating": NON_SATURATING}
PENALISED_GRADIENTS = {"directional": directional, "grad_of_grad": grad_of_grad}
SCHEDULED = ("learning_rate", "beta2", "gamma", "ema_half_life", "augment_p")
MAX_IMAGES = 2**31 - 1

BEST_METRICS = {
  "fid": ("fid", "min"),
  "kid": ("kid", "min"),
  "inception_score": ("inception_score", "max"),
  "precision": ("precision_recall", "max"),
  "recall": ("precision_recall", "max"),
  "modes": ("modes", "max"),
  "modes_kl": ("modes", "min"),
}
"""A number to choose the best checkpoint by -> (the metric that gives it, whether its least or greatest is best)."""


Networks = tuple[nn.Module, nn.Module]
"""G and D."""


def _residual_networks(config: ConfigDict, platform: str, generator: type[Generator]) -> Networks:
  network, data = config.network, config.data
  _check_stages(config)
  for width, cardinality in zip(network.widths, network.cardinalities, strict=True):
    if width * network.expansion % cardinality:
      raise UserError(
        f"config.network.cardinalities: {cardinality} groups do not divide width {width} x expansion "
        f"{network.expansion:g}"
      )
  _look_up({"auto": None, "fused": None, **GROUPED_CONV_ALGORITHMS}, "network.grouped_conv", network.grouped_conv)
  shared = {
    "widths": tuple(network.widths),
    "cardinalities": tuple(network.cardinalities),
    "blocks": tuple(network.blocks),
    "expansion": network.expansion,
    "num_classes": data.num_classes,
    "grouped_conv": "fused" if (network.grouped_conv, platform) == ("auto", "tpu") else network.grouped_conv,
    "bfloat16_stages": _bfloat16_stages(config, platform),
  }
  return (
    generator(**shared, noise_dim=network.noise_dim, embed_dim=network.noise_dim, image_channels=data.channels),
    Discriminator(**shared, embed_dim=network.widths[0]),
  )


def _skeleton_networks(config: ConfigDict, platform: str) -> Networks:
  network, data = config.network, config.data
  _check_stages(config)
  if {*network.cardinalities, *network.blocks, network.expansion} != {1}:
    raise UserError(
      f"config.network.name = {network.name!r} is of one block a stage, neither grouped nor widened: set "
      "config.network.cardinalities, .blocks and .expansion to 1 throughout"
    )
  shared = {
    "widths": tuple(network.widths),
    "num_classes": data.num_classes,
    "bfloat16_stages": _bfloat16_stages(config, platform),
  }
  return (
    SkeletonGenerator(**shared, noise_dim=network.noise_dim, embed_dim=network.noise_dim, image_channels=data.channels),
    SkeletonDiscriminator(**shared, embed_dim=network.widths[0]),
  )


NETWORKS: Mapping[str, Callable[[ConfigDict, str], Networks]] = {
  "r3gan": partial(_residual_networks, generator=Generator),
  "r3gan_output_skips": partial(_residual_networks, generator=SkipGenerator),
  "stylegan2_skeleton": _skeleton_networks,
}
"""Those of R3GAN, and those that the roadmap comes to it by: networks/roadmap.py."""


def _check_stages(config: ConfigDict) -> None:
  network, resolution = config.network, config.data.resolution
  stages = {len(network.widths), len(network.cardinalities), len(network.blocks)}
  if stages != {(resolution // 4).bit_length()} or resolution != 2 ** (max(stages) + 1):
    raise UserError(
      f"config.network.widths, .cardinalities and .blocks need one entry for each stage from 4x4 to "
      f"config.data.resolution = {resolution}, a power of 2; they have {sorted(stages)}"
    )


def _bfloat16_stages(config: ConfigDict, platform: str) -> int:
  on = {"auto": platform != "cpu", "on": True, "off": False}
  return config.network.bfloat16_stages if _look_up(on, "network.bfloat16", config.network.bfloat16) else 0


def _r3gan(config: ConfigDict, platform: str) -> Algorithm:
  network, data = config.network, config.data
  generator, discriminator = _look_up(NETWORKS, "network.name", network.name)(config, platform)
  if unknown := set(config.penalties) - {"r1", "r2"}:
    raise UserError(f"config.penalties: unknown {sorted(unknown)}: choose from ['r1', 'r2']")
  return R3GAN(
    generator=generator,
    discriminator=discriminator,
    noise_dim=network.noise_dim,
    image_shape=(data.resolution, data.resolution, data.channels),
    num_classes=data.num_classes,
    loss=_look_up(LOSSES, "loss", config.loss),
    penalties=tuple(config.penalties),
    augment=_augment(config),
    penalised_gradient=_look_up(PENALISED_GRADIENTS, "penalised_gradient", config.penalised_gradient),
  )


def _stylegan2(config: ConfigDict, platform: str) -> Algorithm:
  network, data = config.network, config.data
  if data.resolution < 8 or data.resolution != 2 ** (len(network.widths) + 1):
    raise UserError(
      f"config.network.widths needs one entry for each stage from 4x4 to config.data.resolution = {data.resolution}, "
      f"a power of 2; it has {len(network.widths)}"
    )
  if data.num_classes:
    raise UserError(f"config.data.num_classes = {data.num_classes}: stylegan2 takes no classes: set it to 0")
  for name, fixed in (("loss", "non_saturating"), ("penalties", ("r1",)), ("augment_p", (0.0, 0.0))):
    value = config[name] if isinstance(fixed, str) else tuple(config[name])
    if value != fixed:
      raise UserError(f"config.{name} = {value!r}: stylegan2 trains with {fixed!r} only")
  shared: dict[str, Any] = {"widths": tuple(network.widths), "bfloat16_stages": _bfloat16_stages(config, platform)}
  return StyleGAN2(
    mapping=stylegan2.Mapping(network.noise_dim),
    synthesis=stylegan2.Synthesis(**shared, image_channels=data.channels),
    discriminator=stylegan2.Discriminator(**shared),
    noise_dim=network.noise_dim,
    image_shape=(data.resolution, data.resolution, data.channels),
  )


def _augment(config: ConfigDict) -> Augment | None:
  if config.augment_p == (0.0, 0.0):
    return None
  if not all(0 <= p <= 1 for p in config.augment_p):
    raise UserError(f"config.augment_p = {config.augment_p}: probabilities lie between 0 and 1")
  multipliers = config.augment.to_dict()
  if unknown := multipliers.keys() - TRANSFORMS.keys():
    raise UserError(f"config.augment: unknown {sorted(unknown)}: choose from {list(TRANSFORMS)}")
  for name, multiplier in multipliers.items():
    if multiplier < 0:
      raise UserError(f"config.augment.{name} = {multiplier} must not be negative; 0 switches it off")
  if config.data.channels not in (1, 3):
    raise UserError(
      f"config.data.channels = {config.data.channels}: augmentation needs images of 1 or 3 channels; without it: "
      "--config.augment_p='(0.0, 0.0)'"
    )
  return partial(augment, multipliers=multipliers)


ALGORITHMS: Mapping[str, Callable[[ConfigDict, str], Algorithm]] = {"r3gan": _r3gan, "stylegan2": _stylegan2}


def _tfds(config: ConfigDict) -> Source:
  data = config.data
  if data.fit not in FITS:
    raise UserError(f"config.data.fit = {data.fit!r} is unknown: choose from {sorted(FITS)}")
  return TfdsSource(
    data.name,
    data.split,
    config.run.data_path,
    data.resolution,
    build_decoder(config),
    data.fit,
    data.num_classes,
    data.label_key,
  )


def _folder(config: ConfigDict) -> Source:
  data = config.data
  if not config.run.data_path:
    raise UserError("config.run.data_path is empty: name the folder or zip of images")
  skip = _skips_corrupt(config)
  return FolderSource(config.run.data_path, data.resolution, build_decoder(config), data.num_classes, skip)


def build_decoder(config: ConfigDict) -> Decoder:
  """What makes images of the run's kind from files and records."""
  return Decoder(config.data.channels, config.data.background)


def _skips_corrupt(config: ConfigDict) -> bool:
  return _look_up({"stop": False, "skip": True}, "run.on_corrupt_image", config.run.on_corrupt_image)


def _readable(config: ConfigDict, source: Source) -> Source:
  """`source`, kept in memory if it is small, and without its corrupt images if the run says so."""
  source = SkippingSource(source) if _skips_corrupt(config) else source
  return cached(source, config.run.cache_gib)


def _check_stacked(config: ConfigDict) -> None:
  for name, fixed in (("channels", 3), ("num_classes", 0)):
    if config.data[name] != fixed:
      raise UserError(f"config.data.{name} = {config.data[name]}: stacked digits need {fixed}")


def _stacked_mnist(config: ConfigDict) -> Source:
  _check_stacked(config)
  grey = config.copy_and_resolve_references()
  grey.data.channels = 1
  digits = _tfds(grey)
  return StackedSource(digits[np.arange(len(digits))]["image"][..., 0])


def _stacked_digits(config: ConfigDict) -> Source:
  _check_stacked(config)
  digits = load_small_digits()[0]
  if config.data.resolution != digits.shape[1]:
    raise UserError(f"config.data.resolution = {config.data.resolution}: stacked_digits are 8x8")
  return StackedSource(digits)


def _generated(config: ConfigDict) -> Source:
  return GeneratedSource(config.data.resolution, config.data.channels, config.data.num_classes)


SOURCES: Mapping[str, Callable[[ConfigDict], Source]] = {
  "tfds": lambda config: _readable(config, _tfds(config)),
  "folder": lambda config: _readable(config, _folder(config)),
  "stacked_digits": _stacked_digits,
  "stacked_mnist": _stacked_mnist,
  "generated": _generated,
}


def _look_up(choices: Mapping[str, Any], setting: str, value: str) -> Any:
  if value not in choices:
    raise UserError(f"config.{setting} = {value!r} is unknown: choose from {sorted(choices)}")
  return choices[value]


def build_algorithm(config: ConfigDict, platform: str | None = None) -> Algorithm:
  """The algorithm; `platform` ("cpu", "gpu", "tpu"; default: jax's) decides what is 'auto'."""
  return _look_up(ALGORITHMS, "algorithm", config.algorithm)(config, platform or jax.default_backend())


def quantised_in(config: ConfigDict, algorithm: Algorithm) -> jnp.dtype:
  """The type in which `algorithm`'s images become uint8 (ops.images.to_uint8), by config.run.quantisation."""
  official = jnp.float32  # in which all other networks end
  if isinstance(algorithm, R3GAN) and type(algorithm.generator) is Generator and algorithm.generator.bfloat16_stages:
    official = jnp.bfloat16
  choices = {"float32": jnp.float32, "official": official}
  return jnp.dtype(_look_up(choices, "run.quantisation", config.run.quantisation))


def build_optimizers(algorithm: Algorithm) -> dict[str, optax.GradientTransformationExtraArgs]:
  """An optimiser for each network that a phase updates."""
  updates: dict[str, list[float]] = {}  # of each phase in each iteration, on average
  for phase in algorithm.phases:
    for name in phase.updates:
      updates.setdefault(name, []).append(1 / phase.every)
  shares = {name: sum(rate for rate in rates if rate == 1) / sum(rates) for name, rates in updates.items()}
  return {name: adam_without_momentum(share=share) for name, share in shares.items()}


def build_experiment(config: ConfigDict, device_count: int, platform: str | None = None) -> Experiment:
  """What to train, checked for `device_count` devices; `platform` as of `build_algorithm`. Allocates nothing."""
  run = config.run
  algorithm = build_algorithm(config, platform)
  if config.batch_size <= 0 or config.batch_size % device_count:
    raise UserError(
      f"config.batch_size = {config.batch_size} is not a multiple of the {device_count} devices: change one of them"
    )
  per_device = config.batch_size // device_count
  micro_batches = {name: size for name, size in run.micro_batch.items() if size}
  for name, size in micro_batches.items():
    if size < 0 or per_device % min(size, per_device):
      raise UserError(
        f"config.run.micro_batch.{name} = {size} does not divide the {per_device} images that each of {device_count} "
        f"devices gets of config.batch_size = {config.batch_size}"
      )
  for phase in algorithm.phases:
    size = min(micro_batches.get(phase.name, per_device), per_device)
    if size % phase.group:
      setting = f"config.run.micro_batch.{phase.name}" if size < per_device else "config.batch_size"
      raise UserError(
        f"{setting}: {config.algorithm} goes through images in groups of {phase.group}, and {size} at a time do not "
        f"make whole groups: choose a multiple of {phase.group if size < per_device else phase.group * device_count}"
      )
  best_mode = "min"
  if run.best_metric:
    metric, best_mode = _look_up(BEST_METRICS, "run.best_metric", run.best_metric)
    if metric not in run.metrics:
      raise UserError(f"config.run.best_metric = {run.best_metric!r} needs {metric!r} in config.run.metrics")
  for name in ("total_images", "log_every_images", "snapshot_every_images", "keep_checkpoints"):
    if not 0 < run[name] <= MAX_IMAGES:
      raise UserError(f"config.run.{name} = {run[name]} must be from 1 to {MAX_IMAGES:,}")
  for name in ("peer_timeout_seconds", "stall_seconds"):
    if run[name] <= 0:
      raise UserError(f"config.run.{name} = {run[name]} must be positive")
  if run.profile and not (len(run.profile) == 2 and 0 <= run.profile[0] <= run.profile[1]):
    raise UserError(f"config.run.profile = {run.profile}: give the first and the last iteration, e.g. (10, 14)")
  if config.burn_in_images <= 0:
    raise UserError(f"config.burn_in_images = {config.burn_in_images} must be positive")
  return Experiment(
    algorithm=algorithm,
    optimizers=build_optimizers(algorithm),
    schedules={name: _schedule(config, name) for name in SCHEDULED},
    batch_size=config.batch_size,
    seed=config.seed,
    total_images=run.total_images,
    log_every_images=run.log_every_images,
    snapshot_every_images=run.snapshot_every_images,
    keep_checkpoints=run.keep_checkpoints,
    keep_every_images=run.keep_every_images,
    micro_batches=micro_batches,
    best_metric=run.best_metric,
    best_mode=best_mode,
    max_rollbacks=_max_rollbacks(config),
    stall_seconds=run.stall_seconds,
    profile=tuple(run.profile) if run.profile else None,
  )


def _max_rollbacks(config: ConfigDict) -> int:
  run = config.run
  limits = {"stop": 0, "rollback": run.max_rollbacks}
  return _look_up(limits, "run.on_nonfinite", run.on_nonfinite)


def _schedule(config: ConfigDict, name: str) -> schedules.Schedule:
  start, end = config[name]
  return schedules.cosine(start, end, config.burn_in_images)


def build_source(config: ConfigDict) -> Source:
  """The data, by index; a UserError where they are not prepared, or not named yet, as in a converted work directory."""
  if "source" not in config.data:
    raise UserError(
      "a converted snapshot names no data; a recipe does: python main.py --config=... --workdir=..., of the same "
      "networks, with --config.run.total_images=1 if it is not to train"
    )
  return _look_up(SOURCES, "data.source", config.data.source)(config)


def build_loader(config: ConfigDict) -> Loader:
  """The data, ready to train on; a UserError where they are not prepared."""
  return Loader(build_source(config), config.seed, config.data.x_flip)
