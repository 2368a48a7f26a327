"""Carries out runs and looks at them, in training or from their work directories: what they draw, how it scores."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from r3gan_jax import factory
from r3gan_jax.algorithms.base import Algorithm, HasPictures, Params
from r3gan_jax.data.loader import Loader
from r3gan_jax.data.source import Source
from r3gan_jax.data.stacked import load_small_digits
from r3gan_jax.errors import UserError
from r3gan_jax.interop.weights import INCEPTION, VGG16, cache_directory
from r3gan_jax.metrics import digits_cnn, inception, vgg
from r3gan_jax.metrics.digits_svm import DigitsSVM
from r3gan_jax.metrics.evaluation import METRICS as FEATURE_METRICS
from r3gan_jax.metrics.evaluation import Evaluation
from r3gan_jax.metrics.feature_extractor import ImageSet
from r3gan_jax.metrics.features import RESIZES, FeatureNetwork
from r3gan_jax.metrics.modes import Classifier, ModeCoverage
from r3gan_jax.metrics.statistics_cache import StatisticsCache
from r3gan_jax.ops.images import to_float, to_uint8
from r3gan_jax.sampling import Sampler, beside_its_channels, image_grid, save_png
from r3gan_jax.storage import as_path, make_directory
from r3gan_jax.training.checkpoint import BEST_DIRECTORY, DIRECTORY, Checkpoints, has_checkpoint
from r3gan_jax.training.distributed import check_same_everywhere, is_first_process, on_first_process
from r3gan_jax.training.logging import make_writer
from r3gan_jax.training.loop import Experiment, Snapshot, train
from r3gan_jax.training.mesh import local_copy, make_local_mesh, make_mesh
from r3gan_jax.training.state import TrainState, abstract_state, averaged
from r3gan_jax.training.transfer import transferred_state
from r3gan_jax.training.workdir import check_data, claim_workdir, read_config

METRICS = ("modes", *FEATURE_METRICS)
FEATURE_NETWORKS = ("inception", "vgg16", "digits")

LEAST_CLASSIFIER_ACCURACY = {"stacked_digits": 0.97, "stacked_mnist": 0.99}
"""Below it, mode coverage would say more of the classifier than of the samples."""


def train_run(config: ConfigDict, workdir: epath.PathLike) -> None:
  """Trains what `config` says in `workdir`: from its newest checkpoint, or from the start.

  Raises:
    UserError: a setting, the data or the work directory will not do; nothing is changed then.
    Diverged, Interrupted: as `training.loop.train`.
  """
  workdir = as_path(workdir)
  experiment = factory.build_experiment(config, jax.device_count())
  check_same_everywhere("the configuration", config.to_dict())
  source = factory.build_source(config)
  loader = factory.build_loader(config, source)
  scores = build_scores(config, source)
  quantised_in = factory.quantised_in(config, experiment.algorithm)
  start = build_start(config, experiment, workdir)

  def claim() -> None:
    claim_workdir(workdir, factory.as_chosen(config))
    check_data(workdir, len(source), source.classes)

  on_first_process(claim)
  logging.info("training %s on %d x %s in %s", config.name, jax.device_count(), jax.devices()[0].device_kind, workdir)
  snapshots = build_snapshots(config, experiment.algorithm, source, loader, workdir, scores, quantised_in)
  train(experiment, loader, workdir, make_writer(workdir), snapshots, start)


@dataclass(frozen=True)
class TrainedRun:
  """What a work directory holds: a checkpoint, with averaged parameters, ready to sample from."""

  config: ConfigDict
  algorithm: Algorithm
  params: Params
  carry: Any
  images_seen: int


def open_run(workdir: epath.PathLike, checkpoint: str = "") -> TrainedRun:
  """The averaged networks of a work directory; otherwise as `open_state`."""
  config, algorithm, state = open_state(workdir, checkpoint)
  params, carry = local_copy(averaged(algorithm, state))
  return TrainedRun(config, algorithm, params, carry, int(state.images_seen))


def portable_algorithm(config: ConfigDict) -> Algorithm:
  """The algorithm of a run for programs that are exported, of symbolic batch: in float32, without our own kernels."""
  config = config.copy_and_resolve_references()
  chosen = {"bfloat16": "off", "grouped_conv": "auto"}
  config.gan.update({name: value for name, value in chosen.items() if name in config.gan})
  return factory.build_algorithm(config, platform="cpu")


_LEFT_OPEN = {
  "data": {"background": "white"},
  "run": {"quantisation": "float32", "on_corrupt_image": "stop"},
}
"""What the configuration of a converted snapshot leaves to a recipe. What is done without one is the same for all.

