"""The one translator from a configuration to objects.

Names in a configuration are looked up in the plain dicts below; adding a GAN, a loss or a data source is one line.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from r3gan_jax import schedules
from r3gan_jax.algorithms.base import Algorithm, Params
from r3gan_jax.algorithms.r3gan import R3GAN, Augment
from r3gan_jax.augment.parameters import TRANSFORMS
from r3gan_jax.augment.pipeline import augment
from r3gan_jax.data.cache import cached
from r3gan_jax.data.folder import FolderSource
from r3gan_jax.data.generated import GeneratedSource
from r3gan_jax.data.images import FITS
from r3gan_jax.data.loader import Loader
from r3gan_jax.data.source import Source
from r3gan_jax.data.stacked import StackedSource, load_small_digits
from r3gan_jax.data.tfds import TfdsSource
from r3gan_jax.errors import UserError
from r3gan_jax.interop.weights import INCEPTION, VGG16, cache_directory
from r3gan_jax.losses.adversarial import NON_SATURATING, RELATIVISTIC
from r3gan_jax.losses.penalties import directional, grad_of_grad
from r3gan_jax.metrics import digits_cnn, inception, vgg
from r3gan_jax.metrics.digit_classifier import DigitClassifier
from r3gan_jax.metrics.evaluation import METRICS, Evaluation
from r3gan_jax.metrics.feature_extractor import ImageSet
from r3gan_jax.metrics.features import RESIZES, FeatureNetwork
from r3gan_jax.metrics.modes import Classifier, ModeCoverage
from r3gan_jax.metrics.statistics_cache import StatisticsCache
from r3gan_jax.networks.r3gan import Discriminator, Generator
from r3gan_jax.ops.grouped_conv import ALGORITHMS as GROUPED_CONV_ALGORITHMS
from r3gan_jax.sampling import Sampler, beside_its_channels, image_grid, save_png
from r3gan_jax.training.checkpoint import Checkpoints
from r3gan_jax.training.loop import Experiment, Snapshot
from r3gan_jax.training.mesh import make_mesh
from r3gan_jax.training.optimizer import adam_without_momentum
from r3gan_jax.training.state import TrainState, abstract_state, averaged_params
from r3gan_jax.training.workdir import read_config

LOSSES = {"relativistic": RELATIVISTIC, "non_saturating": NON_SATURATING}
PENALISED_GRADIENTS = {"directional": directional, "grad_of_grad": grad_of_grad}
SCHEDULED = ("learning_rate", "beta2", "gamma", "ema_half_life", "augment_p")
MAX_IMAGES = 2**31 - 1


def _r3gan(config: ConfigDict, platform: str) -> Algorithm:
  network, data = config.network, config.data
  on = {"auto": platform != "cpu", "on": True, "off": False}
  shared = {
    "widths": tuple(network.widths),
    "cardinalities": tuple(network.cardinalities),
    "blocks": tuple(network.blocks),
    "expansion": network.expansion,
    "num_classes": data.num_classes,
    "grouped_conv": "fused" if (network.grouped_conv, platform) == ("auto", "tpu") else network.grouped_conv,
    "bfloat16_stages": network.bfloat16_stages if _look_up(on, "network.bfloat16", network.bfloat16) else 0,
  }
  stages = {len(network.widths), len(network.cardinalities), len(network.blocks)}
  if stages != {(data.resolution // 4).bit_length()} or data.resolution != 2 ** (max(stages) + 1):
    raise UserError(
      f"config.network.widths, .cardinalities and .blocks need one entry for each stage from 4x4 to "
      f"config.data.resolution = {data.resolution}, a power of 2; they have {sorted(stages)}"
    )
  for width, cardinality in zip(network.widths, network.cardinalities, strict=True):
    if width * network.expansion % cardinality:
      raise UserError(
        f"config.network.cardinalities: {cardinality} groups do not divide width {width} x expansion "
        f"{network.expansion}"
      )
  _look_up({"auto": None, "fused": None, **GROUPED_CONV_ALGORITHMS}, "network.grouped_conv", network.grouped_conv)
  if unknown := set(config.penalties) - {"r1", "r2"}:
    raise UserError(f"config.penalties: unknown {sorted(unknown)}: choose from ['r1', 'r2']")
  return R3GAN(
    generator=Generator(
      **shared, noise_dim=network.noise_dim, embed_dim=network.noise_dim, image_channels=data.channels
    ),
    discriminator=Discriminator(**shared, embed_dim=network.widths[0]),
    noise_dim=network.noise_dim,
    image_shape=(data.resolution, data.resolution, data.channels),
    num_classes=data.num_classes,
    loss=_look_up(LOSSES, "loss", config.loss),
    penalties=tuple(config.penalties),
    augment=_augment(config),
    penalised_gradient=_look_up(PENALISED_GRADIENTS, "penalised_gradient", config.penalised_gradient),
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


ALGORITHMS: Mapping[str, Callable[[ConfigDict, str], Algorithm]] = {"r3gan": _r3gan}


def _tfds(config: ConfigDict) -> Source:
  data = config.data
  if data.fit not in FITS:
    raise UserError(f"config.data.fit = {data.fit!r} is unknown: choose from {sorted(FITS)}")
  shape = (data.resolution, data.resolution, data.channels)
  return TfdsSource(data.name, data.split, config.run.data_path, shape, data.fit, data.num_classes, data.label_key)


def _folder(config: ConfigDict) -> Source:
  data = config.data
  if not config.run.data_path:
    raise UserError("config.run.data_path is empty: name the folder or zip of images")
  return FolderSource(config.run.data_path, (data.resolution, data.resolution, data.channels), data.num_classes)


def _stacked_mnist(config: ConfigDict) -> Source:
  grey = config.copy_and_resolve_references()
  grey.data.channels = 1
  digits = _tfds(grey)
  return StackedSource(digits[np.arange(len(digits))]["image"][..., 0])


def _stacked_digits(config: ConfigDict) -> Source:
  digits = load_small_digits()[0]
  if config.data.resolution != digits.shape[1]:
    raise UserError(f"config.data.resolution = {config.data.resolution}: stacked_digits are 8x8")
  return StackedSource(digits)


def _generated(config: ConfigDict) -> Source:
  return GeneratedSource(config.data.resolution, config.data.channels, config.data.num_classes)


SOURCES: Mapping[str, Callable[[ConfigDict], Source]] = {
  "tfds": lambda config: cached(_tfds(config), config.run.cache_gib),
  "folder": lambda config: cached(_folder(config), config.run.cache_gib),
  "stacked_digits": _stacked_digits,
  "stacked_mnist": _stacked_mnist,
  "generated": _generated,
}


Sample = Callable[[np.ndarray], np.ndarray]
"""seeds int [n] -> uint8 [n, H, W, C]."""

Metric = Callable[[Sample], dict[str, float]]

LEAST_CLASSIFIER_ACCURACY = {"stacked_digits": 0.97, "stacked_mnist": 0.99}
"""Below it, mode coverage would say more of the classifier than of the samples."""


def _modes(config: ConfigDict, source: Source) -> Metric:
  classifier: Classifier
  if config.data.source == "stacked_digits":
    classifier = svm = DigitClassifier(*load_small_digits())
    accuracy = svm.accuracy
  elif config.data.source == "stacked_mnist":
    params, accuracy = digits_cnn.load(classifier_path(config.data.name))
    classifier = partial(digits_cnn.classify, params)
  else:
    raise UserError("config.run.metrics: 'modes' needs config.data.source = 'stacked_digits' or 'stacked_mnist'")
  if accuracy < LEAST_CLASSIFIER_ACCURACY[config.data.source]:
    raise UserError(f"the digit classifier named only {accuracy:.1%} of digits rightly that it was not trained on")
  coverage = ModeCoverage(classifier, config.run.metric_samples)
  real = coverage(lambda indices: source[indices % len(source)]["image"])
  logging.info(
    "the digit classifier names %.1f %% of held-out digits rightly; of %d real images it finds %d modes, KL %.4f",
    100 * accuracy,
    config.run.metric_samples,
    real["modes"],
    real["modes_kl"],
  )
  return coverage


def _evaluation(metrics: list[str], network: str, config: ConfigDict, source: Source) -> Metric:
  real = _real_images(config, source, config.run.metric_samples)
  weights = classifier_path(config.data.name) if network == "digits" else None  # the one that `_modes` counts by
  features = build_feature_network(network, config.run.resize, weights)
  evaluation = Evaluation(metrics, features, make_mesh(), real, statistics_cache(), seed=config.seed)
  size = config.run.metric_samples
  return lambda sample: evaluation(ImageSet("fake", size, sample))


def _look_up(choices: Mapping[str, Any], setting: str, value: str) -> Any:
  if value not in choices:
    raise UserError(f"config.{setting} = {value!r} is unknown: choose from {sorted(choices)}")
  return choices[value]


def build_algorithm(config: ConfigDict, platform: str | None = None) -> Algorithm:
  """The algorithm; `platform` ("cpu", "gpu", "tpu"; default: jax's) decides what is 'auto'."""
  return _look_up(ALGORITHMS, "algorithm", config.algorithm)(config, platform or jax.default_backend())


def build_optimizers(algorithm: Algorithm) -> dict[str, optax.GradientTransformationExtraArgs]:
  """An optimiser for each network that a phase updates."""
  return {name: adam_without_momentum() for phase in algorithm.phases for name in phase.updates}


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
  for name in ("total_images", "log_every_images", "snapshot_every_images", "keep_checkpoints"):
    if not 0 < run[name] <= MAX_IMAGES:
      raise UserError(f"config.run.{name} = {run[name]} must be from 1 to {MAX_IMAGES:,}")
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
  )


