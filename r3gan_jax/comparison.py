"""Compares sets of images by metrics, each with its feature network."""

from collections.abc import Sequence
from pathlib import Path

from absl import logging

from r3gan_jax.errors import UserError
from r3gan_jax.interop.weights import cache_directory, file_fingerprint, published
from r3gan_jax.metrics.evaluation import OF_NEIGHBOURS, Evaluation
from r3gan_jax.metrics.feature_extractor import ImageSet
from r3gan_jax.metrics.reference import Reference
from r3gan_jax.metrics.statistics_cache import StatisticsCache
from r3gan_jax.pretrained import OF_ONE_METRIC, build_feature_network
from r3gan_jax.training.mesh import make_mesh

Settings = dict[str, str | int | float]
"""The settings on which numbers depend, besides the images: 'network', 'resize', 'seed', ..."""


def build_evaluations(
  metrics: Sequence[str],
  real: ImageSet | Reference,
  network: str = "",
  resize: str = "tensorflow",
  weights: Path | None = None,
  download: bool = False,
  batch_per_device: int = 64,
) -> list[tuple[Settings, Evaluation]]:
  """Builds one evaluation against `real` per feature network that `metrics` need; beside each, its settings.

  Args:
    metrics: of `metrics.evaluation.METRICS`.
    network: of `pretrained.FEATURE_NETWORKS`, for all metrics but FD_DINOv2; "": those of the literature.

  The other arguments are those of `Scorer`.
  """
  cache = StatisticsCache(cache_directory() / "statistics")
  evaluations: list[tuple[Settings, Evaluation]] = []
  for name in dict.fromkeys(network_of(metric, network) for metric in metrics):
    served = [metric for metric in metrics if network_of(metric, network) == name]
    own = weights if name == network else None
    features = build_feature_network(name, resize, own, download)
    evaluation = Evaluation(served, features, make_mesh(), real, cache, batch_per_device)
    settings: Settings = {"network": features.name, "resize": features.resize}
    evaluations.append((settings | fingerprint_of(own), evaluation))
  return evaluations


def with_weights(metrics: Sequence[str], download: bool) -> list[str]:
  """Returns the metrics but those of `pretrained.OF_ONE_METRIC` whose weights are missing; logs which.

  None is left out if the weights are to be downloaded.
  """
  missing = {
    metric: [weights.cached for weights in published if not download and not weights.cached.exists()]
    for metric, published in OF_ONE_METRIC.items()
  }
  for metric in metrics:
    if missing.get(metric):
      logging.info("%s is left out: %s does not exist, see --download", metric, missing[metric][0])
  return [metric for metric in metrics if not missing.get(metric)]


def possible(
  evaluations: Sequence[tuple[Settings, Evaluation]], num_fake: int, shape: tuple[int, int, int], with_classes: bool
) -> list[tuple[Settings, Evaluation]]:
  """Returns the evaluations by the metrics that these images allow; logs why they do not allow others.

  The arguments are those of `Evaluation.check`.

  Raises:
    UserError: they allow none.
  """
  found = [(settings, evaluation.possible(num_fake, shape, with_classes)) for settings, evaluation in evaluations]
  if not any(evaluation.metrics for _, evaluation in found):
    raise UserError("metrics: these images allow none, see above: give more images, or choose another network")
  return [(settings, evaluation) for settings, evaluation in found if evaluation.metrics]


def reference(evaluations: Sequence[tuple[Settings, Evaluation]]) -> Reference:
  """Returns the reference statistics of the evaluation that has FID; raises a UserError if none has."""
  for _, evaluation in evaluations:
    if evaluation.has_reference:
      return evaluation.reference()
  raise UserError("reference statistics are those of FID or FD_DINOv2: add fid or fd_dinov2 to the metrics")


def fingerprint_of(weights: Path | None) -> Settings:
  """Returns the fingerprint of weights that are not published; {} of those that are, and of a missing file."""
  return {"weights": file_fingerprint(weights)} if weights and not published(weights) and weights.is_file() else {}


def network_of(metric: str, chosen: str = "") -> str:
  """Returns the feature network of a metric: its only one, that chosen for all metrics, or that of the literature.

  Authenticity has that of the other metrics of neighbours.
  """
  if metric == "fd_dinov2":
    return "dinov2"
  return chosen or ("vgg16" if metric in OF_NEIGHBOURS else "inception")
