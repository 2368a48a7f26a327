"""How real and fake features lie to each other, from blocks of pairwise distances on all devices.

Precision and recall, density and coverage, and authenticity are read off it, so that distances are computed once.
All distances are Euclidean, squared and float32.
"""

from functools import cached_property, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

NEIGHBOURS = 5
"""How many neighbours of every real image are kept: the most that a metric asks for."""

BLOCK = 1024


class Positions(NamedTuple):
  """Where queries lie among points with balls around them.

  Attributes:
    balls: int32 [m, r], in how many balls of each of r sizes a query lies.
    nearest: int32 [m], the index of the nearest point.
    distances: float32 [m], the squared distance to it.
  """

  balls: np.ndarray
  nearest: np.ndarray
  distances: np.ndarray


class Neighbourhoods:
  """How real and fake features lie to each other; each part is computed when it is first asked for.

  The ball around a point reaches to its k-th nearest other point of its own set. Closed balls contain their boundary
  and open ones do not, which matters for copies only.

  Args:
    real: float32 [n, d].
    fake: float32 [m, d].
    mesh: has one axis, over which rows are sharded. A device holds one whole set, a share of both, and `block` x
      `block` distances at a time. Every process needs all features.
    real_distances: `neighbour_distances` of `real`, which take most of the time; default: computed.
    closed: k of the closed balls, at most `NEIGHBOURS`.
    opened: k of the open balls, at most `NEIGHBOURS`.
    block: the largest number of points in a block.
  """

  def __init__(
    self,
    real: np.ndarray,
    fake: np.ndarray,
    mesh: Mesh,
    real_distances: np.ndarray | None = None,
    closed: int = 3,
    opened: int = NEIGHBOURS,
    block: int = BLOCK,
  ):
    self.num_real, self.num_fake = len(real), len(fake)
    self.closed, self.opened = closed, opened
    block, centre = _block(len(real), mesh, block), _centre(real)
    self._real_rows, self._fake_rows = (_placed(features, centre, mesh, block) for features in (real, fake))
    self._neighbours = partial(rows_neighbours, mesh=mesh, block=block)
    self._positions = partial(rows_positions, mesh=mesh, block=block)
    self._given = real_distances

  @cached_property
  def real_distances(self) -> np.ndarray:
    """float32 [n, `NEIGHBOURS`], of each real image to the nearest other ones."""
    if self._given is not None:
      return self._given
    return np.asarray(self._neighbours(self._real_rows, self.num_real, neighbours=NEIGHBOURS))[: self.num_real]

  @cached_property
  def of_fake(self) -> Positions:
    """Where fake images lie among real ones, with their closed and their open balls."""
    closed, opened = (self.real_distances[:, k - 1] for k in (self.closed, self.opened))
    # d < r is d <= the number below r. Nothing lies in an open ball of radius 0.
    below = np.where(opened > 0, np.nextafter(opened, np.float32(-np.inf)), np.float32(-np.inf))
    return self._of(self._fake_rows, self.num_fake, self._real_rows, np.stack([closed, below], axis=1))

  @cached_property
  def of_real(self) -> Positions:
    """Where real images lie among fake ones, with their closed balls."""
    distances = np.asarray(self._neighbours(self._fake_rows, self.num_fake, neighbours=self.closed))
    return self._of(self._real_rows, self.num_real, self._fake_rows, distances[: self.num_fake, -1:])

  def _of(self, queries: jax.Array, num_queries: int, points: jax.Array, radii: np.ndarray) -> Positions:
    rows = np.pad(radii, ((0, len(points) - len(radii)), (0, 0)))
    found = self._positions(queries, points, len(radii), rows)
    return Positions(*(np.asarray(values)[:num_queries] for values in found))


def neighbour_distances(features: np.ndarray, mesh: Mesh, block: int = BLOCK) -> np.ndarray:
  """Returns float32 [n, `NEIGHBOURS`], from each of float32 [n, d] to the nearest others, the nearest first.

  They are infinite where there are fewer. Other arguments are those of `Neighbourhoods`.
  """
  block = _block(len(features), mesh, block)
  rows = _placed(features, _centre(features), mesh, block)
  found = rows_neighbours(rows, len(features), mesh=mesh, neighbours=NEIGHBOURS, block=block)
  return np.asarray(found)[: len(features)]