def _schedule(config: ConfigDict, name: str) -> schedules.Schedule:
  start, end = config[name]
  return schedules.cosine(start, end, config.burn_in_images)


def build_source(config: ConfigDict) -> Source:
  """The data, by index; a UserError where they are not prepared."""
  return _look_up(SOURCES, "data.source", config.data.source)(config)


def build_loader(config: ConfigDict) -> Loader:
  """The data, ready to train on; a UserError where they are not prepared."""
  return Loader(build_source(config), config.seed, config.data.x_flip)


FEATURE_NETWORKS = ("inception", "vgg16", "digits")


def build_feature_network(
  name: str, resize: str = "tensorflow", weights: Path | None = None, download: bool = False
) -> FeatureNetwork:
  """A network of `FEATURE_NETWORKS`, with its weights.

  Args:
    name: "inception" for the FID, KID and Inception score, "vgg16" for precision and recall, "digits" for (stacked)
      MNIST.
    resize: Inception's, of `features.RESIZES`.
    weights: its file; default: the published one, for digits that of `cli.train_classifier`, in the user's cache.
    download: fetches the published file where it is not at hand.

  Raises:
    UserError: the name or the resize is unknown, or the weights are not at hand, damaged, or those of another network.
  """
  if resize not in RESIZES:
    raise UserError(f"resize {resize!r} is unknown: choose from {list(RESIZES)}")
  if name == "inception":
    return inception.feature_network(INCEPTION.params(inception.abstract_params(), weights, download), resize)
  if name == "vgg16":
    return vgg.feature_network(VGG16.params(vgg.abstract_params(), weights, download))
  if name == "digits":
    path = weights or classifier_path("mnist")
    return digits_cnn.feature_network(digits_cnn.load(path)[0], path.stem)
  raise UserError(f"feature network {name!r} is unknown: choose from {list(FEATURE_NETWORKS)}")


