"""Builds objects from a configuration.

Names are looked up in the plain dicts below and in sources.py: a new GAN or data source is one line.
"""

from collections.abc import Mapping
from dataclasses import asdict, fields
from types import ModuleType
from typing import Any, cast

import jax
import jax.numpy as jnp
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from r3gan_jax import settings
from r3gan_jax.algorithms import (
  acgan,
  autogan,
  began,
  bigan,
  biggan,
  cgan,
  dcgan,
  ebgan,
  gan,
  image_to_image,
  infogan,
  lapgan,
  msggan,
  progan,
  r3gan,
  rgan,
  sagan,
  sgan,
  stylegan,
  stylegan2,
  wgan_gp,
  ylg,
)
from r3gan_jax.algorithms.base import Algorithm, Params, Phase
from r3gan_jax.algorithms.capabilities import (
  HasFrozenLayers,
  HasImageDtype,
  HasPretrainedNetworks,
  LearnsFromUnlabelled,
)
from r3gan_jax.algorithms.decoded import AUTOENCODER, Decoded
from r3gan_jax.algorithms.images import Images
from r3gan_jax.data.latents import Numbers
from r3gan_jax.data.loader import Loader
from r3gan_jax.data.relabelled import RelabelledSource
from r3gan_jax.data.source import Source, digest
from r3gan_jax.errors import UserError
from r3gan_jax.interop.sd_vae import read_autoencoder
from r3gan_jax.recipe import Data, Recipe, Run, image_size
from r3gan_jax.settings import look_up
from r3gan_jax.sources import SOURCES, latent_numbers
from r3gan_jax.training.loop import Experiment
from r3gan_jax.training.mesh import on_local_devices

ALGORITHMS: Mapping[str, ModuleType] = {
  "acgan": acgan,
  "autogan": autogan,
  "began": began,
  "bigan": bigan,
  "biggan": biggan,
  "cgan": cgan,
  "dcgan": dcgan,
  "ebgan": ebgan,
  "gan": gan,
  "image_to_image": image_to_image,
  "infogan": infogan,
  "lapgan": lapgan,
  "msggan": msggan,
  "progan": progan,
  "r3gan": r3gan,
  "rgan": rgan,
  "sagan": sagan,
  "sgan": sgan,
  "stylegan": stylegan,
  "stylegan2": stylegan2,
  "wgan_gp": wgan_gp,
  "ylg": ylg,
}
"""config.algorithm -> the module with its `Settings`, `PHASES`, `smoke` and `build`."""

BEST_METRICS = {
  "classification_error": ("classification_error", "min"),
  "fid": ("fid", "min"),
  "fd_dinov2": ("fd_dinov2", "min"),
  "kid": ("kid", "min"),
  "mind": ("mind", "min"),
  "inception_score": ("inception_score", "max"),
  "precision": ("precision_recall", "max"),
  "recall": ("precision_recall", "max"),
  "coverage": ("density_coverage", "max"),
  "class_accuracy": ("class_accuracy", "max"),
  "cas": ("cas", "max"),
  "ppl": ("ppl", "min"),
  "intra_fid": ("intra_fid", "min"),
  "modes": ("modes", "max"),
  "modes_kl": ("modes", "min"),
  "psnr": ("pairs", "max"),
  "ssim": ("pairs", "max"),
  "feature_distance": ("pairs", "min"),
}
"""config.run.best_metric -> (the metric that computes it, whether its "min" or "max" is best)."""


def default_config(algorithm: str) -> ConfigDict:
  """Returns the default settings of a recipe, locked: those of `recipe.py`, and `gan`, the algorithm's own."""
  sections = {name: settings.defaults(cls) for name, cls in _sections(algorithm).items()}
  sections["run"]["micro_batch"] = dict.fromkeys(_module(algorithm).PHASES, 0)
  top = settings.defaults(Recipe) | {"algorithm": algorithm}
  # Not type safe: of a schedule, one number is a constant. `settings.read` checks the types.
  return ConfigDict(top | sections, type_safe=False).lock()


def smoke_settings(config: ConfigDict) -> dict[str, Any]:
  """Returns the changes to `config.gan` for `:smoke`."""
  return _module(config.algorithm).smoke(chosen_settings(config))


