"""Editing: moves what a generator draws from along directions that change one thing in the images.

A direction is a vector in one of two spaces: the noise z, or the features that the noise becomes before anything else
happens (`inversion.FineTuned`), which are R3GAN's at 4x4, or StyleGAN's w of every layer. It is added, times a
strength, to the latents of any image: those of a seed, or those that inversion has found.

R3GAN's features at 4x4 are A z + B e, linear in the noise and the embedding e of the class. So a step v in z *is* the
step A v in the features, of every image, and directions that need no labels have an exact form:

    closed form   the right singular vectors of A: the unit steps in z that change the features most, each orthogonal to
                  those before (SeFa: Shen and Zhou 2021, arXiv 2007.06600, equation 7). StyleGAN: of the linear maps
                  from w to the styles of all layers.
    PCA           the principal components of the features of many samples (GANSpace: Harkonen et al. 2020, arXiv
                  2004.02546). Without classes these are, up to sampling, A times the closed form, as the covariance of
                  A z is A A^T. With classes they also go from class to class, which no z does.
    classifier    the normal of the plane that separates the samples of a class from all others, in either space
                  (InterFaceGAN: Shen et al. 2020, arXiv 1907.10786, section 3)

Strength 1 is one standard deviation of the samples along the direction.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import jax
import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict

from r3gan_jax.algorithms.base import Algorithm, Carry, Params
from r3gan_jax.algorithms.capabilities import HasBoundedNoise
from r3gan_jax.errors import UserError
from r3gan_jax.inversion import FineTuned
from r3gan_jax.sampling import Sampler
from r3gan_jax.storage import read_npz, write_npz
from r3gan_jax.training.mesh import make_mesh

DIRECTORY = "directions"
"""Where the directions of a run are, in its work directory: NAME.npz each."""

SPACES = ("noise", "features")

_HELD_OUT = 5
"""One of so many samples is held out to test a plane."""
_FEWEST = 10
"""The fewest samples of a class, and of all others, from which a plane is found."""


@dataclass(frozen=True, eq=False)
class Direction:
  """A direction in which latents can be moved.

  Attributes:
    space: one of `SPACES`.
    vector: float32 [noise_dim], or [offset_dim] of `inversion.FineTuned`.
    facts: what made it, strings and numbers by name.
  """

  space: str
  vector: np.ndarray
  facts: Mapping[str, Any]

  def of_length(self, length: float) -> "Direction":
    """Returns the direction with another Euclidean length."""
    return replace(self, vector=self.vector * np.float32(length / np.linalg.norm(self.vector)))


@dataclass(frozen=True, eq=False)
class Latents:
  """The latents that n images are drawn from.

  Attributes:
    noise: float32 [n, noise_dim].
    offsets: float32 [n, offset_dim], added to the features; [n, 0]: nothing is.
    labels: int32 [n]; None without classes.
  """

  noise: np.ndarray
  offsets: np.ndarray
  labels: np.ndarray | None


class Editor:
  """Draws and moves latents of one trained generator, on all devices of this process.

  Args:
    title: see `sampling.Sampler`.
  """

  def __init__(self, algorithm: Algorithm, params: Params, carry: Carry, title: str = "the generator"):
    self._algorithm, self._networks, self._title = algorithm, (params, carry), title
    self._sampler = Sampler(algorithm, make_mesh(jax.local_devices()), title=title)

  @cached_property
  def _fine_tuned(self) -> FineTuned:
    return FineTuned(self._algorithm, *self._networks)

  @cached_property
  def _fine_tuned_sampler(self) -> Sampler:
    return Sampler(cast(Algorithm, self._fine_tuned), make_mesh(jax.local_devices()), title=self._title)

  @property
  def num_classes(self) -> int:
    """The number of classes; 0 if unconditional."""
    return self._algorithm.num_classes

  @property
  def noise_dim(self) -> int:
    """Length of z."""
    return jax.eval_shape(lambda: self._algorithm.noise(jax.random.split(jax.random.key(0), 1))).shape[1]

  @property
  def feature_shape(self) -> tuple[int, ...]:
    """The shape of the features: [4, 4, width], or [layers, width] of w; raises a UserError without any."""
    return self._fine_tuned.shape

  @property
  def has_styles(self) -> bool:
    """Whether the features are a StyleGAN's w; raises a UserError without any."""
    return len(self.feature_shape) == 2

  def latents(self, seeds: np.ndarray, labels: np.ndarray | None) -> Latents:
    """Returns the latents of seeds int [n] and their classes int32 [n], or None."""
    return Latents(self._sampler.noise(seeds), np.zeros((len(seeds), 0), np.float32), labels)

  def draw(self, latents: Latents) -> np.ndarray:
    """Draws uint8 [n, H, W, C]; without offsets, exactly as `Sampler` draws the noise."""
    rows, sampler = latents.noise, self._sampler
    if latents.offsets.shape[1]:
      rows, sampler = np.concatenate([latents.noise, latents.offsets], axis=1), self._fine_tuned_sampler
    return np.concatenate(list(sampler.batches(*self._networks, rows, latents.labels)))

  def features(self, latents: Latents) -> np.ndarray:
    """Returns the features with their offsets, float32 [n, offset_dim]; raises a UserError without any."""
    features = jax.jit(self._fine_tuned.features)(*self._networks, latents.noise, latents.labels)
    return np.asarray(features) + (latents.offsets if latents.offsets.shape[1] else 0)

  def values(self, latents: Latents, space: str) -> np.ndarray:
    """Returns the latents in one of `SPACES`: float32 [n, noise_dim] or [n, offset_dim]."""
    return latents.noise if space == "noise" else self.features(latents)

  def first_linear_map(self) -> np.ndarray:
    """Returns A^T: from noise to features [noise_dim, offset_dim]; of a StyleGAN, from w to all styles [width, ...]."""
    params, _ = self._networks
    if self.has_styles:
      kernels = flatten_dict(params["generator"]["synthesis"])
      return np.concatenate([kernel for name, kernel in kernels.items() if name[-2:] == ("style", "kernel")], axis=1)
    noise = np.eye(self.noise_dim + 1, self.noise_dim, k=-1, dtype=np.float32)  # 0, then each axis
    labels = np.zeros(len(noise), np.int32) if self.num_classes else None
    origin, *columns = self.features(Latents(noise, np.zeros((len(noise), 0), np.float32), labels))
    return np.stack(columns) - origin

  def moved(self, latents: Latents, direction: Direction, strength: float) -> Latents:
    """Adds `strength` times the direction; noise that fills a box stays in it (`HasBoundedNoise`)."""
    step = np.float32(strength) * direction.vector
    if direction.space == "features":
      there = latents.offsets if latents.offsets.shape[1] else np.zeros((len(latents.noise), 1), np.float32)
      return replace(latents, offsets=there + step)
    noise = latents.noise + step
    if isinstance(self._algorithm, HasBoundedNoise):
      noise = np.clip(noise, *self._algorithm.noise_bounds)
    return replace(latents, noise=noise)

  def only_layers(self, direction: Direction, layers: np.ndarray) -> Direction:
    """Returns a direction in w that moves only these layers, int [.] with 0 the first, of a StyleGAN."""
    chosen = np.isin(np.arange(self.feature_shape[0]), layers).astype(np.float32)[:, None]
    return replace(direction, vector=(direction.vector.reshape(self.feature_shape) * chosen).ravel())

  def random_direction(self, like: Direction, seed: int) -> Direction:
    """Returns a random direction of the same space and length, for comparison.

    In features it is the difference of two samples: what lies anywhere else is hardly ever reached.
    """
    random = np.random.default_rng(seed)
    classes = self.num_classes
    labels = random.integers(classes, size=2).astype(np.int32) if classes else None
    if like.space == "noise":
      vector = random.standard_normal(self.noise_dim, np.float32)
    else:
      first, second = self.features(self.latents(random.integers(2**32, size=2), labels))
      vector = np.where(like.vector != 0, second - first, 0)  # in the same layers
    return replace(like, vector=vector).of_length(float(np.linalg.norm(like.vector)))


