"""Computes metrics in one pass over the real images, unless their statistics are cached, and one over the fake ones."""

import hashlib
from collections.abc import Mapping, Sequence, Set
from copy import copy
from functools import cached_property

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from r3gan_jax.data.source import digest
from r3gan_jax.errors import UserError
from r3gan_jax.metrics import density_coverage, fid, kid, memorisation, mind, precision_recall
from r3gan_jax.metrics.class_accuracy import class_accuracy
from r3gan_jax.metrics.feature_extractor import FeatureExtractor, ImageSet
from r3gan_jax.metrics.features import FeatureNetwork
from r3gan_jax.metrics.inception_score import InceptionScore
from r3gan_jax.metrics.moments import Moments
from r3gan_jax.metrics.neighbourhoods import NEIGHBOURS, Neighbourhoods, neighbour_distances
from r3gan_jax.metrics.reference import Reference
from r3gan_jax.metrics.statistics_cache import Key, StatisticsCache

MAX_FEATURES = 200_000
"""The most images of a set that KID, MIND and the metrics of neighbours use, evenly spread over it.

The official code's precision and recall use the first 200,000 in file order. Of the presets' data only ImageNet is
larger: with its 1,281,167 files sorted by class, they would cover about 156 of the 1000 classes.
"""

OF_NEIGHBOURS = {
  "precision_recall": precision_recall.of_neighbourhoods,
  "density_coverage": density_coverage.density_coverage,
  "authenticity": memorisation.authenticity,
}
"""The metrics of neighbours -> the functions that read them off `Neighbourhoods`."""
OF_MOMENTS = ("fid", "fd_dinov2")
"""The metrics that compare with reference statistics, too."""
METRICS = (*OF_MOMENTS, "kid", "mind", "inception_score", *OF_NEIGHBOURS, "class_accuracy", "intra_fid")
OF_CLASSES = ("class_accuracy", "intra_fid")
"""The metrics of samples with the classes that they were asked to have."""

# For metrics that compare with real images: the statistics that they need, and the check of sizes.
_KEPT = {
  **dict.fromkeys(OF_MOMENTS, ("moments",)),
  **dict.fromkeys(("kid", "mind"), ("features",)),
  **dict.fromkeys(OF_NEIGHBOURS, ("features", "neighbours")),
  "intra_fid": ("class_moments",),
}
_OF_FEATURES = {"features", "neighbours"}
"""Statistics of at most `MAX_FEATURES` images."""
_CHECK_SIZES = {
  **dict.fromkeys(OF_MOMENTS, fid.check_sizes),
  "kid": kid.check_sizes,
  "mind": mind.check_sizes,
  "precision_recall": precision_recall.check_sizes,
  "density_coverage": density_coverage.check_sizes,
  "authenticity": memorisation.check_sizes,
}

Statistics = dict[str, dict[str, np.ndarray]]
"""Statistics, by kind, as arrays by name.

'moments' has attributes of `Moments`; 'class_moments' the same, each with one more axis, beside 'labels' [k].
'features' has 'features' [n, d]; 'neighbours', of real images only, 'distances', see `neighbour_distances`; and
'classes', of fake images only, has 'logits' [n, k] and 'asked' [n].
"""


