"""Opens what users give to be compared: image files, arrays of images, and reference statistics."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from absl import logging
from etils import epath

from r3gan_jax.data.files import ImageFiles
from r3gan_jax.data.images import Decoder, to_array
from r3gan_jax.data.source import digest
from r3gan_jax.data.survey import describe, survey
from r3gan_jax.errors import UserError
from r3gan_jax.metrics.evaluation import OF_MOMENTS
from r3gan_jax.metrics.feature_extractor import ImageSet
from r3gan_jax.metrics.reference import Reference, has_statistics, read_npz, read_reference
from r3gan_jax.storage import as_path

_IMAGE_KEYS = ("images", "arr_0")
"""The arrays of images in an .npz: of `cli.sample`, and of ADM and those who followed it."""

_BY_STATISTICS = {*OF_MOMENTS, "inception_score"}
"""The metrics that need no real images beside reference statistics."""


def open_real(path: epath.PathLike, metrics: Sequence[str]) -> ImageSet | Reference:
  """Opens images as `open_images` does, or an .npz of reference statistics; one with both is read as `metrics` need.

  Raises:
    UserError: see `open_images`; or there are only statistics, and a metric needs images.
  """
  path = as_path(path)
  if path.suffix.lower() != ".npz":
    return open_images("real", path)
  arrays = read_npz(path)
  others = [metric for metric in metrics if metric not in _BY_STATISTICS]
  if not has_statistics(arrays) or (others and any(key in arrays for key in _IMAGE_KEYS)):
    return _of_arrays("real", path, arrays)
  if others:
    raise UserError(
      f"{path} has mu and sigma, which only FID and FD_DINOv2 compare with: for {others[0]} give --real images"
    )
  logging.info("real: the statistics mu and sigma in %s", path)
  return read_reference(str(path), arrays)


def open_images(name: str, path: epath.PathLike) -> ImageSet:
  """Opens all images of a directory, zip or .npz, as RGB, of one size; `name` is that of the set in messages.

  Raises:
    UserError: there are no images, they differ in size, or one cannot be read.
  """
  path = as_path(path)
  if path.suffix.lower() == ".npz":
    return _of_arrays(name, path, read_npz(path))
  files = ImageFiles(path)
  decoder = Decoder(channels=3)
  found = survey(files)
  if found.corrupt:
    raise found.corrupt[0]
  logging.info("%s: %s", name, describe(files, found, "classes are not looked at", decoder))
  width, height = size = found.headers[0].size
  threads = ThreadPoolExecutor(thread_name_prefix=name)

  def read(index: int) -> np.ndarray:
    image = decoder(files.read(index), files.title(index))
    if image.size != size:
      raise UserError(
        f"{files.title(index)} is {'x'.join(map(str, image.size))}, but the first one is {'x'.join(map(str, size))}: "
        "bring all to one size"
      )
    return to_array(image)

  def images(indices: np.ndarray) -> np.ndarray:
    return np.stack(list(threads.map(read, indices.tolist())))

  return ImageSet(name, len(files), (height, width, 3), images, lambda: f"{files.digest()} {decoder}")


def _of_arrays(name: str, path: epath.Path, arrays: Mapping[str, np.ndarray]) -> ImageSet:
  key = next((key for key in _IMAGE_KEYS if key in arrays), None)
  if key is None:
    if has_statistics(arrays):
      raise UserError(f"{path} has statistics instead of images: give it as --real, and images as --fake")
    raise UserError(
      f"{path} has the arrays {sorted(arrays)}: give one with images, uint8 [n, H, W, C], or for --real and FID one "
      "with mu and sigma"
    )
  images = arrays[key]
  if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3) or not images.size:
    raise UserError(
      f"{path}: {key} is {images.dtype} {list(images.shape)}: images are uint8 [n, H, W, C] with 1 or 3 channels"
    )
  count, *size, _ = images.shape
  logging.info("%s: %s images of %s in %s", name, f"{count:,}", "x".join(map(str, size[::-1])), path)

  def as_rgb(indices: np.ndarray) -> np.ndarray:
    return np.broadcast_to(images[indices], (len(indices), *size, 3))

  return ImageSet(name, count, (*size, 3), as_rgb, lambda: digest(images))