def closed_form(editor: Editor, latents: Latents, count: int) -> np.ndarray:
  """Returns the first directions of the closed form, [count, dim]: in noise, unit steps; or in a StyleGAN's w.

  Args:
    latents: samples, which say how long one standard deviation is; in noise it is 1.
    count: how many, if there are so many.
  """
  steps = largest_changes(editor.first_linear_map(), count)
  if not editor.has_styles:
    return steps
  layers, width = editor.feature_shape
  w = editor.features(latents)[:, :width]  # of the first layer; it is the same in all
  return np.stack([np.tile(one_deviation(step, w), layers) for step in steps])


def largest_changes(linear_map: np.ndarray, count: int) -> np.ndarray:
  """Returns the `count` unit inputs that a linear map changes most, orthonormal: [inputs, outputs] -> [count, inputs].

  These are its singular vectors on the side of the inputs. The largest entry of each is positive.
  """
  return _signed(np.linalg.svd(linear_map, full_matrices=False)[0].T[:count])


def principal_components(values: np.ndarray, count: int) -> np.ndarray:
  """Returns the first principal components of values [n, dim], each as long as its standard deviation: [count, dim].

  The largest entry of each is positive.
  """
  _, lengths, vectors = np.linalg.svd(values - values.mean(axis=0), full_matrices=False)
  return _signed(vectors[:count] * (lengths[:count] / np.sqrt(len(values) - 1))[:, None])