@partial(jax.jit, static_argnames=("mesh", "neighbours", "block"))
def rows_neighbours(points: jax.Array, count: int | jax.Array, *, mesh: Mesh, neighbours: int, block: int) -> jax.Array:
  """Returns float32 [rows, neighbours], from each of the first `count` points to the nearest others.

  Points are float32 [rows, d], sharded over `mesh`; the rows, with padding, are a multiple of `block` x devices.
  """
  (axis,) = mesh.axis_names

  @partial(jax.shard_map, mesh=mesh, in_specs=(P(axis), P()), out_specs=P(axis))
  def distances(rows: jax.Array, count: jax.Array) -> jax.Array:
    columns = jax.lax.all_gather(rows, axis, tiled=True)
    blocks = columns.reshape(-1, block, columns.shape[1]), squared_norms_of(columns, count).reshape(-1, block)

    def distances_of(rows: jax.Array) -> jax.Array:
      def nearer(nearest: jax.Array, block: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        distances = squared_distances(rows, *block)
        return -jax.lax.top_k(-jnp.concatenate([nearest, distances], axis=1), neighbours + 1)[0], None

      # The nearest point is the point itself.
      nothing = jax.lax.pcast(jnp.full((block, neighbours + 1), jnp.inf), axis, to="varying")
      return jax.lax.scan(nearer, nothing, blocks)[0][:, 1:]

    return jax.lax.map(distances_of, rows.reshape(-1, block, rows.shape[1])).reshape(-1, neighbours)

  return jax.lax.with_sharding_constraint(distances(points, jnp.asarray(count)), NamedSharding(mesh, P()))


@partial(jax.jit, static_argnames=("mesh", "block"))
def rows_positions(
  queries: jax.Array, points: jax.Array, count: int | jax.Array, radii: jax.Array, *, mesh: Mesh, block: int
) -> tuple[jax.Array, ...]:
  """Returns the attributes of `Positions` of all rows of `queries` among the first `count` points.

  `points` and `queries` are as in `rows_neighbours`. `radii`, float32 [rows of points, r], are the squared radii of the
  closed balls around each point.
  """
  (axis,) = mesh.axis_names

  @partial(jax.shard_map, mesh=mesh, in_specs=(P(axis), P(axis), P(), P()), out_specs=P(axis))
  def positions(queries: jax.Array, points: jax.Array, count: jax.Array, radii: jax.Array) -> tuple[jax.Array, ...]:
    columns = jax.lax.all_gather(points, axis, tiled=True)
    blocks = (
      columns.reshape(-1, block, columns.shape[1]),
      squared_norms_of(columns, count).reshape(-1, block),
      radii.reshape(-1, block, radii.shape[1]),
      jnp.arange(len(columns), dtype=jnp.int32).reshape(-1, block),
    )

    def positions_of(rows: jax.Array) -> tuple[jax.Array, ...]:
      def also(found: tuple[jax.Array, ...], block: tuple[jax.Array, ...]) -> tuple[tuple[jax.Array, ...], None]:
        balls, nearest, distance = found
        points, squared_norms, radii, indices = block
        distances = squared_distances(rows, points, squared_norms)
        inside = [jnp.sum(distances <= radius[None], axis=1, dtype=jnp.int32) for radius in radii.T]
        closest = jnp.argmin(distances, axis=1)
        closer = jnp.min(distances, axis=1) < distance
        nearest = jnp.where(closer, indices[closest], nearest)
        return (balls + jnp.stack(inside, axis=1), nearest, jnp.minimum(jnp.min(distances, axis=1), distance)), None

      nothing = jnp.zeros((block, radii.shape[1]), jnp.int32), jnp.zeros(block, jnp.int32), jnp.full(block, jnp.inf)
      return jax.lax.scan(also, jax.lax.pcast(nothing, axis, to="varying"), blocks)[0]

    found = jax.lax.map(positions_of, queries.reshape(-1, block, queries.shape[1]))
    return tuple(values.reshape(-1, *values.shape[2:]) for values in found)

  found = positions(queries, points, jnp.asarray(count), radii)
  return jax.lax.with_sharding_constraint(found, NamedSharding(mesh, P()))


def squared_distances(rows: jax.Array, columns: jax.Array, squared_norms: jax.Array) -> jax.Array:
  """Returns the squared distances [m, n] of float32 [m, d] and [n, d], whose `squared_norms_of` are given."""
  products = jnp.matmul(rows, columns.T, precision=jax.lax.Precision.HIGHEST)
  return jnp.sum(rows * rows, axis=1, keepdims=True) + squared_norms[None] - 2.0 * products


def squared_norms_of(points: jax.Array, count: int | jax.Array) -> jax.Array:
  """Returns the squared norms, float32 [n], of float32 [n, d]; of all but the first `count`, infinity.

  So padding is infinitely far from all rows. They are computed apart, as XLA's CPU backend would do so for each block
  within the matrix product, which then takes twice as long.
  """
  return jnp.where(jnp.arange(len(points)) < count, jnp.sum(points * points, axis=1), jnp.inf)


def _block(num_real: int, mesh: Mesh, block: int) -> int:
  """Returns the size of blocks: at most a device's share of the real images, as rows are padded to whole blocks."""
  return min(block, -(-num_real // mesh.size))


def _centre(real: np.ndarray) -> np.ndarray:
  """Returns the mean: distances do not depend on the origin, but their rounding errors grow with the norms."""
  return real.mean(axis=0, dtype=np.float64).astype(np.float32)


def _placed(features: np.ndarray, centre: np.ndarray, mesh: Mesh, block: int) -> jax.Array:
  """Returns features - centre, padded with zero rows to full blocks, sharded over `mesh`."""
  multiple = block * mesh.size
  rows = np.zeros((-(-len(features) // multiple) * multiple, features.shape[1]), np.float32)
  np.subtract(features, centre[None], out=rows[: len(features)])
  sharding = NamedSharding(mesh, P(*mesh.axis_names))
  return jax.make_array_from_callback(rows.shape, sharding, lambda index: rows[index])