def classifier_path(data_set: str) -> Path:
  """Where the classifier of this data set's digits is kept."""
  return cache_directory() / f"digits-cnn-{data_set}.npz"


def build_metrics(config: ConfigDict, loader: Loader) -> list[Metric]:
  """Those of config.run.metrics; a UserError where they are unknown, or lack a network's weights."""
  known = ("modes", *METRICS)
  for name in config.run.metrics:
    if name not in known:
      raise UserError(f"config.run.metrics: {name!r} is unknown: choose from {sorted(known)}")
  metrics = [_modes(config, loader.source)] if "modes" in config.run.metrics else []
  default = "digits" if config.data.source == "stacked_mnist" else ""
  compared = [name for name in config.run.metrics if name in METRICS]
  return metrics + [
    _evaluation(names, network, config, loader.source)
    for network, names in networks_of_metrics(compared, default).items()
  ]


def build_snapshots(
  config: ConfigDict, algorithm: Algorithm, loader: Loader, workdir: epath.Path, metrics: Sequence[Metric]
) -> list[Snapshot]:
  """What is drawn and measured at every snapshot: a grid of samples, and the metrics."""
  sampler = Sampler(algorithm, make_mesh())
  columns, rows = config.run.grid
  seeds = np.arange(columns * rows)
  # Where classes condition it, each row of the grid is one class.
  labels = np.arange(len(seeds), dtype=np.int32) // columns % algorithm.num_classes if algorithm.num_classes else None
  directory = workdir / "samples"
  directory.mkdir(exist_ok=True)

  def save_grid(name: str, images: np.ndarray) -> np.ndarray:
    image = image_grid(beside_its_channels(images) if config.run.grid_channels else images, columns)
    save_png(directory / f"{name}.png", image, config.run.grid_scale)
    return image

  save_grid("reals", loader.examples(seeds)["image"])

  def grid(params: Any, carry: Any, images_seen: int, writer: Any) -> None:
    image = save_grid(f"fakes_{images_seen:010}", sampler(params, carry, seeds, labels))
    writer.write_images(images_seen, {"samples": image[None]})

  def measure(params: Any, carry: Any, images_seen: int, writer: Any) -> None:
    def sample(seeds: np.ndarray) -> np.ndarray:
      return sampler(params, carry, seeds)

    scores: dict[str, float] = {}
    for metric in metrics:
      scores |= metric(sample)
    writer.write_scalars(images_seen, {f"metrics/{name}": value for name, value in scores.items()})

  return [grid, measure] if metrics else [grid]