def boundary(values: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, float]:
  """Separates values [n, dim] by whether they are `positive`, bool [n], by logistic regression.

  Returns:
    the normal of the plane, on the positive side, as long as one standard deviation, float32 [dim], and the plane's
    balanced accuracy on a fifth of the values, which are held out: 0.5 is chance.

  Raises:
    UserError: there are too few values on one side.
  """
  from sklearn.linear_model import LogisticRegression  # takes most of a second, and few commands need it
  from sklearn.metrics import balanced_accuracy_score

  held_out = np.arange(len(values)) % _HELD_OUT == 0
  if min(np.sum(side & held_out) for side in (positive, ~positive)) < _FEWEST / _HELD_OUT:
    raise UserError(
      f"{np.sum(positive):,} of {len(values):,} samples are of the class, too few on one side: raise --samples, or "
      "choose another --target"
    )
  scaled = values / np.std(values, axis=0).max()
  plane = LogisticRegression(class_weight="balanced", max_iter=1000).fit(scaled[~held_out], positive[~held_out])
  accuracy = balanced_accuracy_score(positive[held_out], plane.predict(scaled[held_out]))
  return one_deviation(plane.coef_[0] / np.linalg.norm(plane.coef_[0]), values), float(accuracy)


def one_deviation(vector: np.ndarray, values: np.ndarray) -> np.ndarray:
  """Returns a unit vector [dim] times the standard deviation along it of values [n, dim]."""
  return (vector * np.std(values @ vector)).astype(np.float32)


def likeness(features: np.ndarray, others: np.ndarray) -> np.ndarray:
  """Returns the cosine of the angle between features [n, D] and those of other images: [n]."""
  lengths = np.linalg.norm(features, axis=1) * np.linalg.norm(others, axis=1)
  return np.sum(features * others, axis=1) / np.maximum(lengths, np.finfo(np.float32).tiny)


def write_direction(path: epath.Path, direction: Direction) -> None:
  """Writes a direction as an .npz; readers find all of it or nothing."""
  facts = {name: np.asarray(value) for name, value in direction.facts.items()}
  write_npz(path, {"space": np.asarray(direction.space), "vector": direction.vector} | facts)


def read_direction(path: epath.Path, editor: Editor) -> Direction:
  """Reads a direction from a file that `write_direction` wrote.

  Raises:
    UserError: there is no such file, it has other contents, or the direction is that of another generator.
  """
  if not path.exists():
    there = sorted(file.stem for file in path.parent.glob("*.npz")) if path.parent.exists() else []
    cure = f"choose from {', '.join(there)}" if there else "make some with --find"
    raise UserError(f"there is no direction {path}: {cure}")
  arrays = _read_npz(path, ("space", "vector"), "make one with --find")
  facts = {name: value.item() for name, value in arrays.items() if value.ndim == 0}
  space, vector = facts.pop("space"), arrays["vector"]
  if space not in SPACES:
    raise UserError(f"{path} is a direction in {space!r}, but directions are in {' or '.join(SPACES)}")
  wanted = editor.noise_dim if space == "noise" else math.prod(editor.feature_shape)
  if vector.shape != (wanted,):
    raise UserError(
      f"{path} is a direction of {vector.size} numbers in {space}, but this run has {wanted}: it was found for another "
      "run: make one with --find"
    )
  return Direction(space, vector, facts)


def read_latents(path: epath.Path, editor: Editor) -> Latents:
  """Reads the latents of inverted images from the inversion.npz of cli.invert.

  Raises:
    UserError: there is no such file, it has other contents, or it is of another generator.
  """
  arrays = _read_npz(path, ("noise", "offsets"), "give the --out of cli.invert")
  latents = Latents(arrays["noise"], arrays["offsets"], arrays.get("labels"))
  offsets = latents.offsets.shape[1]
  fits = latents.noise.shape[1] == editor.noise_dim and offsets in (0, offsets and math.prod(editor.feature_shape))
  if not fits or (latents.labels is not None) != bool(editor.num_classes):
    raise UserError(f"{path} is of another run: invert the images with this one")
  return latents


def _read_npz(path: epath.Path, names: Sequence[str], cure: str) -> dict[str, np.ndarray]:
  """Returns the arrays of an .npz; raises a UserError if it cannot be read or lacks one of `names`."""
  arrays = read_npz(path, cure)
  if missing := [name for name in names if name not in arrays]:
    raise UserError(f"{path} has no {missing[0]!r}: {cure}")
  return arrays


def _signed(vectors: np.ndarray) -> np.ndarray:
  """Turns vectors [n, dim] so that the largest entry of each is positive; a singular vector has no sign of its own."""
  largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=1)[:, None], axis=1)
  return (vectors * np.sign(largest)).astype(np.float32)
