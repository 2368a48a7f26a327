"""Scores a run: one path for the training loop and for cli.evaluate, so that both give the same numbers.

Besides the checkpoint and the data, the scores of samples depend on a protocol: see training/protocol.py.
"""

from collections.abc import Callable, Iterator
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from r3gan_jax import factory
from r3gan_jax.algorithms.base import Algorithm, Carry, Params, split_keys
from r3gan_jax.algorithms.capabilities import HasCategories, HasClassifier, HasCodes
from r3gan_jax.algorithms.image_to_image import ImageToImage
from r3gan_jax.comparison import (
  Settings,
  build_evaluations,
  fingerprint_of,
  network_of,
  possible,
  reference,
)
from r3gan_jax.data.images import to_8_bits
from r3gan_jax.data.source import Source
from r3gan_jax.data.stacked import load_small_digits
from r3gan_jax.errors import UserError
from r3gan_jax.interop.weights import published
from r3gan_jax.metrics import classification, digits_cnn, digits_svm
from r3gan_jax.metrics.classification import TRAINING_IMAGES, ClassificationError, labelled_images
from r3gan_jax.metrics.classification_accuracy_score import ClassificationAccuracyScore
from r3gan_jax.metrics.evaluation import METRICS as FEATURE_METRICS
from r3gan_jax.metrics.evaluation import OF_CLASSES
from r3gan_jax.metrics.feature_extractor import ImageSet, spread
from r3gan_jax.metrics.modes import Classifier, ModeCoverage
from r3gan_jax.metrics.pairs import Drawn, PairQuality
from r3gan_jax.metrics.reference import Reference
from r3gan_jax.ops.images import to_float, to_uint8
from r3gan_jax.perceptual_path_length import SMALLEST_SIDE, PerceptualPathLength
from r3gan_jax.pretrained import build_feature_network, classifier_path, lpips_params
from r3gan_jax.progress_bar import progress_bar
from r3gan_jax.recipe import image_size
from r3gan_jax.sampling import Sampler
from r3gan_jax.settings import look_up
from r3gan_jax.sources import SOURCES, has_test_images, labelled
from r3gan_jax.training.mesh import make_mesh
from r3gan_jax.training.protocol import Protocol

OF_SAMPLES = ("modes", "pairs", "cas", "ppl", *FEATURE_METRICS)
METRICS = (*OF_SAMPLES, "classification_error")

_SAMPLES_OF_A_CLASS = 20
"""With fewer of each class on average, `report` leaves out FID within classes: it would be bias only."""

MIN_CLASSIFIER_ACCURACY = {"stacked_digits": 0.97, "stacked_mnist": 0.99}
"""config.data.source -> the held-out accuracy below which mode coverage would measure the classifier."""


def protocol(
  config: ConfigDict, algorithm: Algorithm, seed: int = 0, weights: Path | None = None, truncation: float = 1.0
) -> Protocol:
  """Returns the protocol by which `Scorer` scores samples; {} if no metric is of samples.

  Its 'network' is "default" for that of the literature.
  """
  run, network = config.run, chosen_network(config)
  if set(OF_SAMPLES).isdisjoint(run.metrics):
    return {}
  compared = [metric for metric in run.metrics if metric in FEATURE_METRICS]
  weights = chosen_weights(config, weights)
  if weights and not published(weights):
    network = weights.stem
  elif not network or (compared and all(network_of(metric, network) == network_of(metric) for metric in compared)):
    network = "default"
  return {
    "network": network,
    "num_samples": run.metric_samples,
    "seed": seed,
    "quantised_in": factory.quantised_in(config, algorithm).name,
    "resize": run.resize,
    "truncation": truncation,
  } | fingerprint_of(weights)


