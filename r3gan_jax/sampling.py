"""Draws images from a trained generator: a seed always gives the same image, whatever the batch and the devices.

A seed gives noise, and noise and a class give an image; interpolation is between noise vectors.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from io import BytesIO
from itertools import chain
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from PIL import Image

from r3gan_jax.algorithms.base import DATA_AXIS, Algorithm
from r3gan_jax.algorithms.capabilities import HasBoundedNoise
from r3gan_jax.data.images import to_straight_alpha
from r3gan_jax.errors import UserError
from r3gan_jax.ops.images import to_uint8
from r3gan_jax.storage import write_whole

FRAME_RATE = 25
"""Frames per second of videos; GIFs count in hundredths of a second."""


class Sampler:
  """Draws images from `algorithm` on all devices of `mesh`.

  Every device always computes `batch_per_device` images (the last batch is padded), so that no bit of an image depends
  on how many are drawn.

  Args:
    truncation: see `Algorithm.generate`.
    quantised_in: see `ops.images.to_uint8`.
    title: names the networks in the error that their images are not finite; None: this is logged instead, and NaN is
      drawn black.
  """

  def __init__(
    self,
    algorithm: Algorithm,
    mesh: Mesh,
    batch_per_device: int = 64,
    truncation: float = 1.0,
    quantised_in: DTypeLike = jnp.float32,
    title: str | None = "the generator",
  ):
    self.batch = batch_per_device * mesh.size
    self._num_classes = algorithm.num_classes
    self._title = title

    def draw(seeds: jax.Array) -> jax.Array:
      return algorithm.noise(jax.vmap(jax.random.key)(seeds))

    def generate(params: Any, carry: Any, noise: jax.Array, labels: jax.Array | None) -> tuple[jax.Array, jax.Array]:
      images = algorithm.generate(params, carry, noise, labels, truncation)
      return to_uint8(images, quantised_in), jnp.isfinite(images).all(axis=(1, 2, 3))

    split = P(DATA_AXIS)
    self._draw = jax.jit(jax.shard_map(draw, mesh=mesh, in_specs=split, out_specs=split))
    self._generate = jax.jit(jax.shard_map(generate, mesh=mesh, in_specs=(P(), P(), split, split), out_specs=split))

  def __call__(self, params: Any, carry: Any, seeds: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
    """Draws uint8 [n, H, W, C] from seeds int [n] and labels int [n]; by default each seed also gives its label.

    Raises:
      UserError: images are not finite.
    """
    if self._num_classes and labels is None:
      labels = labels_of_seeds(seeds, self._num_classes)
    rows = (seeds,) if labels is None else (seeds, labels)
    return np.concatenate(list(self.drawn(params, carry, self._sliced(*rows))))

  def noise(self, seeds: np.ndarray) -> np.ndarray:
    """Returns the noise of seeds, int [n] in [0, 2^32): float32 [n, noise_dim]."""
    batches = self._batches(lambda seeds: (self._draw(seeds.astype(np.uint32)),), self._sliced(seeds))
    return np.concatenate([noise for (noise,) in batches])

  def drawn(self, params: Any, carry: Any, rows: Iterable[tuple[np.ndarray, ...]]) -> Iterator[np.ndarray]:
    """Yields the images, uint8 [n, H, W, C], of each (seeds int [n][, labels int [n]]), n <= `batch`, in order.

    Errors are those of a call. The devices compute the next batch while the caller uses one.
    """

    def generate(seeds: np.ndarray, labels: np.ndarray | None = None) -> tuple[jax.Array, ...]:
      return self._generate(params, carry, self._draw(seeds.astype(np.uint32)), _int32(labels))

    return self._images(generate, rows)

  def batches(self, params: Any, carry: Any, noise: np.ndarray, labels: np.ndarray | None) -> Iterator[np.ndarray]:
    """Yields uint8 [., H, W, C] in order, n images in all; noise float32 [n, noise_dim], labels int [n] or None.

    As `drawn`.
    """

    def generate(noise: np.ndarray, labels: np.ndarray | None = None) -> tuple[jax.Array, ...]:
      return self._generate(params, carry, noise, _int32(labels))

    return self._images(generate, self._sliced(*((noise,) if labels is None else (noise, labels))))

  def _images(
    self, generate: Callable[..., tuple[jax.Array, ...]], rows: Iterable[tuple[np.ndarray, ...]]
  ) -> Iterator[np.ndarray]:
    for images, finite in self._batches(generate, rows):
      if not finite.all() and self._title:
        raise UserError(f"{self._title} draws images that are not finite (NaN or infinity): choose another checkpoint")
      if not finite.all():
        logging.warning("%d of %d samples are not finite (NaN or infinity)", np.sum(~finite), len(finite))
      yield images

  def _sliced(self, *arrays: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """Yields rows of the arrays, a batch at a time."""
    # At least one batch, so that zero rows give an empty result of the right shape.
    for start in range(0, max(len(arrays[0]), 1), self.batch):
      yield tuple(array[start : start + self.batch] for array in arrays)

  def _batches(
    self, function: Callable[..., tuple[jax.Array, ...]], rows: Iterable[tuple[np.ndarray, ...]]
  ) -> Iterator[tuple[np.ndarray, ...]]:
    """Yields the results of `function` for each of `rows`, which are padded to a batch; computes one ahead."""
    ahead: deque[tuple[tuple[jax.Array, ...], int]] = deque()

    def fetched() -> tuple[np.ndarray, ...]:
      results, count = ahead.popleft()
      return tuple(np.asarray(result)[:count] for result in results)

    for arrays in rows:
      count = len(arrays[0])
      padding = self.batch - count
      results = function(*(np.pad(array, ((0, padding), *[(0, 0)] * (array.ndim - 1))) for array in arrays))
      for result in results:
        result.copy_to_host_async()
      ahead.append((results, count))
      if len(ahead) > 1:
        yield fetched()
    while ahead:
      yield fetched()


def _int32(labels: np.ndarray | None) -> np.ndarray | None:
  return None if labels is None else labels.astype(np.int32)


def interpolation(noise: np.ndarray, steps: int, straight: bool = False) -> np.ndarray:
  """Interpolates from each row to the next, and from the last to the first, in `steps` equal steps: [n * steps, d].

  It is spherical (Shoemake 1985; White 2016, arXiv 1609.04468), because Gaussian vectors lie near a sphere and straight
  lines between them do not. The rows themselves are included unchanged.

  Args:
    straight: interpolate linearly instead, as noise that fills a box needs (`algorithms.capabilities.HasBoundedNoise`).
  """
  between, following = (lerp if straight else slerp), np.roll(noise, -1, axis=0)
  return np.concatenate([between(*pair, np.arange(steps) / steps) for pair in zip(noise, following, strict=True)])


def noise_path(algorithm: Algorithm, noise: np.ndarray, steps: int) -> np.ndarray:
  """Interpolates noise [n, noise_dim] as suits its distribution; otherwise as `interpolation`."""
  return interpolation(noise, steps, straight=isinstance(algorithm, HasBoundedNoise))


def lerp(start: np.ndarray, end: np.ndarray, t: np.ndarray) -> np.ndarray:
  """Returns points [n, d] on the line from `start` [d] to `end` [d], at fractions t [n] of its length."""
  a, b, t = start.astype(np.float64)[None], end.astype(np.float64)[None], t[:, None]
  return ((1 - t) * a + t * b).astype(start.dtype)


def slerp(start: np.ndarray, end: np.ndarray, t: np.ndarray) -> np.ndarray:
  """Returns points [n, d] on the arc from `start` [d] to `end` [d], at fractions t [n] of the angle."""
  a, b = start.astype(np.float64), end.astype(np.float64)
  cosine = a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
  angle = np.arccos(np.clip(cosine, -1, 1))
  t = t[:, None]
  if np.sin(angle) < 1e-6:  # (anti)parallel vectors have no unique arc
    mixed = (1 - t) * a + t * b
  else:
    mixed = (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)
  return mixed.astype(start.dtype)


def labels_of_seeds(seeds: np.ndarray, num_classes: int) -> np.ndarray:
  """Draws one class from each seed, uniformly: int32 [n]."""
  return np.array([np.random.default_rng(seed).integers(num_classes) for seed in seeds.tolist()], np.int32)


GUTTER = 128
"""The grey between images in a grid, which sets off black as well as white."""


def image_grid(images: np.ndarray, columns: int) -> np.ndarray:
  """Arranges uint8 [n, H, W, C] as a grid with gutters between the images; the last row is filled up with their grey.

  Gutters have an even width, so that a grid of even images has even sides, as videos need. RGBA images, premultiplied,
  are put over a checkerboard.
  """
  images = over_checkerboard(images)
  rows = -(-len(images) // columns)
  height, width, channels = images.shape[1:]
  gutter = 2 * max(1, height // 64)
  cells = np.full((rows * columns, height + gutter, width + gutter, channels), GUTTER, np.uint8)
  cells[: len(images), :height, :width] = images
  grid = cells.reshape(rows, columns, *cells.shape[1:]).swapaxes(1, 2)
  return grid.reshape(rows * cells.shape[1], -1, channels)[:-gutter, :-gutter]


def over_checkerboard(images: np.ndarray) -> np.ndarray:
  """Puts uint8 [n, H, W, 4], premultiplied, over light and dark grey squares: [n, H, W, 3]; keeps other images."""
  height, width, channels = images.shape[1:]
  if channels != 4:
    return images
  side = max(1, height // 8)
  rows, columns = (np.arange(length) // side for length in (height, width))
  squares = np.where((rows[:, None] + columns) % 2, 204, 153).astype(np.uint16)[..., None]
  colours, alpha = images[..., :3], images[..., 3:]
  return (np.minimum(colours, alpha) + (squares * (255 - alpha) + 127) // 255).astype(np.uint8)


def beside_its_channels(images: np.ndarray) -> np.ndarray:
  """Puts the red, green and blue of each image beside it, in grey, a black column between: -> uint8 [n, H, 4 W + 3, 3].

  Args:
    images: uint8 [n, H, W, 3].
  """
  parts = [images, *(images[..., c : c + 1].repeat(3, axis=-1) for c in range(3))]
  return np.concatenate([np.pad(part, ((0, 0), (0, 0), (0, 1), (0, 0))) for part in parts], axis=2)[:, :, :-1]


def save_png(path: epath.PathLike, image: np.ndarray, scale: int = 1) -> None:
  """Writes uint8 [H, W, C] (grey, RGB or RGBA, premultiplied), upscaled by an integer `scale`."""
  write_whole(path, encoded_png(image, scale))


def encoded_png(image: np.ndarray, scale: int = 1) -> bytes:
  """Returns the bytes that `save_png` writes."""
  buffer = BytesIO()
  # Level 1 takes half the time of the default, for a few per cent more bytes.
  _picture(image, scale).save(buffer, format="PNG", compress_level=1)
  return buffer.getvalue()


def save_pngs(directory: epath.Path, names: Iterable[str], batches: Iterable[np.ndarray]) -> None:
  """Writes the images of uint8 [., H, W, C] `batches` with the next of `names`, in threads.

  At most two batches wait to be written.
  """
  upcoming = iter(names)
  waiting: deque[list[Future[None]]] = deque()

  def finish_one() -> None:
    for write in waiting.popleft():
      write.result()

  with ThreadPoolExecutor() as threads:
    for batch in batches:
      waiting.append([threads.submit(save_png, directory / next(upcoming), image) for image in batch])
      if len(waiting) > 1:
        finish_one()
    while waiting:
      finish_one()


def save_video(path: epath.PathLike, frames: Iterable[np.ndarray], scale: int = 1) -> None:
  """Writes uint8 [H, W, C] `frames` as an endless .gif, with 256 colours per frame, or an .mp4 (H.264).

  Args:
    path: the suffix decides; .mp4 needs PyAV and even sides.
    frames: at least one, at `FRAME_RATE`.
    scale: integer upscaling.
  """
  pictures = (_picture(frame, scale).convert("RGB") for frame in frames)
  path, buffer = epath.Path(path), BytesIO()
  first = next(pictures)
  if path.suffix.lower() == ".gif":
    duration_ms = 1000 // FRAME_RATE
    first.save(buffer, format="GIF", save_all=True, append_images=pictures, duration=duration_ms, loop=0)
  else:
    import av  # optional: setup.py's extra "video"

    with av.open(buffer, "w", format="mp4") as container:
      stream = container.add_stream("libx264", rate=FRAME_RATE, options={"crf": "14"})  # hardly any visible loss
      stream.width, stream.height = first.size
      stream.pix_fmt = "yuv420p"  # expected by players
      for picture in chain([first], pictures):
        container.mux(stream.encode(av.VideoFrame.from_image(picture)))
      container.mux(stream.encode())
  write_whole(path, buffer.getvalue())


def _picture(image: np.ndarray, scale: int) -> Image.Image:
  image = to_straight_alpha(image).repeat(scale, axis=0).repeat(scale, axis=1)
  return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