class Evaluation:
  """Scores sets of fake images against one set of real ones, with one feature network.

  FID and the Inception score need sums only. KID, MIND and the metrics of neighbours keep the features of at most
  `MAX_FEATURES` images per set, float32 on the host: 400 MB for 50,000 x 2048. FID within classes keeps a covariance a
  class.

  Args:
    metrics: names from `METRICS`.
    network: computes the features.
    mesh: has one axis, over which images are sharded.
    real: None if only the Inception score is computed. Its statistics are computed or loaded once, at the first call.
    cache: for the statistics of real images.
    batch_per_device: images in one forward pass on each device.

  Raises:
    UserError: a metric is unknown.
  """

  def __init__(
    self,
    metrics: Sequence[str],
    network: FeatureNetwork,
    mesh: Mesh,
    real: ImageSet | Reference | None = None,
    cache: StatisticsCache | None = None,
    batch_per_device: int = 64,
  ):
    for name in metrics:
      if name not in METRICS:
        raise UserError(f"metrics: {name!r} is unknown: choose from {', '.join(METRICS)}")
    self.metrics = tuple(metrics)
    self._network = network
    self._mesh = mesh
    self._real = real
    self._cache = cache
    self._extract = FeatureExtractor(network, mesh, batch_per_device)
    self._outputs_by_shape: dict[tuple[int, ...], Mapping[str, jax.ShapeDtypeStruct]] = {}

  def __call__(self, fake: ImageSet, seed: int = 0) -> dict[str, float]:
    """Returns the numbers of all metrics by name.

    Args:
      fake: the images.
      seed: for KID's subsets, MIND's directions and the parts of the Inception score.

    Raises:
      UserError: see `check` and `FeatureExtractor`.
    """
    self.check(fake.size, fake.shape, fake.labels is not None)
    score = InceptionScore(fake.size, seed) if "inception_score" in self.metrics else None
    real = self._statistics
    of_fake = {"classes"} if "class_accuracy" in self.metrics else set[str]()
    statistics = self._collect(fake, self._kept - {"neighbours"} | of_fake, score)

    result: dict[str, float] = {}
    for name in OF_MOMENTS:
      if name in self.metrics:
        result |= fid.fid(self.reference(), _moments(statistics["moments"]), name)
    if "features" in self._kept:
      real_features, features = (kept["features"]["features"] for kept in (real, statistics))
      if "kid" in self.metrics:
        result |= kid.kid(real_features, features, seed)
      if "mind" in self.metrics:
        result |= mind.mind(real_features, features, seed)
      if "neighbours" in self._kept:
        sides = Neighbourhoods(real_features, features, self._mesh, real["neighbours"]["distances"])
        for name, of_neighbourhoods in OF_NEIGHBOURS.items():
          if name in self.metrics:
            result |= of_neighbourhoods(sides)
    if "classes" in statistics:
      result |= class_accuracy(**statistics["classes"])
    if "class_moments" in self._kept:
      result |= fid.intra_fid(*(_class_moments(kept["class_moments"]) for kept in (real, statistics)))
    if score:
      result |= score.result()
    return result

  def check(self, num_fake: int, shape: tuple[int, int, int], with_classes: bool) -> None:
    """Checks everything that `num_fake` images of `shape` could fail for, before any other work.

    Args:
      with_classes: whether the images were asked for by class.

    Raises:
      UserError: there are no real images or classes that a metric needs, or too few images; or the network does not
        take the images, has no logits that a metric needs, or is not that of the reference statistics.
    """
    for name in self.metrics:
      self._check(name, num_fake, shape, with_classes)

  def possible(self, num_fake: int, shape: tuple[int, int, int], with_classes: bool) -> "Evaluation":
    """Returns the evaluation by those metrics for which `check` passes; logs why it does not for the others."""
    metrics = []
    for name in self.metrics:
      try:
        self._check(name, num_fake, shape, with_classes)
        metrics.append(name)
      except UserError as error:
        reason = str(error).replace(f"metrics: {name} needs", "it needs").removesuffix(": leave it out")
        logging.info("%s is left out: %s", name, reason)
    possible = copy(self)
    possible.metrics = tuple(metrics)
    return possible

  def _check(self, name: str, num_fake: int, shape: tuple[int, int, int], with_classes: bool) -> None:
    real, network = self._real, self._network.name
    if name in _KEPT and (real is None or (isinstance(real, Reference) and name not in OF_MOMENTS)):
      raise UserError(f"metrics: {name} compares with real images, and there are none: leave it out")
    if name == "intra_fid" and isinstance(real, ImageSet) and real.labels is None:
      raise UserError(f"metrics: {name} needs the classes of real images, and there are none: leave it out")
    if name in OF_CLASSES and not with_classes:
      raise UserError(f"metrics: {name} needs samples that were asked for by class: leave it out")
    outputs = self._outputs(shape)
    if name == "inception_score":
      InceptionScore(num_fake)
      if "logits_without_bias" not in outputs:
        raise UserError(f"metrics: {name} needs class logits, which {network} does not have: leave it out")
    if name == "class_accuracy":
      logits = outputs.get("logits")
      if logits is None or logits.size != logits.shape[-1]:
        raise UserError(
          f"metrics: {name} needs the logits of one class an image, which {network} does not have for images of "
          f"{shape[2]} channels: leave it out"
        )
    dimension = outputs["features"].shape[1]
    if isinstance(real, Reference):
      real.check(dimension, self._settings)
    elif real and name in _KEPT:
      if name in _CHECK_SIZES:
        _CHECK_SIZES[name](real.size, num_fake)
      if self._outputs(real.shape)["features"].shape[1] != dimension:
        raise UserError(
          f"real images have {real.shape[2]} channels and fake ones {shape[2]}: {network} compares images of the same "
          "number"
        )

  @property
  def _kept(self) -> set[str]:
    return {kind for name in self.metrics for kind in _KEPT.get(name, ())}

  @property
  def has_reference(self) -> bool:
    """Whether one of the metrics compares with reference statistics."""
    return not set(OF_MOMENTS).isdisjoint(self.metrics)

  def reference(self) -> Reference:
    """Returns the reference statistics of the real images, for an evaluation with FID or FD_DINOv2."""
    if isinstance(self._real, Reference):
      return self._real
    assert self._real
    moments = _moments(self._statistics["moments"])
    return Reference(self._real.name, moments.mean, moments.covariance, moments.count, self._settings)

  @cached_property
  def _statistics(self) -> Statistics:
    """The statistics of the real images."""
    real = self._real
    if not isinstance(real, ImageSet) or not self._kept:
      return {}
    if self._cache is None or real.fingerprint is None:
      return self._collect(real, self._kept)
    fingerprint = _agreed(real.name, real.fingerprint())
    keys = {kind: self._key(fingerprint, real, kind) for kind in sorted(self._kept)}
    loaded = {kind: self._cache.load(key) for kind, key in keys.items()}
    # What one process lacks, all compute together.
    found = multihost_utils.process_allgather(np.array([arrays is not None for arrays in loaded.values()]))
    found_by_all = found.reshape(-1, len(loaded)).all(axis=0)
    statistics = {
      kind: arrays for (kind, arrays), ok in zip(loaded.items(), found_by_all, strict=True) if ok and arrays
    }
    missing = keys.keys() - statistics.keys()
    if missing:
      computed = self._collect(real, missing)
      if jax.process_index() == 0:
        for kind, arrays in computed.items():
          self._cache.save(keys[kind], arrays)
      statistics |= computed
    return statistics

  def _collect(self, images: ImageSet, kept: Set[str], score: InceptionScore | None = None) -> Statistics:
    of_part = kept & _OF_FEATURES
    if of_part and images.size > MAX_FEATURES:
      statistics = self._collect(images.thinned(MAX_FEATURES), of_part)
      rest = kept - of_part
      return statistics | self._collect(images, rest, score) if rest or score else statistics
    moments: Moments | None = None
    of_classes: dict[int, Moments] = {}
    classes: list[tuple[np.ndarray, np.ndarray]] = []
    features: np.ndarray | None = None
    seen = 0
    for outputs in self._extract(images):
      batch = outputs["features"]
      if score:
        score.add(outputs["logits_without_bias"])
      if "moments" in kept:
        part = Moments.of(batch)
        moments = moments.merged(part) if moments else part
      if of_part:
        if features is None:
          features = np.empty((images.size, batch.shape[1]), np.float32)
        features[seen : seen + len(batch)] = batch
      if images.labels and kept & {"class_moments", "classes"}:
        labels = images.labels(np.arange(seen, seen + len(batch)))
        if "classes" in kept:
          classes.append((outputs["logits"].reshape(len(batch), -1), labels))
        if "class_moments" in kept:
          for kind in np.unique(labels).tolist():
            part = Moments.of(batch[labels == kind])
            of_classes[kind] = of_classes[kind].merged(part) if kind in of_classes else part
      seen += len(batch)
    statistics = {}
    if moments:
      statistics["moments"] = {name: np.asarray(value) for name, value in vars(moments).items()}
    if of_classes:
      kinds = sorted(of_classes)
      arrays = {name: np.stack([vars(of_classes[kind])[name] for kind in kinds]) for name in vars(of_classes[kinds[0]])}
      statistics["class_moments"] = {"labels": np.array(kinds), **arrays}
    if classes:
      logits, asked = (np.concatenate(parts) for parts in zip(*classes, strict=True))
      statistics["classes"] = {"logits": logits, "asked": asked}
    if features is not None and "features" in kept:
      statistics["features"] = {"features": features}
    if features is not None and "neighbours" in kept:
      statistics["neighbours"] = {"distances": neighbour_distances(features, self._mesh)}
    return statistics

  def _key(self, fingerprint: str, real: ImageSet, kind: str) -> Key:
    more: dict[str, int | str] = {"most": MAX_FEATURES} if kind in _OF_FEATURES else {}
    if kind == "neighbours":
      more |= {"neighbours": NEIGHBOURS}
    if kind == "class_moments" and real.labels:
      more = {"labels": digest(real.labels(np.arange(real.size)))}
    return {"data": fingerprint, "size": real.size, "kind": kind, **more, **self._settings}

  @cached_property
  def _settings(self) -> dict[str, str]:
    """The settings on which features depend, besides the images."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(self._network.params):
      digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}".encode())
      digest.update(np.ascontiguousarray(leaf).tobytes())
    return {"network": self._network.name, "weights": digest.hexdigest()[:16], "resize": self._network.resize}

  def _outputs(self, shape: tuple[int, int, int]) -> Mapping[str, jax.ShapeDtypeStruct]:
    """Returns shapes and dtypes of the network's outputs for one image of `shape`."""
    if shape not in self._outputs_by_shape:
      image = jax.ShapeDtypeStruct((1, *shape), np.uint8)
      self._outputs_by_shape[shape] = jax.eval_shape(self._network.apply, self._network.params, image)
    return self._outputs_by_shape[shape]


def _agreed(name: str, fingerprint: str) -> str:
  """Returns the fingerprint, which has to be the same on all processes."""
  own = np.frombuffer(hashlib.sha256(fingerprint.encode()).digest(), np.uint8)
  digests = multihost_utils.process_allgather(own).reshape(-1, len(own))
  if (digests != own).any():
    raise UserError(f"the {name} images are not the same on all processes: give all the same data")
  return fingerprint


def _class_moments(arrays: dict[str, np.ndarray]) -> dict[int, Moments]:
  labels = arrays["labels"].tolist()
  return {kind: _moments({name: values[i] for name, values in arrays.items()}) for i, kind in enumerate(labels)}


def _moments(arrays: dict[str, np.ndarray]) -> Moments:
  return Moments(int(arrays["count"]), arrays["mean"], arrays["scatter"])
