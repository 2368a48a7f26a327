"""From a source to batches on the devices: shuffled, resumable, prefetched.

The n-th sample that a run consumes is a function of the seed and n alone: each epoch is a permutation made from
(seed, epoch). So a run resumed from its count of images, on any number of processes, sees what it would have seen.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import jax
import numpy as np
from jax.sharding import NamedSharding

from r3gan_jax.data.source import Examples, Source

PREFETCH = 2
"""Iterations whose batches are made ahead of the one in use."""


class Loader:
  """Batches of `source` in the order of `seed`; with `x_flip`, an epoch holds every image and its mirror image."""

  def __init__(self, source: Source, seed: int, x_flip: bool):
    self._source = source
    self._seed = seed
    self._x_flip = x_flip
    self._epoch_size = len(source) * (2 if x_flip else 1)
    self._permutation = lru_cache(maxsize=2)(self._make_permutation)

  def examples(self, start: int, count: int) -> Examples:
    """Samples `start` to `start + count` of the run's endless order."""
    indices = self.indices(start, count)
    flipped = indices >= len(self._source)
    examples = self._source[indices % len(self._source)]
    if flipped.any():
      images = examples["image"]
      examples["image"] = np.where(flipped[:, None, None, None], images[:, :, ::-1], images)
    return examples

  def indices(self, start: int, count: int) -> np.ndarray:
    """int64 [count]: the place in the (doubled) data set of samples `start` to `start + count`."""
    parts = []
    while count:
      epoch, offset = divmod(start, self._epoch_size)
      part = self._permutation(epoch)[offset : offset + count]
      parts.append(part)
      start, count = start + len(part), count - len(part)
    return np.concatenate(parts)

  def _make_permutation(self, epoch: int) -> np.ndarray:
    return np.random.default_rng((self._seed, epoch)).permutation(self._epoch_size)

  def iterate(
    self, batch_sizes: Sequence[int], first_iteration: int, sharding: NamedSharding
  ) -> Iterator[tuple[dict[str, jax.Array], ...]]:
    """From `first_iteration` on, for ever: one tuple an iteration, of one global batch for each of `batch_sizes`.

    Batches are made on a thread of their own, a few iterations ahead, each process reading only its part of them.
    """
    starts = np.cumsum([0, *batch_sizes])

    def make(iteration: int) -> tuple[dict[str, jax.Array], ...]:
      return tuple(
        self._global_batch(iteration * int(starts[-1]) + int(start), size, sharding)
        for start, size in zip(starts, batch_sizes, strict=False)
      )

    with ThreadPoolExecutor(1, thread_name_prefix="loader") as thread:
      iteration = first_iteration
      pending = deque(thread.submit(make, iteration + ahead) for ahead in range(PREFETCH))
      try:
        while True:
          batches = pending.popleft().result()
          pending.append(thread.submit(make, iteration + PREFETCH))
          iteration += 1
          yield batches
      finally:
        thread.shutdown(cancel_futures=True)

  def _global_batch(self, start: int, size: int, sharding: NamedSharding) -> dict[str, jax.Array]:
    local = size // jax.process_count()
    examples = self.examples(start + jax.process_index() * local, local)
    return {
      name: jax.make_array_from_process_local_data(sharding, values, (size, *values.shape[1:]))
      for name, values in examples.items()
    }
