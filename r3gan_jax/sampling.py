"""Images from a trained generator: one seed, one image, whatever the batch or the devices."""

from collections.abc import Callable
from io import BytesIO
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from PIL import Image

from r3gan_jax.algorithms.base import DATA_AXIS, Algorithm
from r3gan_jax.ops.images import to_uint8

SampleFunction = Callable[[np.ndarray, np.ndarray | None], np.ndarray]
"""seeds int [n], labels int [n] or None -> uint8 [n, H, W, C]."""


class Sampler:
  """Draws images from `algorithm` on all devices of `mesh`.

  Every device always computes `batch_per_device` images (the last batch is padded), so that an image does not
  depend, to the bit, on how many were asked for.
  """

  def __init__(self, algorithm: Algorithm, mesh: Mesh, batch_per_device: int = 64):
    self._batch = batch_per_device * mesh.size
    self._image_shape = algorithm.image_shape
    self._num_classes = algorithm.num_classes

    def sample(params: Any, carry: Any, seeds: jax.Array, labels: jax.Array | None) -> jax.Array:
      noise = algorithm.noise(jax.vmap(jax.random.key)(seeds))
      return to_uint8(algorithm.generate(params, carry, noise, labels))

    sharded = P(DATA_AXIS)
    self._sample = jax.jit(jax.shard_map(sample, mesh=mesh, in_specs=(P(), P(), sharded, sharded), out_specs=sharded))

  def __call__(self, params: Any, carry: Any, seeds: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
    """seeds int [n], labels int [n] -> uint8 [n, H, W, C]; where labels are needed but None, seeds decide them."""
    if self._num_classes and labels is None:
      labels = labels_of_seeds(seeds, self._num_classes)
    images = np.empty((len(seeds), *self._image_shape), np.uint8)
    for start in range(0, len(seeds), self._batch):
      part = slice(start, start + self._batch)
      count = len(seeds[part])
      pad = (0, self._batch - count)
      batch_labels = None if labels is None else np.pad(labels[part], pad).astype(np.int32)
      batch = self._sample(params, carry, np.pad(seeds[part], pad).astype(np.uint32), batch_labels)
      images[part] = np.asarray(batch)[:count]
    return images


def labels_of_seeds(seeds: np.ndarray, num_classes: int) -> np.ndarray:
  """int32 [n]: one class drawn uniformly from each seed."""
  return np.array([np.random.default_rng(seed).integers(num_classes) for seed in seeds.tolist()], np.int32)


def image_grid(images: np.ndarray, columns: int) -> np.ndarray:
  """uint8 [n, H, W, C] -> [rows * H, columns * W, C], row by row; a last row that is not full ends in black."""
  rows = -(-len(images) // columns)
  height, width, channels = images.shape[1:]
  images = np.concatenate([images, np.zeros((rows * columns - len(images), height, width, channels), np.uint8)])
  return images.reshape(rows, columns, height, width, channels).swapaxes(1, 2).reshape(rows * height, -1, channels)


def beside_its_channels(images: np.ndarray) -> np.ndarray:
  """uint8 [n, H, W, 3] -> [n, H, 4 W, 3]: each image, then its red, green and blue in grey; for stacked digits."""
  channels = [images[..., c : c + 1].repeat(3, axis=-1) for c in range(3)]
  return np.concatenate([images, *channels], axis=2)


def save_png(path: epath.PathLike, image: np.ndarray, scale: int = 1) -> None:
  """Writes uint8 [H, W, C], C of 1 to 4 (grey, grey + alpha, RGB, RGBA), each pixel as `scale` x `scale`."""
  image = image.repeat(scale, axis=0).repeat(scale, axis=1)
  buffer = BytesIO()
  Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, format="PNG")
  epath.Path(path).write_bytes(buffer.getvalue())
