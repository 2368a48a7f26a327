"""Loads batches onto the devices: shuffled, resumable, decoded in threads, prefetched.

The n-th sample of a run depends only on n, the seed and the number of rollbacks: each epoch is a permutation drawn
from (seed, epoch, rollbacks). So a resumed run sees the images that an uninterrupted one sees, on any number of
processes and devices. A process reads only the rows of a global batch that its own devices hold.
"""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial

import jax
import numpy as np
from jax.sharding import NamedSharding

from r3gan_jax.data.latents import Numbers, draw
from r3gan_jax.data.source import Examples, Source

PREFETCH = 2
"""Iterations whose batches are prepared ahead."""

SMALLEST_READ = 32
"""The fewest images that a thread reads in one call."""

_OF_LATENTS = 1
"""Sets the seeds of latents' noise apart from those of permutations."""


class Loader:
  """Makes batches of `source` in an order drawn from `seed`; with `x_flip`, an epoch also has every mirror image.

  `numbers`: of a source of latents, from whose 'image' one is drawn for each sample, by a generator of its own.
  """

  def __init__(self, source: Source, seed: int, x_flip: bool, numbers: Numbers | None = None):
    self.source = source
    self._seed = seed
    self._numbers = numbers
    self._x_flip = x_flip
    self._epoch_size = len(source) * (2 if x_flip else 1)
    self._permutation = lru_cache(maxsize=2)(self._make_permutation)
    self._threads = os.cpu_count() or 1
    self._readers = ThreadPoolExecutor(self._threads, thread_name_prefix="reader")

  def examples(self, samples: np.ndarray, order: int = 0) -> Examples:
    """Returns the examples at positions `samples`, int64 [n], of the endless shuffled sequence that `order` selects."""
    count = max(1, min(self._threads, len(samples) // SMALLEST_READ))
    parts = [np.array_split(values, count) for values in (samples, self.indices(samples, order))]
    read = list(self._readers.map(partial(self._read, order=order), *parts))
    return {name: np.concatenate([examples[name] for examples in read]) for name in read[0]}

  def indices(self, samples: np.ndarray, order: int = 0) -> np.ndarray:
    """Returns the index in the data set of each position, int64 [n]; mirror images follow the originals."""
    epochs, offsets = np.divmod(samples, self._epoch_size)
    indices = np.empty_like(samples)
    for epoch in np.unique(epochs).tolist():
      indices[epochs == epoch] = self._permutation(epoch, order)[offsets[epochs == epoch]]
    return indices

  def _make_permutation(self, epoch: int, order: int) -> np.ndarray:
    return np.random.default_rng((self._seed, epoch, order)).permutation(self._epoch_size)

  def _read(self, samples: np.ndarray, indices: np.ndarray, order: int) -> Examples:
    flipped = indices >= len(self.source)
    examples = self.source[indices % len(self.source)]
    if self._numbers:
      moments = examples["image"][np.arange(len(samples)), flipped.astype(int)]
      seeds = [(self._seed, order, sample, _OF_LATENTS) for sample in samples.tolist()]
      return examples | {"image": draw(moments, self._numbers, seeds)}
    if self._x_flip:
      examples["image"][flipped] = examples["image"][flipped, :, ::-1]
    return examples

  def iterate(
    self, batch_sizes: Sequence[int], first_iteration: int, sharding: NamedSharding, order: int = 0
  ) -> Iterator[tuple[dict[str, jax.Array], ...]]:
    """Yields the global batches of each iteration, one for each of `batch_sizes`, from `first_iteration` and forever.

    A thread prepares batches a few iterations ahead and copies them to the devices.
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
