"""The error of a run's own networks as a classifier of labelled images."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from r3gan_jax.data.source import Source
from r3gan_jax.metrics.feature_extractor import FeatureExtractor, ImageSet, spread
from r3gan_jax.metrics.features import FeatureNetwork
from r3gan_jax.metrics.neighbourhoods import squared_distances, squared_norms_of
from r3gan_jax.ops.images import to_float

CLASSES, CATEGORIES, CODES = "classes", "categories", "codes"
TRAINING_IMAGES = 10_000
"""How many training images name the categories or have the codes to compare with, at most; they are evenly spread."""

_BLOCK = 1024
_PART = 1000


@dataclass(frozen=True)
class LabelledImages:
  """A set of images with their classes.

  Attributes:
    name: for messages.
    source: has labels.
    chosen: indices of the images, int64 [n].
    shape: (H, W, C) of each image.
  """

  name: str
  source: Source
  chosen: np.ndarray
  shape: tuple[int, int, int]

  @property
  def images(self) -> ImageSet:
    return ImageSet(self.name, len(self.chosen), self.shape, lambda part: self.source[self.chosen[part]]["image"])

  @cached_property
  def labels(self) -> np.ndarray:
    """The classes, int32 [n]."""
    parts = np.array_split(self.chosen, -(-len(self.chosen) // _PART))
    return np.concatenate([self.source[part]["label"] for part in parts])


def labelled_images(name: str, source: Source, shape: tuple[int, int, int], most: int | None = None) -> LabelledImages:
  """Returns all images of `source`, or `most` of them, evenly spread."""
  return LabelledImages(name, source, spread(len(source), min(len(source), most or len(source))), shape)


class ClassificationError:
  """Scores networks by the fraction of test images whose class they do not tell.

  Args:
    outputs: (networks, float32 images [N, H, W, C] in [-1, 1]) -> float32 [N, D], of each image by itself.
    kind: what the outputs are. `CLASSES`: logits of the classes. `CATEGORIES`: logits of categories without names; see
      `named`. `CODES`: the class of an image is that of the training image with the nearest code.
    mesh: has one axis, over which images are sharded.
    batch_per_device: images in one forward pass.
    test: what is classified.
    training: names the categories, or has the codes; `TRAINING_IMAGES` of it. `CLASSES` do not need it.
  """

  def __init__(
    self,
    outputs: Callable[[Any, jax.Array], jax.Array],
    kind: str,
    mesh: Mesh,
    batch_per_device: int,
    test: LabelledImages,
    training: LabelledImages,
  ):
    def apply(networks: Any, images: jax.Array) -> dict[str, jax.Array]:
      found = outputs(networks, to_float(images))
      return {"outputs": found if kind == CODES else jnp.argmax(found, axis=1)}

    self._extractor = FeatureExtractor(FeatureNetwork("own", apply, (), "none"), mesh, batch_per_device)
    self._kind, self._test, self._training = kind, test, training

  def __call__(self, networks: Any) -> dict[str, float]:
    """Returns 'classification_error' in [0, 1], and of how many test and training images it is.

    With several processes, all of them call it.
    """
    test, training = self._test, self._training
    found = self._outputs(networks, test.images)
    numbers = {"classification_error_test_images": len(found)}
    if self._kind != CLASSES:
      known = self._outputs(networks, training.images)
      found = (named if self._kind == CATEGORIES else nearest)(found, known, training.labels)
      numbers["classification_error_training_images"] = len(known)
    return {"classification_error": float(np.mean(found != test.labels)), **numbers}

  def _outputs(self, networks: Any, images: ImageSet) -> np.ndarray:
    return np.concatenate([batch["outputs"] for batch in self._extractor(images, networks)])


def named(categories: np.ndarray, known: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Returns the classes of categories, int [n] -> int [n].

  A category has the name of the class that is most frequent among the `known` categories, int [m], of images with
  `labels`, int [m]. So several may have one name, and some class none. A category that is not known has the first
  class.
  """
  counts = np.zeros((max(categories.max(), known.max()) + 1, labels.max() + 1), np.int64)
  np.add.at(counts, (known, labels), 1)
  return counts.argmax(axis=1)[categories]


def nearest(codes: np.ndarray, known: np.ndarray, labels: np.ndarray, block: int = _BLOCK) -> np.ndarray:
  """Returns the class of the nearest of the `known` codes, by Euclidean distance; of equals, the first.

  Args:
    codes: float32 [n, d].
    known: float32 [m, d].
    labels: int [m], of `known`.
    block: `block` x `block` distances are in memory at a time.

  Returns:
    int [n].
  """
  # Distances do not depend on the origin, but their rounding errors grow with the norms.
  centre = known.mean(axis=0, dtype=np.float64).astype(np.float32)[None]
  padded = np.pad(known - centre, ((0, -len(known) % block), (0, 0)))
  blocks = jnp.asarray(padded.reshape(-1, block, known.shape[1]))
  found = []
  for start in range(0, len(codes), block):
    rows = codes[start : start + block] - centre
    rows = np.pad(rows, ((0, block - len(rows)), (0, 0)))
    found.append(np.asarray(_nearest(rows, blocks, len(known)))[: len(codes) - start])
  return labels[np.concatenate(found)]


@jax.jit
def _nearest(rows: jax.Array, blocks: jax.Array, count: int) -> jax.Array:
  """Returns the index, int32 [n], of the nearest of the first `count` points; rows [n, d], blocks [k, block, d]."""

  def nearer(best: tuple[jax.Array, jax.Array], block: tuple[jax.Array, ...]) -> Any:
    points, squared_norms, indices = block
    distances = squared_distances(rows, points, squared_norms)
    index, distance = jnp.argmin(distances, axis=1), jnp.min(distances, axis=1)
    closer = distance < best[0]
    return (jnp.where(closer, distance, best[0]), jnp.where(closer, indices[index], best[1])), None

  nothing = jnp.full(len(rows), jnp.inf, rows.dtype), jnp.zeros(len(rows), jnp.int32)
  squared_norms = squared_norms_of(blocks.reshape(-1, blocks.shape[2]), count).reshape(blocks.shape[:2])
  all_indices = jnp.arange(squared_norms.size, dtype=jnp.int32).reshape(blocks.shape[:2])
  (_, indices), _ = jax.lax.scan(nearer, nothing, (blocks, squared_norms, all_indices))
  return indices