def report(config: ConfigDict, algorithm: Algorithm, num_samples: int) -> list[str]:
  """Returns all metrics that the data and the networks of a run allow; logs why they do not allow others.

  A `Scorer` may leave out more of them, since the feature network counts, too.
  """
  classes = algorithm.num_classes
  why = {}
  if not config.data.source.startswith("stacked"):
    why["modes"] = "the data are not stacked digits"
  if not classes:
    why |= dict.fromkeys((*OF_CLASSES, "cas"), "the GAN is not conditional")
  elif num_samples < _SAMPLES_OF_A_CLASS * classes:
    why["intra_fid"] = f"{num_samples:,} samples are too few for {classes} classes"
  if not has_test_images(config):
    why |= dict.fromkeys(("cas", "classification_error"), "the data have no labelled test images")
  if not isinstance(algorithm, HasClassifier | HasCategories | HasCodes):
    why["classification_error"] = f"{config.algorithm} has no networks that classify or encode images"
  if min(algorithm.image_shape[:2]) < SMALLEST_SIDE:
    why["ppl"] = "the images are too small"
  if isinstance(algorithm, ImageToImage):
    why |= dict.fromkeys(set(METRICS) - {"pairs"}, f"{config.algorithm} is scored by 'pairs' alone")
  else:
    why["pairs"] = f"{config.algorithm} draws from no images"
  for metric, reason in why.items():
    logging.info("%s is left out: %s", metric, reason)
  return [metric for metric in METRICS if metric not in why]


