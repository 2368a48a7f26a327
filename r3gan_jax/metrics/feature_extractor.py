"""Computes the features of images on all devices."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from r3gan_jax.errors import UserError
from r3gan_jax.metrics.features import FeatureNetwork
from r3gan_jax.progress_bar import progress_bar


@dataclass(frozen=True)
class ImageSet:
  """A set of images, accessed by index.

  Attributes:
    name: for messages, e.g. 'real'.
    size: the number of images.
    shape: (H, W, C) of each.
    images: indices int64 [n] in 0..size - 1 -> uint8 [n, H, W, C]; an index always gives the same image, on every
      process.
    fingerprint: identifies the images by their content, and may have to read them; None: their statistics are not
      cached.
    labels: indices int64 [n] -> int [n], the classes of the images, or those that they were asked to have; None: there
      are none.
  """

  name: str
  size: int
  shape: tuple[int, int, int]
  images: Callable[[np.ndarray], np.ndarray]
  fingerprint: Callable[[], str] | None = None
  labels: Callable[[np.ndarray], np.ndarray] | None = None

  def thinned(self, size: int) -> "ImageSet":
    """Returns `size` images of the set, evenly spread."""
    return self.chosen(spread(self.size, size))

  def drawn(self, size: int, seed: int) -> "ImageSet":
    """Returns `size` random images of the set, each at most once, in their order.

    Raises:
      UserError: there are fewer.
    """
    if size > self.size:
      raise UserError(f"{self.name} has {self.size:,} images, fewer than {size:,}: take fewer of them, or all")
    return self.chosen(np.sort(np.random.default_rng(seed).choice(self.size, size, replace=False)))

  def chosen(self, chosen: np.ndarray) -> "ImageSet":
    """Returns the images of these indices, int64 [n]."""
    labels = self.labels
    return ImageSet(
      self.name,
      len(chosen),
      self.shape,
      lambda indices: self.images(chosen[indices]),
      labels=labels and (lambda indices: labels(chosen[indices])),
    )


def spread(count: int, size: int) -> np.ndarray:
  """Returns `size` evenly spread indices below `count`, int64 [size]."""
  return np.linspace(0, count - 1, size).astype(np.int64)


class FeatureExtractor:
  """Runs `network` on all devices of `mesh` (one axis), in batches of one size; the last batch is padded.

  Each process reads only the images of its own devices, and gets the features of all.
  """

  def __init__(self, network: FeatureNetwork, mesh: Mesh, batch_per_device: int):
    rows = P(*mesh.axis_names)
    apply = jax.shard_map(network.apply, mesh=mesh, in_specs=(P(), rows), out_specs=rows)
    self._apply = jax.jit(apply, out_shardings=NamedSharding(mesh, P()))
    self._replicated = NamedSharding(mesh, P())
    self._params = jax.device_put(network.params, self._replicated)
    self._sharding = NamedSharding(mesh, rows)
    owners = np.array([device.process_index for device in mesh.devices.flat])
    self._is_mine = np.repeat(owners == jax.process_index(), batch_per_device)

  def __call__(self, images: ImageSet, params: Any = None) -> Iterator[dict[str, np.ndarray]]:
    """Yields the network's outputs of each batch, [n, ...] by name, in order.

    Args:
      images: the images.
      params: replace those of the network, whose shapes they have.

    Raises:
      UserError: images are not uint8 or differ in size, or outputs are not finite.
    """
    batch = len(self._is_mine)
    params = self._params if params is None else jax.device_put(params, self._replicated)
    running: tuple[dict[str, jax.Array], int] | None = None
    with progress_bar(total=images.size, title=images.name, quiet=jax.process_index() > 0) as bar:
      for start in range(0, images.size, batch):
        # Padding repeats the last image.
        indices = np.minimum(np.arange(start, start + batch), images.size - 1)[self._is_mine]
        mine = _checked(images.name, images.images(indices), images.shape)
        placed = jax.make_array_from_process_local_data(self._sharding, mine, (batch, *images.shape))
        # The devices compute this batch while the host fetches the one before.
        started = self._apply(params, placed), min(batch, images.size - start)
        if running:
          yield _fetched(images.name, *running)
          bar.update(running[1])
        running = started
      if running:
        yield _fetched(images.name, *running)
        bar.update(running[1])


def _checked(name: str, images: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  if not np.isfinite(images).all():
    raise UserError(f"{name} images have NaN or infinity: leave them out")
  if images.dtype != np.uint8:
    raise UserError(f"{name} images are {images.dtype}: give uint8 in 0..255")
  if images.shape[1:] != shape:
    raise UserError(f"{name} images differ in size, {shape} and {images.shape[1:]}: resize them to one size")
  return images


def _fetched(name: str, outputs: dict[str, jax.Array], count: int) -> dict[str, np.ndarray]:
  fetched = {output: np.asarray(values)[:count] for output, values in outputs.items()}
  for output, values in fetched.items():
    if not np.isfinite(values).all():
      raise UserError(f"{output} of {name} images have NaN or infinity: check the weights of the feature network")
  return fetched