Except network.name, data.background, run.quantisation and run.on_corrupt_image, which configurations did not have
before there was a choice.
"""


def open_state(workdir: epath.PathLike, checkpoint: str = "") -> tuple[ConfigDict, Algorithm, TrainState]:
  """Reads a work directory; changes nothing in it.

  Args:
    checkpoint: its images seen, or "best"; default: the newest.

  Raises:
    UserError: it holds no readable checkpoint, or not that one.
  """
  config = ConfigDict(_LEFT_OPEN)
  config.update(read_config(workdir))
  if "algorithm" not in config:
    raise UserError(f"{workdir} is not a work directory of r3gan_jax: its config.json names no algorithm")
  if not (checkpoint in ("", "best") or checkpoint.isdecimal()):
    raise UserError(f"--checkpoint={checkpoint} is neither a number of images seen nor 'best'")
  directory = as_path(workdir) / (BEST_DIRECTORY if checkpoint == "best" else DIRECTORY)
  algorithm = factory.build_algorithm(config)
  if not directory.exists():
    if checkpoint == "best":
      raise UserError(f"{workdir} holds no best checkpoint yet: train with config.run.best_metric")
    raise UserError(f"{workdir} holds no checkpoint yet: train first")
  checkpoints = Checkpoints(directory)
  abstract = abstract_state(algorithm, make_mesh())
  state = checkpoints.restore_latest(abstract, int(checkpoint) if checkpoint.isdecimal() else None)
  checkpoints.close()
  if state is None:
    raise UserError(f"{directory} holds no checkpoint yet: train first")
  return config, algorithm, state


def build_start(config: ConfigDict, experiment: Experiment, workdir: epath.PathLike) -> TrainState | None:
  """What a run in `workdir` begins with because of config.init_from, or None where it has none, or goes on.

  What is taken over is logged. Changes nothing in either work directory.

  Raises:
    UserError: config.init_from holds no readable checkpoint, or nothing in it fits.
  """
  if not config.init_from or has_checkpoint(as_path(workdir) / DIRECTORY):
    return None
  try:
    there, algorithm, source = open_state(config.init_from)
    if there.algorithm != config.algorithm:
      raise UserError(f"it was trained with config.algorithm = {there.algorithm!r}, not {config.algorithm!r}")
    parts = (experiment.algorithm, experiment.seed, make_mesh())
    start, table = transferred_state(*parts, algorithm, source)
  except UserError as error:
    raise UserError(f"config.init_from = {config.init_from!r}: {error}") from None
  logging.info("from %s at %s images:\n%s", config.init_from, f"{int(source.images_seen):,}", table)
  return start


Score = Callable[[ImageSet], dict[str, float]]
"""Of images that a run drew: numbers by name."""


def build_scores(config: ConfigDict, source: Source) -> list[Score]:
  """Those of config.run.metrics; a UserError where they are unknown, or lack a network's weights."""
  run = config.run
  for name in run.metrics:
    if name not in METRICS:
      raise UserError(f"config.run.metrics: {name!r} is unknown: choose from {sorted(METRICS)}")
  scores: list[Score] = [build_mode_coverage(config, source, run.metric_samples)] if "modes" in run.metrics else []
  chosen = run.feature_network or ("digits" if config.data.source == "stacked_mnist" else "")
  compared = [name for name in run.metrics if name in FEATURE_METRICS]
  for network, names in networks_of_metrics(compared, chosen).items():
    real = real_images(config, source, run.metric_samples)
    weights = classifier_path(config.data.name) if network == "digits" else None  # the one that modes are counted by
    features = build_feature_network(network, run.resize, weights)
    scores.append(Evaluation(names, features, make_mesh(), real, statistics_cache(), seed=config.seed))
  return scores


def build_mode_coverage(config: ConfigDict, source: Source, num_samples: int) -> ModeCoverage:
  """With the digit classifier of the run's data set, and its real images as the yardstick.

  Raises:
    UserError: the data are not stacked digits, or the classifier is not at hand or not good enough.
  """
  classifier: Classifier
  if config.data.source == "stacked_digits":
    classifier = svm = DigitsSVM(*load_small_digits())
    accuracy = svm.accuracy
  elif config.data.source == "stacked_mnist":
    params, accuracy = digits_cnn.load(classifier_path(config.data.name))
    classifier = partial(digits_cnn.classify, params)
  else:
    raise UserError("metrics: 'modes' needs config.data.source = 'stacked_digits' or 'stacked_mnist'")
  if accuracy < LEAST_CLASSIFIER_ACCURACY[config.data.source]:
    raise UserError(f"the digit classifier named only {accuracy:.1%} of digits rightly that it was not trained on")
  logging.info("the digit classifier names %.1f %% of held-out digits rightly", 100 * accuracy)
  return ModeCoverage(classifier, real_images(config, source, num_samples))


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