class Scorer:
  """Scores a run by config.run.metrics: its samples, and its own networks as a classifier.

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
    truncation: of the samples, see `Algorithm.generate`; path lengths are not truncated.
    leave_out: leaves out metrics of features that the network or the images do not allow, and logs why, instead of
      raising errors.

  Raises:
    UserError: an unknown metric, network or resize, missing weights, 'modes' of data that are not stacked digits,
      a metric of classes without classes, 'classification_error' of data without labelled test images or of networks
      that do not classify, or 'pairs' of networks that draw from noise alone, or another metric of those that do not.
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
    truncation: float = 1.0,
    leave_out: bool = False,
  ):
    run = config.run
    for metric in run.metrics:
      look_up(dict.fromkeys(METRICS), "run.metrics", metric)
      if metric in (*OF_CLASSES, "cas") and not algorithm.num_classes:
        raise UserError(f"metrics: {metric!r} needs a conditional GAN, but config.data.num_classes = 0: leave it out")
      if metric == "pairs" and truncation != 1:
        raise UserError(f"--truncation={truncation} is not for the metric 'pairs': leave it out")
      if (metric == "pairs") != isinstance(algorithm, ImageToImage):
        raise UserError(
          f"metrics: {metric!r} of {config.algorithm}: 'pairs' is the metric of image_to_image, and of no other GAN"
        )
    self._classification: ClassificationError | None = None
    if "classification_error" in run.metrics:
      self._classification = _classification_error(config, algorithm, batch_per_device)
    real = real_images(config, source, run.metric_samples)
    self._modes = ModeCoverage(_digit_classifier(config), real) if "modes" in run.metrics else None
    self._cas = _classification_accuracy_score(config, algorithm, real) if "cas" in run.metrics else None
    self._path_length = PerceptualPathLength(algorithm, lpips_params(download)) if "ppl" in run.metrics else None
    compared = [metric for metric in run.metrics if metric in FEATURE_METRICS]
    network, resize, weights = chosen_network(config), run.resize, chosen_weights(config, weights)
    self._evaluations = build_evaluations(compared, real, network, resize, weights, download, batch_per_device)
    drawn = run.metric_samples, algorithm.image_shape, algorithm.num_classes > 0
    if leave_out and compared:
      self._evaluations = possible(self._evaluations, *drawn)
    for _, evaluation in self._evaluations:
      evaluation.check(*drawn)
    quantised_in = factory.quantised_in(config, algorithm)
    self._config, self._algorithm, self._source, self._weights = config, algorithm, source, weights
    self._options: dict[str, Any] = {"quantised_in": quantised_in, "truncation": truncation, "title": title}
    self._settings: Settings = {
      **{"num_samples": run.metric_samples, "seed": seed},
      **{"quantised_in": quantised_in.name, "truncation": truncation},
    }
    self._build_pairs: Callable[[int], PairQuality] | None = None
    if isinstance(algorithm, ImageToImage) and run.metrics:
      features = build_feature_network(network or "inception", resize, weights, download)
      draw = partial(_drawn, algorithm, quantised_in)
      self._build_pairs = partial(
        PairQuality, draw, features, _true_images(config, algorithm, source), make_mesh(), batch_per_device
      )
      own: Settings = {"network": features.name, "resize": features.resize}
      self._settings = own | fingerprint_of(weights) | self._settings
    self._take(seed)

  def _take(self, seed: int) -> None:
    self._seed, self._settings = seed, self._settings | {"seed": seed}
    self.protocol = protocol(self._config, self._algorithm, seed, self._weights, self._options["truncation"])
    num_samples = self._config.run.metric_samples
    self._pairs = self._build_pairs(seed) if self._build_pairs else None
    if self.protocol and not self._pairs:
      self._draw = fake_images(self._algorithm, self._source, num_samples, seed, **self._options)
    if self._path_length:
      self._paths = np.split(seeds_of_samples(2 * num_samples, seed), 2)

  def of_seed(self, seed: int) -> "Scorer":
    """Returns a scorer by other samples, which shares what is known of the real images.

    It does not score networks as a classifier again.
    """
    scorer = copy(self)
    scorer._classification = None
    scorer._take(seed)
    return scorer

  def __call__(self, params: Params, carry: Carry) -> Iterator[tuple[Settings, dict[str, float]]]:
    """Scores averaged parameters and carry, on this process's devices.

    Yields what they depend on, and numbers by name, once per feature network, as soon as they are computed.
    """
    if self._classification:
      yield {}, self._classification((params, carry))
    if self._pairs:
      yield self._settings, self._pairs((params, carry))
      return
    if not self.protocol:
      return
    images = self._draw(params, carry)
    if self._path_length:
      labels = images.labels(np.arange(images.size)) if images.labels else None
      starts, ends = self._paths
      numbers = self._path_length(params, carry, starts, ends, labels)
      yield {name: self._settings[name] for name in ("num_samples", "seed")}, numbers
    yield from self.of_images(images)

  def of_images(self, images: ImageSet) -> Iterator[tuple[Settings, dict[str, float]]]:
    """Scores images in place of samples; yields as a call does."""
    if self._modes:
      yield self._settings, self._modes(images)
    if self._cas:
      yield self._settings, self._cas(images, self._seed)
    for of_network, evaluation in self._evaluations:
      yield of_network | self._settings, evaluation(images, self._seed)

  def reference(self) -> Reference:
    """Returns the reference statistics of the data; raises a UserError without FID."""
    return reference(self._evaluations)


def _classification_error(config: ConfigDict, algorithm: Algorithm, batch_per_device: int) -> ClassificationError:
  """Returns the metric, on the data set's test images."""
  outputs: Callable[..., jax.Array]
  if isinstance(algorithm, HasClassifier):
    outputs, kind = algorithm.classify, classification.CLASSES
  elif isinstance(algorithm, HasCategories):
    outputs, kind = algorithm.categorise, classification.CATEGORIES
  elif isinstance(algorithm, HasCodes):
    outputs, kind = algorithm.encode, classification.CODES
  else:
    raise UserError(
      f"metrics: 'classification_error' needs networks that classify or encode images, which {config.algorithm} has not"
    )
  _check_test_images(config, "classification_error")
  test, training = (labelled(config, split) for split in ("test", config.data.split))
  return ClassificationError(
    lambda networks, images: outputs(networks[0], networks[1], images),
    kind,
    make_mesh(),
    batch_per_device,
    labelled_images("test", test, algorithm.image_shape),
    labelled_images("training", training, algorithm.image_shape, TRAINING_IMAGES),
  )


def _classification_accuracy_score(
  config: ConfigDict, algorithm: Algorithm, real: ImageSet
) -> ClassificationAccuracyScore:
  """Returns the metric, on the data set's test images."""
  _check_test_images(config, "cas")
  test = labelled_images("test", labelled(config, "test"), algorithm.image_shape)
  return ClassificationAccuracyScore(real, test, algorithm.num_classes)


def _check_test_images(config: ConfigDict, metric: str) -> None:
  data = config.data
  if not has_test_images(config):
    raise UserError(
      f"metrics: {metric!r} needs a prepared data set with a split 'test' that is not trained on, but "
      f"config.data.source = {data.source!r}, name = {data.name!r}, split = {data.split!r}: leave the metric out"
    )