def chosen_settings(config: ConfigDict) -> Any:
  """Returns `config.gan` as the algorithm's `Settings`, checked."""
  return settings.read(_module(config.algorithm).Settings, config.gan.to_dict())


def checked(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a configuration as a work directory keeps it, with constants written as pairs.

  Raises:
    UserError: a setting does not exist, has another type or is out of range.
  """
  sections = _sections(config["algorithm"])
  top = settings.read(Recipe, {name: value for name, value in config.items() if name not in sections}, "")
  return asdict(top) | {name: asdict(settings.read(cls, config[name], name)) for name, cls in sections.items()}


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the configuration of an older run with today's settings: new ones have their defaults, old ones go.

  One warning names both. That of a converted snapshot, which names no data, is returned as it is: it leaves settings
  open.
  """
  if "source" not in config.get("data", {}):
    return dict(config)
  sections = _sections(config["algorithm"])
  known = {"": settings.defaults(Recipe)} | {f"{name}.": settings.defaults(cls) for name, cls in sections.items()}
  kept = {"": {name: value for name, value in config.items() if name not in sections}}
  kept |= {f"{name}.": config.get(name, {}) for name in sections}
  new, old = (
    [f"config.{part}{name}" for part in known for name in sorted(these[part].keys() - those[part].keys())]
    for these, those in ((known, kept), (kept, known))
  )
  if new or old:
    changes = [f"{name} is new" for name in new] + [f"{name} no longer exists" for name in old]
    logging.warning("the run is of another version: %s: new settings have their defaults", ", ".join(changes))
  full = {
    part: defaults | {name: value for name, value in kept[part].items() if name in defaults}
    for part, defaults in known.items()
  }
  return full[""] | {name: full[f"{name}."] for name in sections}


def opened(kept: Mapping[str, Any], path: epath.Path) -> ConfigDict:
  """Returns the configuration of a run that is not trained on, `completed`.

  Args:
    kept: the contents of its config.json.
    path: of that file, for errors.

  Raises:
    UserError: it names no algorithm, or a setting has another type or is out of range.
  """
  if not isinstance(kept.get("algorithm"), str):
    raise UserError(f"{path.parent} is not a work directory of r3gan_jax: its {path.name} names no algorithm")
  for name in ("data", "gan", "run"):
    if not isinstance(kept.get(name, {}), Mapping):
      raise UserError(f"{path}: config.{name} = {kept[name]!r} must be a mapping of names to values: restore the file")
  try:
    config = {"data": {}, "gan": {}} | completed(kept)
    checked({"run": {}} | config)
  except UserError as error:
    raise UserError(f"{path}: {error}: restore the file") from None
  # A converted snapshot has no data and no `run`.
  opened = ConfigDict({"data": {"background": Data().background}, "run": asdict(Run())}, type_safe=False)
  opened.update(config)
  return opened


def _module(algorithm: str) -> ModuleType:
  return look_up(ALGORITHMS, "algorithm", algorithm)


def _sections(algorithm: str) -> dict[str, Any]:
  return {"data": Data, "gan": _module(algorithm).Settings, "run": Run}


def build_algorithm(config: ConfigDict, platform: str | None = None) -> Algorithm:
  """Builds the algorithm; "auto" settings are resolved for `platform`: "cpu", "gpu", "tpu", default: jax's."""
  data = config.data
  latents = _is_of_latents(config)
  if latents and config.algorithm != "r3gan":
    raise UserError(f"config.data.source = 'latents': {config.algorithm} takes images only: choose 'r3gan'")
  if not latents and data.channels not in (1, 3, 4):
    raise UserError(f"config.data.channels = {data.channels}: images have 1, 3 or 4 (RGBA) channels")
  conditions = data.get("condition_channels", 0)  # a converted snapshot has none
  if conditions and config.algorithm != "image_to_image":
    raise UserError(
      f"config.data.condition_channels = {conditions}: {config.algorithm} learns from images alone: set it to 0"
    )
  images = Images(*image_size(data), data.channels, data.num_classes, latents, conditions)
  return _module(config.algorithm).build(chosen_settings(config), images, platform or jax.default_backend())


def with_numbers(config: ConfigDict) -> ConfigDict:
  """Returns the configuration of a run on latents with what it needs to know of them, from its data set.

  Other configurations are returned as they are.

  Raises:
    UserError: the data set is not prepared.
  """
  if not _is_of_latents(config):
    return config
  kept = asdict(latent_numbers(config))
  config = config.copy_and_resolve_references().unlock()
  config.data.autoencoder_digest = kept.pop("autoencoder")
  config.data.latents = kept
  return config.lock()


def of_images(config: ConfigDict) -> ConfigDict:
  """Returns the configuration of a run on latents as one on the images that they are of; others as they are."""
  if not _is_of_latents(config):
    return config
  config = config.copy_and_resolve_references().unlock()
  data = config.data
  height, width, data.channels = _numbers(config).image
  data.resolution, data.width = height, 0 if width == height else width
  data.source, data.name = "pixels", data.pixels
  return config.lock()


def drawing(config: ConfigDict, algorithm: Algorithm, at_once: int | None = None) -> tuple[Algorithm, Params]:
  """Returns what draws images: (algorithm, parameters that it needs besides its own).

  They are `algorithm` and none, but of latents, with the decoder of config.run.autoencoder, on this process's devices;
  for `at_once`, see `Decoded`.

  Raises:
    UserError: the decoder's weights are missing, or are not those that encoded the data.
  """
  if not _is_of_latents(config):
    return algorithm, {}
  autoencoder, params = read_autoencoder(config.run.autoencoder)
  of_data = _numbers(config)
  if of_data.autoencoder and of_data.autoencoder != (found := digest(*jax.tree.leaves(params))):
    raise UserError(
      f"config.run.autoencoder = {config.run.autoencoder!r} has other weights ({found[:8]}) than what encoded the "
      f"latents ({of_data.autoencoder[:8]}): give the latter"
    )
  decoded = Decoded(algorithm, autoencoder, of_data, *(() if at_once is None else (at_once,)))
  return cast(Algorithm, decoded), {AUTOENCODER: on_local_devices(params)}


def _is_of_latents(config: ConfigDict) -> bool:
  return config.data.get("source") == "latents"  # a converted snapshot names no data


def numbers(config: ConfigDict) -> Numbers | None:
  """Returns what a run on latents knows of them, `with_numbers`; None of images."""
  return _numbers(config) if _is_of_latents(config) else None


def _numbers(config: ConfigDict) -> Numbers:
  if not config.data.latents:
    raise UserError("config.data.latents is empty: train first, which takes it from the data set")
  return Numbers.read({**config.data.latents, "autoencoder": config.data.autoencoder_digest})


def portable_algorithm(config: ConfigDict) -> Algorithm:
  """Builds the algorithm for export with a symbolic batch size: in float32, without custom kernels."""
  config = config.copy_and_resolve_references()
  chosen = {"bfloat16": "off", "grouped_conv": "auto"}
  config.gan.update({name: value for name, value in chosen.items() if name in config.gan})
  return build_algorithm(config, platform="cpu")


def quantised_in(config: ConfigDict, algorithm: Algorithm) -> jnp.dtype:
  """Returns the dtype in which samples become uint8 (`ops.images.to_uint8`), by config.run.quantisation."""
  official = algorithm.image_dtype if isinstance(algorithm, HasImageDtype) else jnp.dtype(jnp.float32)
  choices = {"float32": jnp.dtype(jnp.float32), "official": official}
  return look_up(choices, "run.quantisation", config.run.quantisation)


def build_experiment(config: ConfigDict, device_count: int, platform: str | None = None) -> Experiment:
  """Builds what is trained, checked for `device_count` devices; allocates nothing on them. `platform`: see above.

  Raises:
    UserError: a setting does not exist, or its value cannot be used; the weights of a pretrained network are missing.
  """
  checked(config.to_dict())
  run = config.run
  algorithm = build_algorithm(config, platform)
  if config.data.labelled_images and not isinstance(algorithm, LearnsFromUnlabelled):
    raise UserError(
      f"config.data.labelled_images = {config.data.labelled_images}: {config.algorithm} cannot learn from images "
      "without a label: set it to 0"
    )
  if isinstance(algorithm, HasFrozenLayers) and algorithm.frozen and not config.init_from:
    raise UserError(
      "config.gan.freeze_discriminator and freeze_generator keep stages of another run: name it by config.init_from, "
      "or set them to 0"
    )
  if isinstance(algorithm, HasPretrainedNetworks):
    for network in algorithm.pretrained.values():
      network.read()  # so that a file that does not fit is refused before anything is written
  if config.batch_size % device_count:
    raise UserError(
      f"config.batch_size = {config.batch_size} is not a multiple of the {device_count} devices: change one of them"
    )
  micro_batches = {name: size for name, size in run.micro_batch.items() if size}
  for phase in algorithm.phases:
    _check_parts(config, phase, phase.batches * config.batch_size // device_count, device_count)
  best_mode = "min"
  if run.best_metric:
    metric, best_mode = look_up(BEST_METRICS, "run.best_metric", run.best_metric)
    if metric not in run.metrics:
      raise UserError(f"config.run.best_metric = {run.best_metric!r} needs {metric!r} in config.run.metrics")
  max_rollbacks = run.max_rollbacks if run.on_nonfinite == "rollback" else 0
  if run.profile and not (len(run.profile) == 2 and 0 <= run.profile[0] <= run.profile[1]):
    raise UserError(f"config.run.profile = {run.profile}: give the first and the last iteration, e.g. (10, 14)")
  from_run = {field.name: run[field.name] for field in fields(Experiment) if field.name in run}
  derived = {"micro_batches": micro_batches, "best_mode": best_mode, "max_rollbacks": max_rollbacks}
  return Experiment(algorithm, config.batch_size, config.seed, **from_run | derived)


def _check_parts(config: ConfigDict, phase: Phase, per_device: int, device_count: int) -> None:
  """Raises a UserError if a device's part of a phase's batch cannot be divided into micro-batches as configured."""
  name, chosen = f"config.run.micro_batch.{phase.name}", config.run.micro_batch[phase.name]
  size = phase.micro_batch_size(per_device, chosen)
  if phase.group is None and chosen:
    raise UserError(
      f"{name} = {chosen}: {config.algorithm} needs whole batches, as batch statistics couple all images: set it to 0"
    )
  if chosen < 0 or per_device % size:
    raise UserError(
      f"{name} = {chosen} does not divide the {per_device} images per device "
      f"(config.batch_size = {config.batch_size} on {device_count} devices): choose a divisor, or 0"
    )
  if phase.group and size % phase.group:
    setting = name if size < per_device else "config.batch_size"
    raise UserError(
      f"{setting}: {size} images at a time on each device are not a multiple of {config.algorithm}'s group size "
      f"{phase.group}: choose a multiple of {phase.group if size < per_device else phase.group * device_count}"
    )


def build_source(config: ConfigDict) -> Source:
  """Builds the data source, with clean labels.

  Raises:
    UserError: the data are not prepared, or, in a converted work directory, not named yet.
  """
  if "source" not in config.data:
    raise UserError(
      "a converted snapshot names no data: give it a recipe of the same networks by python main.py --config=... "
      "--workdir=..., with --config.run.total_images=1 if it is not to train"
    )
  if config.data.condition_channels and config.data.source not in ("tfds", "generated"):
    raise UserError(
      f"config.data.condition_channels = {config.data.condition_channels} with config.data.source = "
      f"{config.data.source!r}: pairs are read from data sets that prepare_data --pairs has made, with 'tfds'"
    )
  return look_up(SOURCES, "data.source", config.data.source)(config)


def build_loader(config: ConfigDict, source: Source) -> Loader:
  """Builds the training loader of `source`, with noisy or missing labels if the settings ask for them.

  Raises:
    UserError: `source` has no labels that could be changed so.
  """
  data = config.data
  if data.labelled_images or data.label_noise or data.label_noise_pairs:
    source = RelabelledSource(
      source, data.num_classes, data.label_noise, data.label_noise_pairs, data.labelled_images, data.labelled_share
    )
  return Loader(source, config.seed, data.x_flip, numbers(config))
