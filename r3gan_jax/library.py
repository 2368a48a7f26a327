"""Trained GANs for other people's programs: `r3gan_jax.load` opens one, which draws images from seeds."""

from collections.abc import Iterable
from functools import cache

import jax
import numpy as np
from etils import epath

from r3gan_jax import factory, published, runs
from r3gan_jax.data.images import to_straight_alpha
from r3gan_jax.errors import UserError
from r3gan_jax.sampling import Sampler
from r3gan_jax.training.mesh import make_mesh


def load(path: epath.PathLike, checkpoint: str | int = "") -> "TrainedGan":
  """Opens a trained GAN, and changes nothing in its directory.

  Args:
    path: the work directory of a run, such as runs/cifar10, a folder that `r3gan publish` wrote, or one on the Hugging
      Face Hub, hf://OWNER/NAME or hf://OWNER/NAME@REVISION, which needs huggingface_hub.
    checkpoint: of a run, its images seen, or "best"; default: the newest.

  Raises:
    UserError: there is no run, no such checkpoint, or none that can be read.
  """
  if published.is_published(path):
    if checkpoint:
      raise UserError(f"checkpoint = {checkpoint!r}: {path} has one checkpoint only: leave it out")
    return TrainedGan(runs.drawing_images(published.open_published(path)))
  return TrainedGan(runs.open_run(path, str(checkpoint)))


class TrainedGan:
  """The averaged networks of a run.

  Attributes:
    config: the configuration, a ConfigDict, that it was trained with.
    algorithm: its networks and losses; `algorithm.generate(params, carry, noise, labels)` is differentiable.
    params: network -> its averaged parameters, a tree of float32 arrays.
    carry: the other state of the networks, e.g. StyleGAN2's mean w; {} of R3GAN.
    images_seen: how many images it was trained on.
  """

  def __init__(self, run: runs.TrainedRun):
    self.config = run.config
    self.algorithm = run.algorithm
    self.params = run.params
    self.carry = run.carry
    self.images_seen = run.images_seen
    self._title = run.title
    self._sampler = cache(self._build_sampler)  # compiled once for its settings

  @property
  def num_classes(self) -> int:
    """The number of classes; 0: the GAN is unconditional."""
    return self.algorithm.num_classes

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """(H, W, C) of an image."""
    return self.algorithm.image_shape

  def sample(
    self,
    seeds: Iterable[int],
    label: int | Iterable[int] | None = None,
    truncation: float = 1.0,
    batch_size: int = 64,
  ) -> np.ndarray:
    """Draws an image from each seed: the same image as `r3gan sample` draws from it.

    Args:
      seeds: n integers in [0, 2^32).
      label: the class of all images, or n classes; default: each seed also draws its class, if there are any.
      truncation: variety of the images: from 1, as trained, to 0, all alike.
      batch_size: images that a device computes at a time, always as many: for a few images a smaller one is faster.
        The last bits of an image depend on it; the command has 64.

    Returns:
      uint8 [n, H, W, C].

    Raises:
      UserError: an argument is out of range, or the images are not finite.
    """
    chosen = _integers("seeds", seeds, 2**32)
    if not 0 <= truncation <= 1:
      raise UserError(f"truncation = {truncation}: choose from 0 to 1")
    if batch_size < 1:
      raise UserError(f"batch_size = {batch_size} must be positive")
    images = self._sampler(truncation, batch_size)(self.params, self.carry, chosen, self._labels(label, len(chosen)))
    return to_straight_alpha(images)

  def _labels(self, label: int | Iterable[int] | None, count: int) -> np.ndarray | None:
    """Returns int64 [count], or None if none are given."""
    if label is None:
      return None
    if not self.num_classes:
      raise UserError("label: this GAN has no classes: leave it out")
    labels = _integers("label", label if np.iterable(label) else [label] * count, self.num_classes)
    if len(labels) != count:
      raise UserError(f"label: {len(labels)} classes for {count} seeds: give one for all, or one for each")
    return labels

  def _build_sampler(self, truncation: float, batch_size: int) -> Sampler:
    mesh = make_mesh(jax.local_devices())
    quantised_in = factory.quantised_in(self.config, self.algorithm)
    return Sampler(self.algorithm, mesh, batch_size, truncation, quantised_in, self._title)


def _integers(name: str, values: Iterable[int], limit: int) -> np.ndarray:
  """Returns integers in [0, limit) as int64 [n].

  Raises:
    UserError: the argument `name` is something else.
  """
  array = np.array(list(values) if np.iterable(values) else values)
  if array.size and (array.ndim != 1 or array.dtype.kind not in "iu"):
    raise UserError(f"{name}: give integers, such as {name}=[0, 1, 2]")
  if array.size and not 0 <= array.min() <= array.max() < limit:
    raise UserError(f"{name}: {array.min()} to {array.max()} are given: choose from 0 to {limit - 1}")
  return array.astype(np.int64)