def _drawn(
  algorithm: ImageToImage, quantised_in: DTypeLike, networks: tuple[Params, Carry], images: jax.Array, keys: jax.Array
) -> Drawn:
  """Draws from the conditions of images, or those that come with them, for `PairQuality`."""
  condition_keys, *sample_keys = split_keys(keys, 3)
  conditions = algorithm.conditions(images, condition_keys)
  first, second = (
    to_uint8(algorithm.generate(*networks, algorithm.noise(keys), conditions), quantised_in) for keys in sample_keys
  )
  baseline = to_uint8(algorithm.condition.restore(to_float(conditions), algorithm.images.channels))
  of_first = None if algorithm.condition.given else algorithm.conditions(first, condition_keys)
  return Drawn(algorithm.true(images), (first, second), baseline, conditions, of_first)


def _true_images(config: ConfigDict, algorithm: ImageToImage, source: Source) -> ImageSet:
  """Returns at most config.run.metric_samples images, evenly spread: test images, if there are any."""
  if has_test_images(config):
    config = config.copy_and_resolve_references()
    config.data.split = "test"
    source = SOURCES["tfds"](config)
  chosen = spread(len(source), min(len(source), config.run.metric_samples))
  return ImageSet("true", len(chosen), algorithm.input_shape, lambda part: to_8_bits(source[chosen[part]]["image"]))


def real_images(config: ConfigDict, source: Source, num_samples: int) -> ImageSet:
  """Returns all images of the data, not mirrored; of stacked digits, which are endless draws, `num_samples`."""
  size = min(len(source), num_samples) if config.data.source.startswith("stacked") else len(source)
  shape = (*image_size(config.data), config.data.channels)
  labels = (lambda indices: source[indices]["label"]) if config.data.num_classes else None
  return ImageSet("real", size, shape, lambda indices: to_8_bits(source[indices]["image"]), source.fingerprint, labels)


def seeds_of_samples(num_samples: int, seed: int) -> np.ndarray:
  """Returns the seeds of the samples of a set, int64 [num_samples]; raises a UserError if they are too large."""
  seeds = seed * num_samples + np.arange(num_samples)
  if seeds[-1] >= 2**32:
    raise UserError(f"seed {seed}: {num_samples} samples of it need seeds beyond 2^32; choose a smaller one")
  return seeds


def fake_images(
  algorithm: Algorithm, source: Source, num_samples: int, seed: int, **options: Any
) -> Callable[[Params, Carry], ImageSet]:
  """Returns (averaged params, carry) -> `num_samples` samples; different seeds share no sample.

  Classes are drawn from the labels of `source`, so they have its distribution. `options`: of the `Sampler`.
  """
  seeds = seeds_of_samples(num_samples, seed)
  labels: np.ndarray | None = None
  if algorithm.num_classes:
    chosen = np.random.default_rng(seed).integers(len(source), size=num_samples)
    parts = np.array_split(chosen, -(-num_samples // 1000))
    with progress_bar(parts, total=len(parts), title="labels", unit="parts", quiet=jax.process_index() > 0) as bar:
      labels = np.concatenate([source[part]["label"] for part in bar])
  sampler = Sampler(algorithm, make_mesh(jax.local_devices()), **options)

  def drawn_from(params: Params, carry: Carry) -> ImageSet:
    def images(indices: np.ndarray) -> np.ndarray:
      return sampler(params, carry, seeds[indices], None if labels is None else labels[indices])

    asked = None if labels is None else labels.__getitem__
    return ImageSet("fake", num_samples, algorithm.image_shape, images, labels=asked)

  return drawn_from


def chosen_network(config: ConfigDict) -> str:
  """Returns the feature network that the run chooses for all metrics; "" if it leaves that to the literature."""
  return config.run.feature_network or ("digits" if config.data.source == "stacked_mnist" else "")


def chosen_weights(config: ConfigDict, weights: Path | None) -> Path | None:
  """Returns the file of weights that is given, or of the data set's classifier if that is the network.

  Data without a name have MNIST's.
  """
  return weights or (classifier_path(config.data.name or "mnist") if chosen_network(config) == "digits" else None)


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
