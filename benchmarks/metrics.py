"""Times the metrics of `cli.evaluate --metrics=report`, beside torch-fidelity's, if that is installed.

    pip install torch-fidelity
    python -m benchmarks.metrics --images=50000

Both sides are made-up images of 32x32. The feature network is a matrix, with outputs of Inception's sizes, so what is
timed is the work of the metrics: benchmarks.inception times the network. Each of ours includes a pass over all images
of both sides, where torch-fidelity is given the features. What both compute must be the same. Each runs once.
"""

import importlib.util
import resource
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from r3gan_jax.metrics.evaluation import METRICS, Evaluation
from r3gan_jax.metrics.feature_extractor import ImageSet
from r3gan_jax.metrics.features import FeatureNetwork
from r3gan_jax.training.mesh import make_mesh

SHAPE = (32, 32, 3)
FEATURES, LOGITS = 2048, 1008
CLASSES = 10
SEED = 2020
"""torch-fidelity's, by which the Inception score has its parts."""

_BATCH = 500

Scores = Mapping[str, float]


def main() -> None:
  parser = measure.parser(__doc__ or "")
  parser.add_argument("--images", type=int, default=50_000, help="images a side (%(default)s)")
  options = parser.parse_args()
  count = options.images
  network = made_up_network()
  real, fake = (image_set(name, count, side) for side, name in enumerate(("real", "fake")))
  theirs = torch_fidelity(network, real, fake) if importlib.util.find_spec("torch_fidelity") else {}
  rows: list[measure.Row] = []
  for name, metrics in {
    **{name: (name,) for name in ("fid", "inception_score", "kid", "precision_recall")},
    "all of Inception's features": ("fid", "inception_score", "kid", "mind", "intra_fid"),
    "all of neighbours": ("precision_recall", "density_coverage", "authenticity"),
    "all": tuple(metric for metric in METRICS if metric not in ("fd_dinov2", "class_accuracy")),
  }.items():
    evaluation = Evaluation(metrics, network, make_mesh(), real, batch_per_device=_BATCH)
    ours, scores = timed(partial(evaluation, fake, SEED))
    row: measure.Row = {"metrics": name, "seconds": ours}
    if name in theirs:
      row["torch-fidelity's"], other = timed(theirs[name])
      for key in scores.keys() & other.keys():
        np.testing.assert_allclose(scores[key], other[key], rtol=1e-3, err_msg=key)
    rows.append(row | {"peak GB so far": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20})
    print(rows[-1], flush=True)
  measure.report({f"{count:,} images a side, {measure.threads()} threads": rows}, options.json)


def made_up_network() -> FeatureNetwork:
  """Returns a network of one matrix for the features, and one for the logits."""
  pixels = int(np.prod(SHAPE))
  random = np.random.default_rng(0)
  params = tuple(
    random.standard_normal(shape, np.float32) / np.float32(shape[0]) ** 0.5
    for shape in ((pixels, FEATURES), (FEATURES, LOGITS))
  )

  def apply(params: Any, images: jax.Array) -> dict[str, jax.Array]:
    to_features, to_logits = params
    features = jax.nn.relu(images.reshape(len(images), -1).astype(jnp.float32) / 127.5 @ to_features)
    return {"features": features, "logits_without_bias": features @ to_logits}

  return FeatureNetwork("made up", apply, params, "none")


def image_set(name: str, count: int, side: int) -> ImageSet:
  """Returns coarse noise, in which neighbours differ more than in plain noise; side 1 is darker. In batches of 500."""

  def images(indices: np.ndarray) -> np.ndarray:
    random = np.random.default_rng((side, int(indices[0])))
    coarse = random.integers(0, 256 - 20 * side, (len(indices), 8, 8, SHAPE[2]), dtype=np.uint8)
    return coarse.repeat(4, axis=1).repeat(4, axis=2)

  return ImageSet(name, count, SHAPE, images, labels=lambda indices: indices % CLASSES)


def torch_fidelity(network: FeatureNetwork, real: ImageSet, fake: ImageSet) -> dict[str, Callable[[], Scores]]:
  """Returns torch-fidelity's computation of metrics from features, on the CPU."""
  import torch
  from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc

  run = jax.jit(network.apply)
  parts = [
    [run(network.params, images.images(np.arange(at, at + _BATCH))) for at in range(0, images.size, _BATCH)]
    for images in (fake, real)
  ]
  features = [torch.tensor(np.concatenate([part["features"] for part in side])) for side in parts]
  logits = torch.tensor(np.concatenate([part["logits_without_bias"] for part in parts[0]]))

  def fid() -> Scores:
    of_sides = (metric_fid.fid_features_to_statistics(side) for side in features)
    return {"fid": metric_fid.fid_statistics_to_metric(*of_sides, False)["frechet_inception_distance"]}

  def inception_score() -> Scores:
    found = metric_isc.isc_features_to_metric(logits, rng_seed=SEED)
    return {"inception_score": found["inception_score_mean"]}

  def kid() -> Scores:
    metric_kid.kid_features_to_metric(*features, verbose=False)
    return {}  # of other random subsets

  def precision_recall() -> Scores:
    # Without save_cpu_ram it would keep all distances: 10 GB for 50,000 images, three times.
    return metric_prc.prc_features_to_metric(*features, save_cpu_ram=True, verbose=False)

  return {"fid": fid, "inception_score": inception_score, "kid": kid, "precision_recall": precision_recall}


def timed(call: Callable[[], Scores]) -> tuple[float, Scores]:
  start = time.perf_counter()
  scores = call()
  return time.perf_counter() - start, scores


if __name__ == "__main__":
  main()
