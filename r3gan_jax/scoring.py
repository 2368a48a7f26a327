"""Scores a run: one path for the training loop and for cli.evaluate, so that both give the same numbers.

Besides the checkpoint and the data, scores depend on a protocol: see training/protocol.py.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from r3gan_jax import factory
from r3gan_jax.algorithms.base import Algorithm, Carry, Params
from r3gan_jax.data.source import Source
from r3gan_jax.data.stacked import load_small_digits
from r3gan_jax.errors import UserError
from r3gan_jax.interop.weights import INCEPTION, VGG16, cache_directory
from r3gan_jax.metrics import digits_cnn, digits_svm, inception, vgg
from r3gan_jax.metrics.evaluation import METRICS as FEATURE_METRICS
from r3gan_jax.metrics.evaluation import Evaluation
from r3gan_jax.metrics.feature_extractor import ImageSet
from r3gan_jax.metrics.features import RESIZES, FeatureNetwork
from r3gan_jax.metrics.modes import Classifier, ModeCoverage
from r3gan_jax.metrics.statistics_cache import StatisticsCache
from r3gan_jax.sampling import Sampler
from r3gan_jax.settings import look_up
from r3gan_jax.training.mesh import make_mesh
from r3gan_jax.training.protocol import Protocol

METRICS = ("modes", *FEATURE_METRICS)
FEATURE_NETWORKS = ("inception", "vgg16", "digits")

MIN_CLASSIFIER_ACCURACY = {"stacked_digits": 0.97, "stacked_mnist": 0.99}
"""config.data.source -> the held-out accuracy below which mode coverage would measure the classifier."""

Scores = dict[str, float | str]
"""The numbers of one or more metrics by name, and as text what they depend on: 'network', 'resize', ..."""


def protocol(config: ConfigDict, algorithm: Algorithm, seed: int = 0, weights: Path | None = None) -> Protocol:
  """Returns the protocol by which `Scorer` scores; its 'network' is "default" for that of the literature."""
  run, network = config.run, _network(config)
  compared = [metric for metric in run.metrics if metric in FEATURE_METRICS]
  if weights:
    network = weights.stem
  elif not network or (compared and all(network == _default_network(metric) for metric in compared)):
    network = "default"
  elif network == "digits":
    network = classifier_path(config.data.name).stem
  return {
    "network": network,
    "num_samples": run.metric_samples,
    "seed": seed,
    "quantised_in": factory.quantised_in(config, algorithm).name,
    "resize": run.resize,
  }


class Scorer:
  """Scores the samples of a run by config.run.metrics.

  Args:
    config: of the run; config.run has the protocol.
    algorithm: draws the samples.
    source: the data, with clean labels.
    seed: of the samples, and of KID's subsets.
    weights: the file of the feature network's weights; default: the published ones, or for "digits" the classifier of
      the run's data set, from the user's cache.
    download: fetches published weights that are missing.
    batch_per_device: images in one forward pass of the feature network.
    title: see `Sampler`.

  Raises:
    UserError: an unknown metric, network or resize, missing weights, or 'modes' of data that are not stacked digits.
  """

  def __init__(
    self,
    config: ConfigDict,
    algorithm: Algorithm,
    source: Source,
    seed: int = 0,
    weights: Path | None = None,
    download: bool = False,
    batch_per_device: int = 64,
    title: str | None = "the generator",
  ):
    run = config.run
    for metric in run.metrics:
      look_up(dict.fromkeys(METRICS), "run.metrics", metric)
    self.protocol = protocol(config, algorithm, seed, weights)
    self._parts: list[tuple[Scores, Callable[[ImageSet], dict[str, float]]]] = []
    real = real_images(config, source, run.metric_samples)
    if "modes" in run.metrics:
      self._parts.append(({}, ModeCoverage(_digit_classifier(config), real)))
    compared = [metric for metric in run.metrics if metric in FEATURE_METRICS]
    weights = weights or (classifier_path(config.data.name) if _network(config) == "digits" else None)
    self._parts += build_evaluations(
      compared, real, _network(config), run.resize, weights, download, batch_per_device, seed
    )
    self._quantised_in = factory.quantised_in(config, algorithm)
    self._draw = fake_images(algorithm, source, run.metric_samples, seed, self._quantised_in, title)

  def __call__(self, params: Params, carry: Carry) -> list[Scores]:
    """Scores averaged parameters and carry, on this process's devices; one entry per feature network."""
    fake = self._draw(params, carry)
    return [{**described, "quantised_in": self._quantised_in.name, **score(fake)} for described, score in self._parts]


def numbers(scores: Iterable[Scores]) -> dict[str, float]:
  """Returns all numbers by name, without what they depend on."""
  return {name: value for part in scores for name, value in part.items() if not isinstance(value, str)}