def networks_of_metrics(metrics: Iterable[str], network: str = "") -> dict[str, list[str]]:
  """Feature network -> which of `metrics` it serves: `network`, or by default those of the literature."""
  served: dict[str, list[str]] = {}
  for metric in dict.fromkeys(metrics):
    served.setdefault(network or ("vgg16" if metric == "precision_recall" else "inception"), []).append(metric)
  return served


def classifier_path(data_set: str) -> Path:
  """Where the classifier of this data set's digits is kept."""
  return cache_directory() / f"digits-cnn-{data_set}.npz"


def statistics_cache() -> StatisticsCache:
  """Where statistics of real images are kept."""
  return StatisticsCache(cache_directory() / "statistics")


def real_images(config: ConfigDict, source: Source, num_samples: int) -> ImageSet:
  """All images of the data, not mirrored, known again by their number and, evenly spread over them, 256 of them.

  Stacked digits are draws without an end: of those as many as there are samples.
  """
  size = min(len(source), num_samples) if config.data.source.startswith("stacked") else len(source)
  spread = np.linspace(0, size - 1, min(size, 256)).astype(np.int64)
  images = source[spread]["image"]
  fingerprint = hashlib.sha256(f"{size} {images.shape}".encode() + images.tobytes()).hexdigest()
  return ImageSet("real", size, lambda indices: source[indices]["image"], fingerprint)


def fake_images(
  algorithm: Algorithm, source: Source, num_samples: int, seed: int, quantised_in: DTypeLike = jnp.float32
) -> Callable[[Params, Any], ImageSet]:
  """(EMA parameters, carry), on the devices of this process -> `num_samples` images of its own, to be scored.

  Where classes condition it, they are drawn from the data's. Another `seed` gives other samples altogether.
  `quantised_in`: as of `Sampler`.
  """
  seeds = seed * num_samples + np.arange(num_samples)
  if seeds[-1] >= 2**32:
    raise UserError(f"seed {seed}: {num_samples} samples of it need seeds beyond 2^32; choose a smaller one")
  labels: np.ndarray | None = None
  if algorithm.num_classes:
    chosen = np.random.default_rng(seed).integers(len(source), size=num_samples)
    parts = np.array_split(chosen, -(-num_samples // 1000))
    labels = np.concatenate([source[part]["label"] for part in parts])
  sampler = Sampler(algorithm, make_local_mesh(), quantised_in=quantised_in)

  def drawn_from(params: Params, carry: Any) -> ImageSet:
    def images(indices: np.ndarray) -> np.ndarray:
      return sampler(params, carry, seeds[indices], None if labels is None else labels[indices])

    return ImageSet("fake", num_samples, images)

  return drawn_from


def build_snapshots(
  config: ConfigDict,
  algorithm: Algorithm,
  source: Source,
  loader: Loader,
  workdir: epath.Path,
  scores: Sequence[Score],
  quantised_in: DTypeLike,
) -> list[Snapshot]:
  """What is drawn and measured at every snapshot: a grid of samples, and the scores, of classes drawn from `source`."""
  sampler = Sampler(algorithm, make_local_mesh(), quantised_in=quantised_in)
  columns, rows = config.run.grid
  seeds = np.arange(columns * rows)
  # Where classes condition it, each row of the grid is one class.
  labels = np.arange(len(seeds), dtype=np.int32) // columns % algorithm.num_classes if algorithm.num_classes else None
  directory = workdir / "samples"

  def save_grid(name: str, images: np.ndarray) -> np.ndarray:
    image = image_grid(beside_its_channels(images) if config.run.grid_channels else images, columns)
    save_png(directory / f"{name}.png", image, config.run.grid_scale)
    return image

  pictures = jax.jit(algorithm.pictures) if isinstance(algorithm, HasPictures) else None
  if is_first_process():
    make_directory(directory)
    reals = loader.examples(seeds)["image"]
    save_grid("reals", reals)

  def grid(params: Params, carry: Any, images_seen: int, writer: Any) -> Mapping[str, float]:
    if not is_first_process():
      return {}
    params, carry = local_copy((params, carry))
    image = save_grid(f"fakes_{images_seen:010}", sampler(params, carry, seeds, labels))
    writer.write_images(images_seen, {"samples": image[None]})
    if pictures:
      for name, drawn in pictures(params, carry, to_float(jnp.asarray(reals))).items():
        save_grid(f"{name}_{images_seen:010}", np.asarray(to_uint8(drawn)))
    return {}

  if not scores:
    return [grid]
  draw = fake_images(algorithm, source, config.run.metric_samples, seed=0, quantised_in=quantised_in)

  def measure(params: Params, carry: Any, images_seen: int, writer: Any) -> Mapping[str, float]:
    fake = draw(*local_copy((params, carry)))
    numbers = {name: value for score in scores for name, value in score(fake).items()}
    writer.write_scalars(images_seen, {f"metrics/{name}": value for name, value in numbers.items()})
    return numbers

  return [grid, measure]
