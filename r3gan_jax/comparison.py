"""Compares sets of images by metrics, each with its feature network, whose weights are found here."""

from collections.abc import Sequence
from pathlib import Path

from r3gan_jax.errors import UserError
from r3gan_jax.interop.weights import INCEPTION, VGG16, cache_directory, file_fingerprint, published
from r3gan_jax.metrics import digits_cnn, inception, vgg
from r3gan_jax.metrics.evaluation import Evaluation
from r3gan_jax.metrics.feature_extractor import ImageSet
from r3gan_jax.metrics.features import RESIZES, FeatureNetwork, pixels
from r3gan_jax.metrics.reference import Reference
from r3gan_jax.metrics.statistics_cache import StatisticsCache
from r3gan_jax.training.mesh import make_mesh

FEATURE_NETWORKS = ("inception", "vgg16", "digits", "pixels")

Settings = dict[str, str | int]
"""The settings on which numbers depend, besides the images: 'network', 'resize', 'seed', ..."""


def build_evaluations(
  metrics: Sequence[str],
  real: ImageSet | Reference,
  network: str = "",
  resize: str = "tensorflow",
  weights: Path | None = None,
  download: bool = False,
  batch_per_device: int = 64,
  seed: int = 0,
) -> list[tuple[Settings, Evaluation]]:
  """Builds one evaluation against `real` per feature network that `metrics` need; beside each, its settings.

  Args:
    metrics: of `metrics.evaluation.METRICS`.
    network: of `FEATURE_NETWORKS`, for all metrics; "": those of the literature.

  The other arguments are those of `Scorer`.
  """
  cache = StatisticsCache(cache_directory() / "statistics")
  evaluations: list[tuple[Settings, Evaluation]] = []
  for name in dict.fromkeys(network or default_network(metric) for metric in metrics):
    served = [metric for metric in metrics if (network or default_network(metric)) == name]
    features = build_feature_network(name, resize, weights, download)
    evaluation = Evaluation(served, features, make_mesh(), real, cache, batch_per_device, seed)
    settings: Settings = {"network": features.name, "resize": features.resize}
    evaluations.append((settings | fingerprint_of(weights), evaluation))
  return evaluations


def reference(evaluations: Sequence[tuple[Settings, Evaluation]]) -> Reference:
  """Returns the reference statistics of the evaluation that has FID; raises a UserError if none has."""
  for _, evaluation in evaluations:
    if evaluation.has_reference:
      return evaluation.reference()
  raise UserError("reference statistics are those of FID: add fid to the metrics")


def build_feature_network(
  name: str, resize: str = "tensorflow", weights: Path | None = None, download: bool = False
) -> FeatureNetwork:
  """Builds a network of `FEATURE_NETWORKS` with its weights.

  Args:
    name: "inception" for FID, KID and Inception score, "vgg16" for precision and recall, "digits" for (stacked) MNIST,
      "pixels" for tiny images.
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
  if name == "pixels":
    return pixels()
  raise UserError(f"feature network {name!r} is unknown: choose from {list(FEATURE_NETWORKS)}")


def classifier_path(data_set: str) -> Path:
  """Returns where `cli.train_classifier` keeps the classifier of a data set."""
  return cache_directory() / f"digits-cnn-{data_set}.npz"


def fingerprint_of(weights: Path | None) -> Settings:
  """Returns the fingerprint of weights that are not published; {} of those that are, and of a missing file."""
  return {"weights": file_fingerprint(weights)} if weights and not published(weights) and weights.is_file() else {}


def default_network(metric: str) -> str:
  """Returns the feature network of the literature."""
  return "vgg16" if metric == "precision_recall" else "inception"