def build_evaluations(
  metrics: Sequence[str],
  real: ImageSet,
  network: str = "",
  resize: str = "tensorflow",
  weights: Path | None = None,
  download: bool = False,
  batch_per_device: int = 64,
  seed: int = 0,
) -> list[tuple[Scores, Evaluation]]:
  """Builds one evaluation against `real` per feature network that `metrics` need; beside each, its network and resize.

  Args:
    metrics: of `metrics.evaluation.METRICS`.
    network: of `FEATURE_NETWORKS`, for all metrics; "": those of the literature.

  The other arguments are those of `Scorer`.
  """
  cache = StatisticsCache(cache_directory() / "statistics")
  evaluations: list[tuple[Scores, Evaluation]] = []
  for name in dict.fromkeys(network or _default_network(metric) for metric in metrics):
    served = [metric for metric in metrics if (network or _default_network(metric)) == name]
    features = build_feature_network(name, resize, weights, download)
    evaluation = Evaluation(served, features, make_mesh(), real, cache, batch_per_device, seed)
    evaluations.append(({"network": features.name, "resize": features.resize}, evaluation))
  return evaluations


def build_feature_network(
  name: str, resize: str = "tensorflow", weights: Path | None = None, download: bool = False
) -> FeatureNetwork:
  """Builds a network of `FEATURE_NETWORKS` with its weights.

  Args:
    name: "inception" for FID, KID and Inception score, "vgg16" for precision and recall, "digits" for (stacked) MNIST.
    resize: how images are resized for Inception, of `features.RESIZES`.
    weights: its file; default: the published one, or MNIST's classifier, from the user's cache.
    download: fetches the published file if it is missing.

  Raises:
    UserError: the name or the resize is unknown, or the weights are missing, damaged, or another network's.
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
  """Returns where `cli.train_classifier` keeps the classifier of a data set."""
  return cache_directory() / f"digits-cnn-{data_set}.npz"


def real_images(config: ConfigDict, source: Source, num_samples: int) -> ImageSet:
  """Returns all images of the data, not mirrored; of stacked digits, which are endless draws, `num_samples`."""
  size = min(len(source), num_samples) if config.data.source.startswith("stacked") else len(source)
  # The fingerprint is of the number of images and 256 of them, evenly spread.
  spread = np.linspace(0, size - 1, min(size, 256)).astype(np.int64)
  images = source[spread]["image"]
  fingerprint = hashlib.sha256(f"{size} {images.shape}".encode() + images.tobytes()).hexdigest()
  return ImageSet("real", size, lambda indices: source[indices]["image"], fingerprint)


def fake_images(
  algorithm: Algorithm,
  source: Source,
  num_samples: int,
  seed: int,
  quantised_in: DTypeLike = jnp.float32,
  title: str | None = "the generator",
) -> Callable[[Params, Carry], ImageSet]:
  """Returns (averaged params, carry) -> `num_samples` samples; different seeds share no sample.

  Classes are drawn from the labels of `source`, so they have its distribution. `quantised_in`, `title`: see `Sampler`.
  """
  seeds = seed * num_samples + np.arange(num_samples)
  if seeds[-1] >= 2**32:
    raise UserError(f"seed {seed}: {num_samples} samples of it need seeds beyond 2^32; choose a smaller one")
  labels: np.ndarray | None = None
  if algorithm.num_classes:
    chosen = np.random.default_rng(seed).integers(len(source), size=num_samples)
    parts = np.array_split(chosen, -(-num_samples // 1000))
    labels = np.concatenate([source[part]["label"] for part in parts])
  sampler = Sampler(algorithm, make_mesh(jax.local_devices()), quantised_in=quantised_in, title=title)

  def drawn_from(params: Params, carry: Carry) -> ImageSet:
    def images(indices: np.ndarray) -> np.ndarray:
      return sampler(params, carry, seeds[indices], None if labels is None else labels[indices])

    return ImageSet("fake", num_samples, images)

  return drawn_from


def _default_network(metric: str) -> str:
  """Returns the feature network of the literature."""
  return "vgg16" if metric == "precision_recall" else "inception"


def _network(config: ConfigDict) -> str:
  """Returns the feature network that the run chooses for all metrics; "" if it leaves that to the literature."""
  return config.run.feature_network or ("digits" if config.data.source == "stacked_mnist" else "")


def _digit_classifier(config: ConfigDict) -> Classifier:
  """Returns the classifier of the run's stacked digits.

  Raises:
    UserError: the data are not stacked digits, or the classifier is missing or not accurate enough.
  """
  source = config.data.source
  classifier: Classifier
  if source == "stacked_digits":
    machine, accuracy = digits_svm.train(*load_small_digits())
    classifier = partial(digits_svm.classify, machine)
  elif source == "stacked_mnist":
    params, accuracy = digits_cnn.load(classifier_path(config.data.name))
    classifier = partial(digits_cnn.classify, params)
  else:
    raise UserError("metrics: 'modes' needs config.data.source = 'stacked_digits' or 'stacked_mnist'")
  if accuracy < MIN_CLASSIFIER_ACCURACY[source]:
    raise UserError(
      f"the digit classifier's held-out accuracy is only {accuracy:.1%}, and mode coverage needs "
      f"{MIN_CLASSIFIER_ACCURACY[source]:.0%}: train it again with cli.train_classifier"
    )
  logging.info("held-out accuracy of the digit classifier: %.1f %%", 100 * accuracy)
  return classifier
