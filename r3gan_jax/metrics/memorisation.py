"""Whether samples are copies of training images: authenticity, and the real images nearest to samples."""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from r3gan_jax.errors import UserError
from r3gan_jax.metrics.feature_extractor import FeatureExtractor, ImageSet
from r3gan_jax.metrics.neighbourhoods import Neighbourhoods, squared_distances, squared_norms_of


def authenticity(sides: Neighbourhoods) -> dict[str, float]:
  """Computes the fraction of samples that are authentic.

  One is not if it is as close to its nearest real image as that image is to its own nearest other one, or closer. A
  generator of copies has an authenticity of 0. That of samples of the real distribution is not 1, since some images are
  their neighbours' neighbours (on a line, 2 in 3): compare with that of test images.

  Returns:
    'authenticity', 'authenticity_num_real' and 'authenticity_num_fake'.

  References:
    Alaa et al., How Faithful is your Synthetic Data?, 2022, section 4. As in dgm-eval (Stein et al. 2023), the distance
    is that of features.
  """
  own = sides.real_distances[sides.of_fake.nearest, 0]
  return {
    "authenticity": float(np.mean(sides.of_fake.distances > own)),
    "authenticity_num_real": sides.num_real,
    "authenticity_num_fake": sides.num_fake,
  }


def check_sizes(num_real: int, num_fake: int) -> None:
  """Raises a UserError unless there are enough images; for use before any other work."""
  del num_fake  # one is enough
  if num_real < 2:
    raise UserError(f"authenticity needs at least 2 real images, but has {num_real}: give more images")


class NearestReals(NamedTuple):
  """The real images nearest to samples, the nearest first.

  Attributes:
    indices: int64 [n, count].
    distances: float32 [n, count], Euclidean.
    own: float32 [n], from the nearest real image to its own nearest other one.
  """

  indices: np.ndarray
  distances: np.ndarray
  own: np.ndarray

  @property
  def authenticity(self) -> float:
    """See `authenticity`, of these samples among all real images."""
    return float(np.mean(self.distances[:, 0] > self.own))


def nearest_reals(extract: FeatureExtractor, fake: ImageSet, real: ImageSet, count: int) -> NearestReals:
  """Finds the `count` real images nearest to each sample, in two passes over all of them.

  The features of the samples are in memory, and a batch of those of the real images.

  Raises:
    UserError: see `FeatureExtractor`; or there are no more than `count` real images.
  """
  if real.size <= count:
    raise UserError(
      f"the {count} nearest of {real.size} real images are asked for: give more images, or ask for fewer neighbours"
    )
  queries = np.concatenate(list(_features(extract, fake)))
  distances, indices = _nearest(queries, _features(extract, real), count)
  found, inverse = np.unique(indices[:, 0], return_inverse=True)
  queries = np.concatenate(list(_features(extract, real.chosen(found))))
  # The nearest is the image itself.
  own = _nearest(queries, _features(extract, real), 2)[0][:, 1]
  return NearestReals(indices, distances, own[inverse])


def _features(extract: FeatureExtractor, images: ImageSet) -> Iterator[np.ndarray]:
  return (batch["features"] for batch in extract(images))


def _nearest(queries: np.ndarray, batches: Iterator[np.ndarray], count: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns distances, float32 [n, count], and indices, int64 [n, count], of the points nearest to float32 [n, d].

  `batches` of the points are float32 [., d], all but the last of one size.
  """
  # Distances do not depend on the origin, but their rounding errors grow with the norms.
  centre = queries.mean(axis=0, dtype=np.float64).astype(np.float32)[None]
  rows = jnp.asarray(queries - centre)
  nothing = jnp.full((len(rows), count), jnp.inf), jnp.zeros((len(rows), count), jnp.int32)
  found, first = nothing, 0
  for batch in batches:
    found = _nearer(found, rows, batch - centre, first)
    first += len(batch)
  distances, indices = (np.asarray(values) for values in found)
  return np.sqrt(np.maximum(distances, 0)), indices.astype(np.int64)


@jax.jit
def _nearer(
  found: tuple[jax.Array, jax.Array], rows: jax.Array, points: jax.Array, first: int | jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns squared distances and indices [n, count], the nearest of those found before and those of new points."""
  indices = jnp.arange(len(points), dtype=jnp.int32) + first
  of_points = squared_distances(rows, points, squared_norms_of(points, len(points)))
  distances = jnp.concatenate([found[0], of_points], axis=1)
  known = jnp.concatenate([found[1], jnp.broadcast_to(indices[None], (len(rows), len(points)))], axis=1)
  negative, chosen = jax.lax.top_k(-distances, found[0].shape[1])
  return -negative, jnp.take_along_axis(known, chosen, axis=1)
