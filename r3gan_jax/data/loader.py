"""From a source to batches on the devices: shuffled, resumable, decoded in threads, prefetched.

The n-th sample that a run consumes is a function of the seed and n alone: each epoch is a permutation made from
(seed, epoch) and, once the run went back to try another order, the number of that. So a run resumed from its count of
images, on any number of processes or devices, sees what it would have seen. A process reads the rows of a global batch
that its devices hold, and no others.
"""

import os
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

SMALLEST_READ = 32
"""Images that a thread reads at once, at least."""


class Loader:
  """Batches of `source` in the order of `seed`; with `x_flip`, an epoch holds every image and its mirror image."""

  def __init__(self, source: Source, seed: int, x_flip: bool):
    self.source = source
    self._seed = seed
    self._x_flip = x_flip
    self._epoch_size = len(source) * (2 if x_flip else 1)
    self._permutation = lru_cache(maxsize=2)(self._make_permutation)
    self._threads = os.cpu_count() or 1
    self._readers = ThreadPoolExecutor(self._threads, thread_name_prefix="reader")

  def examples(self, samples: np.ndarray, order: int = 0) -> Examples:
    """Those of an endless order, by number, that `samples`, int64 [n], count from 0: 'image' uint8 [n, H, W, C], ..."""
    indices = self.indices(samples, order)
    flipped = indices >= len(self.source)
    examples = self._read(indices % len(self.source))
    if self._x_flip:
      examples["image"][flipped] = examples["image"][flipped, :, ::-1]
    return examples

  def indices(self, samples: np.ndarray, order: int = 0) -> np.ndarray:
    """int64 [n]: the place of each of `samples` in the (doubled) data set."""
    epochs, offsets = np.divmod(samples, self._epoch_size)
    indices = np.empty_like(samples)
    for epoch in np.unique(epochs).tolist():
      indices[epochs == epoch] = self._permutation(epoch, order)[offsets[epochs == epoch]]
    return indices

  def _make_permutation(self, epoch: int, order: int) -> np.ndarray:
    return np.random.default_rng((self._seed, epoch, order)).permutation(self._epoch_size)

  def _read(self, indices: np.ndarray) -> Examples:
    parts = np.array_split(indices, max(1, min(self._threads, len(indices) // SMALLEST_READ)))
    read = list(self._readers.map(self.source.__getitem__, parts))
    return {name: np.concatenate([examples[name] for examples in read]) for name in read[0]}

  def iterate(
    self, batch_sizes: Sequence[int], first_iteration: int, sharding: NamedSharding, order: int = 0
  ) -> Iterator[tuple[dict[str, jax.Array], ...]]:
    """From `first_iteration` on, for ever: one tuple an iteration, of one global batch for each of `batch_sizes`.

    Batches are made on a thread of their own, a few iterations ahead, and copied to the devices there.
    """
    starts = np.cumsum([0, *batch_sizes]).tolist()

    def make(iteration: int) -> tuple[dict[str, jax.Array], ...]:
      return tuple(
        self._global_batch(iteration * starts[-1] + start, size, sharding, order)
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

  def _global_batch(self, start: int, size: int, sharding: NamedSharding, order: int) -> dict[str, jax.Array]:
    shards = sharding.addressable_devices_indices_map((size,))
    rows = [np.arange(size)[index] for index in shards.values()]
    examples = self.examples(start + np.concatenate(rows), order)
    ends = np.cumsum([len(part) for part in rows])[:-1]
    return {
      name: jax.make_array_from_single_device_arrays(
        (size, *values.shape[1:]),
        sharding,
        [jax.device_put(part, device) for part, device in zip(np.split(values, ends), shards, strict=True)],
      )
      for name, values in examples.items()
    }
