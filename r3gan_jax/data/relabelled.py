"""Noisy or missing labels for training; evaluation reads the clean source.

They are drawn once for the whole data set with a fixed seed, so they are the same in all runs, epochs and processes,
and for an image and its mirror image.
"""

from collections.abc import Sequence

import numpy as np

from r3gan_jax.data.source import Examples, Source
from r3gan_jax.errors import UserError

_SEED = 0
_BATCH = 256


def transition_matrix(
  num_classes: int, noise: float, pairs: Sequence[Sequence[int]] = (), section: str = "data"
) -> np.ndarray:
  """Returns T[i, j] = p(noisy label j | clean label i), float64 [num_classes, num_classes].

  Args:
    num_classes: the number of classes.
    noise: the fraction of labels that are redrawn.
    pairs: (from, to): redrawn labels of class `from` become `to`, and other classes stay clean. Without pairs, labels
      are redrawn uniformly from all classes.
    section: of the configuration, for errors.

  Raises:
    UserError: `noise` is not a probability, a pair is not of two classes, or a class is `from` twice.
  """
  if not 0 <= noise <= 1:
    raise UserError(f"config.{section}.label_noise = {noise} must lie between 0 and 1")
  for pair in pairs:
    if not _is_pair(pair, num_classes):
      raise UserError(
        f"config.{section}.label_noise_pairs: {pair!r} must be (from, to), two different classes from 0 to "
        f"{num_classes - 1}"
      )
  if len({clean for clean, _ in pairs}) < len(pairs):
    raise UserError(
      f"config.{section}.label_noise_pairs = {pairs!r}: give at most one pair (from, to) for each class `from`"
    )
  identity = np.eye(num_classes)
  redrawn = identity.copy() if pairs else np.full_like(identity, 1 / num_classes)
  for clean, noisy in pairs:
    redrawn[clean] = identity[noisy]
  return (1 - noise) * identity + noise * redrawn


class RelabelledSource:
  """`source` with noisy labels, int32; -1 for images without one.

  Args:
    source: has the clean labels.
    num_classes, noise, pairs: see `transition_matrix`.
    labelled_images: how many images keep a label, balanced over the clean classes up to one image; 0: all. To choose
      them, images are read until each class has enough.
    labelled_share: labelled images are repeated, behind all others, until they are this share of the data; 0: never.

  Raises:
    UserError: there are no classes, or too few images of one; see also `transition_matrix`.
  """

  def __init__(
    self,
    source: Source,
    num_classes: int,
    noise: float,
    pairs: Sequence[Sequence[int]],
    labelled_images: int,
    labelled_share: float = 0.0,
  ):
    if not num_classes:
      raise UserError(
        "config.data.num_classes = 0: config.data.labelled_images, label_noise and label_noise_pairs need labels: set "
        "num_classes, or leave these out"
      )
    self._source = source
    self.classes = source.classes
    self._cumulative = transition_matrix(num_classes, noise, pairs).cumsum(axis=1)
    for_noise, for_choice = np.random.default_rng(_SEED).spawn(2)
    self._uniform = for_noise.random(len(source))
    self._labelled = np.ones(len(source), np.bool_)
    if labelled_images:
      self._labelled = _choose_labelled(source, num_classes, labelled_images, for_choice.permutation(len(source)))
    labelled = np.flatnonzero(self._labelled)
    wanted = round(labelled_share / (1 - labelled_share) * (len(source) - len(labelled)))
    repeated = np.resize(labelled, max(0, wanted - len(labelled)))
    self._images = np.concatenate([np.arange(len(source)), repeated])

  def __len__(self) -> int:
    return len(self._images)

  def __getitem__(self, indices: np.ndarray) -> Examples:
    indices = self._images[indices]
    examples = self._source[indices]
    # Inverse CDF; the last class takes the rest, as its cumulative probability is 1 only up to rounding.
    exceeds = self._uniform[indices, None] >= self._cumulative[examples["label"], :-1]
    noisy = exceeds.sum(axis=1, dtype=np.int32)
    return examples | {"label": np.where(self._labelled[indices], noisy, np.int32(-1))}

  def fingerprint(self) -> str:
    return self._source.fingerprint()


def _is_pair(pair: Sequence[int], num_classes: int) -> bool:
  return (
    isinstance(pair, list | tuple)
    and len(pair) == 2
    and all(type(label) is int and 0 <= label < num_classes for label in pair)
    and pair[0] != pair[1]
  )


def _choose_labelled(source: Source, num_classes: int, count: int, order: np.ndarray) -> np.ndarray:
  """Chooses `count` images, the first of each class in `order`, int64 [n]; returns a mask bool [n]."""
  setting = f"config.data.labelled_images = {count}"
  if not num_classes <= count <= len(source):
    raise UserError(
      f"{setting} must lie between config.data.num_classes = {num_classes} and the number of images, {len(source)}, or "
      "be 0 for all"
    )
  quota = count // num_classes + (np.arange(num_classes) < count % num_classes)
  missing = quota.copy()
  labelled = np.zeros(len(source), np.bool_)
  for start in range(0, len(source), _BATCH):
    indices = order[start : start + _BATCH]
    labels = source[indices]["label"]
    for label in range(num_classes):
      chosen = indices[labels == label][: missing[label]]
      labelled[chosen] = True
      missing[label] -= len(chosen)
    if not missing.any():
      return labelled
  label = int(missing.argmax())
  there = quota[label] - missing[label]
  raise UserError(f"{setting} needs {quota[label]} images of class {label}, but there are only {there}: lower it")