@dataclass(frozen=True)
class TrainedRun:
  """What a work directory holds: a checkpoint, with averaged parameters, ready to sample from."""

  algorithm: Algorithm
  params: Params
  carry: Any
  images_seen: int


def open_run(workdir: epath.PathLike, images_seen: int | None = None) -> TrainedRun:
  """The averaged networks of a work directory; as `open_state`."""
  algorithm, state = open_state(workdir, images_seen)
  return TrainedRun(algorithm, averaged_params(algorithm, state), state.carry, int(state.images_seen))


_LEFT_OPEN = {
  "loss": "relativistic",
  "penalties": ("r1", "r2"),
  "penalised_gradient": "directional",
  "augment_p": (0.0, 0.0),
  "network": {"bfloat16": "auto", "grouped_conv": "auto"},
}
"""What a converted snapshot's configuration leaves to a recipe; for what can be done without one, any value serves."""


def open_state(workdir: epath.PathLike, images_seen: int | None = None) -> tuple[Algorithm, TrainState]:
  """Reads a work directory; changes nothing in it.

  Args:
    images_seen: of the checkpoint to open; default: the newest.

  Raises:
    UserError: it holds no readable checkpoint, or not that one.
  """
  config = ConfigDict(_LEFT_OPEN)
  config.update(read_config(workdir))
  directory = epath.Path(workdir) / "checkpoints"
  algorithm = build_algorithm(config)
  if not directory.exists():
    raise UserError(f"{workdir} holds no checkpoint yet: train first")
  checkpoints = Checkpoints(directory)
  state = checkpoints.restore_latest(abstract_state(algorithm, build_optimizers(algorithm), make_mesh()), images_seen)
  checkpoints.close()
  if state is None:
    raise UserError(f"{workdir} holds no checkpoint yet: train first")
  return algorithm, state


def build_image_sets(
  workdir: epath.PathLike, trained: TrainedRun, num_samples: int, seed: int
) -> tuple[ImageSet, ImageSet]:
  """What a run is scored on: all images that it trains on, not mirrored, and as many of its own as asked for.

  Where classes condition it, those of its own are drawn from the data's. Another `seed` gives other samples altogether.
  """
  config = ConfigDict(read_config(workdir))
  if "source" not in config.data:
    raise UserError(
      f"{workdir} was converted and names no data yet; a recipe does: python main.py --config=... --workdir={workdir}, "
      "with --config.run.total_images=1 if it is not to train"
    )
  source = build_source(config)
  seeds = seed * num_samples + np.arange(num_samples)
  if seeds[-1] >= 2**32:
    raise UserError(f"--seed={seed}: {num_samples} samples of it need seeds beyond 2^32; choose a smaller one")
  labels: np.ndarray | None = None
  if trained.algorithm.num_classes:
    chosen = np.random.default_rng(seed).integers(len(source), size=num_samples)
    parts = np.array_split(chosen, -(-num_samples // 1000))
    labels = np.concatenate([source[part]["label"] for part in parts])
  sampler = Sampler(trained.algorithm, make_mesh())

  def fake(indices: np.ndarray) -> np.ndarray:
    return sampler(trained.params, trained.carry, seeds[indices], None if labels is None else labels[indices])

  return _real_images(config, source, num_samples), ImageSet("fake", num_samples, fake)


def _real_images(config: ConfigDict, source: Source, num_samples: int) -> ImageSet:
  """All images of the data, known again by their number and, evenly spread over them, 256 of them.

  Stacked digits are draws without an end: of those as many as there are samples.
  """
  size = min(len(source), num_samples) if config.data.source.startswith("stacked") else len(source)
  spread = np.linspace(0, size - 1, min(size, 256)).astype(np.int64)
  images = source[spread]["image"]
  fingerprint = hashlib.sha256(f"{size} {images.shape}".encode() + images.tobytes()).hexdigest()
  return ImageSet("real", size, lambda indices: source[indices]["image"], fingerprint)


def networks_of_metrics(metrics: Iterable[str], network: str = "") -> dict[str, list[str]]:
  """Feature network -> which of `metrics` it serves: `network`, or by default those of the literature."""
  served: dict[str, list[str]] = {}
  for metric in dict.fromkeys(metrics):
    served.setdefault(network or ("vgg16" if metric == "precision_recall" else "inception"), []).append(metric)
  return served


def statistics_cache() -> StatisticsCache:
  """Where statistics of real images are kept."""
  return StatisticsCache(cache_directory() / "statistics")
