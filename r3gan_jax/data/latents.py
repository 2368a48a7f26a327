"""Data sets of an autoencoder's latents: of each image the means and standard deviations, from which a load draws.

`prepare_latents` makes one from a data set of images: a prepared data set with the feature "moments", and with a
`NUMBERS_FILE`: what makes latents uniform in scale, and images of them again. The zips of EDM2's `encode` command are
read as they are.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from r3gan_jax.data.files import ImageFiles
from r3gan_jax.data.images import CorruptImage, Decoder
from r3gan_jax.data.labels import listed_labels
from r3gan_jax.data.prepare import check_name, write_new
from r3gan_jax.data.shards import Prepared
from r3gan_jax.data.source import Examples, Source
from r3gan_jax.data.survey import number_classes
from r3gan_jax.data.tfds import PreparedSource, TfdsSource, is_prepared, opened
from r3gan_jax.errors import UserError
from r3gan_jax.progress_bar import progress_bar
from r3gan_jax.storage import as_path, failing_as, write_whole

NUMBERS_FILE = "latents.json"
STD = 0.5
"""The standard deviation of each channel of latents that are trained on, as in EDM2 (Karras et al. 2024)."""

_PART = 1024


@dataclass(frozen=True)
class Numbers:
  """The numbers that a run needs of an autoencoder's latents.

  Attributes:
    mean, std: of each channel over the data set, with the noise of draws; trained on is (latent - mean) / std * `STD`.
    range: the values of black and white in the images that were encoded.
    image: (H, W, C) of these images.
    autoencoder: the digest of its weights, "" if unknown.
  """

  mean: tuple[float, ...]
  std: tuple[float, ...]
  range: tuple[float, float]
  image: tuple[int, int, int]
  autoencoder: str = ""

  @classmethod
  def read(cls, kept: Mapping[str, Any]) -> "Numbers":
    """Returns the numbers of a mapping by name, from JSON or a configuration."""
    mean, std, (black, white) = (tuple(map(float, kept[name])) for name in ("mean", "std", "range"))
    height, width, channels = map(int, kept["image"])
    return cls(mean, std, (black, white), (height, width, channels), kept.get("autoencoder", ""))


def of_edm2(height: int, width: int) -> Numbers:
  """Returns the numbers that EDM2 has for its latents of height x width, of the Stable Diffusion autoencoder."""
  return Numbers((5.81, 3.25, 0.12, -2.15), (4.17, 4.62, 3.71, 3.28), (0.0, 1.0), (8 * height, 8 * width, 3))


class LatentSource(PreparedSource):
  """One split of a prepared data set of latents.

  Its 'image' is float16 [n, versions, H, W, 2 * channels]: means, then standard deviations, of each image and, with two
  versions, of its mirror image. `Loader` draws from them.

  Args:
    shape: (H, W, channels) of a latent.
    others: as of `PreparedSource`, and so are the errors.
  """

  def __init__(
    self, name: str, split: str, data_path: str, shape: tuple[int, int, int], num_classes: int, label_key: str
  ):
    self._shape = shape
    super().__init__(name, split, data_path, num_classes, label_key)

  def _check_images(self, features: Mapping[str, Any]) -> None:
    height, width, channels = self._shape
    there = getattr(features.get("moments"), "shape", None)
    if there is None:
      raise UserError(f"{self._title} has images, not latents: encode it by prepare_data --prepared --encode=sd-vae")
    if there[1:] != (height, width, 2 * channels):
      raise UserError(
        f"{self._title} has latents of {there[1]}x{there[2]} and {there[3] // 2} channels: set config.data.resolution, "
        "width and channels to match"
      )
    self._stored = there

  def _described(self) -> str:
    return str(self._shape)

  def _image(self, record: Any, title: str) -> np.ndarray:
    return np.frombuffer(record["moments"].bytes_list.value[0], np.float16).reshape(self._stored)


class LatentFiles:
  """The `.npy` files of a directory or zip, as EDM2's `encode` command writes them: [2 * channels, H, W] each.

  Labels are in its `dataset.json`. It has no mirror images. 'image' is as of `LatentSource`, float32.
  """

  classes: tuple[str, ...] = ()

  def __init__(self, path: str, shape: tuple[int, int, int], num_classes: int):
    self._files = ImageFiles(path, (".npy",))
    self._shape = shape
    self._labels: np.ndarray | None = None
    if num_classes:
      labels = listed_labels(self._files)
      if labels is None:
        raise UserError(f"{path} has no labels in a dataset.json: set config.data.num_classes = 0")
      if labels.max() >= num_classes:
        raise UserError(f"{path} has {number_classes(labels)}: set config.data.num_classes to match")
      self._labels = labels
    self[np.arange(1)]

  def __len__(self) -> int:
    return len(self._files)

  def __getitem__(self, indices: np.ndarray) -> Examples:
    examples = {"image": np.stack([self._moments(index) for index in indices.tolist()])[:, None]}
    return examples if self._labels is None else examples | {"label": self._labels[indices]}

  def fingerprint(self) -> str:
    return self._files.digest()

  def _moments(self, index: int) -> np.ndarray:
    title = self._files.title(index)
    try:
      moments = np.load(BytesIO(self._files.read(index)), allow_pickle=False)
    except (ValueError, EOFError):
      raise CorruptImage(f"{title} is no array that numpy.save wrote: replace or remove it") from None
    height, width, channels = self._shape
    if moments.shape != (2 * channels, height, width):
      raise UserError(
        f"{title} has the shape {moments.shape}, not [{2 * channels}, {height}, {width}]: set config.data.resolution, "
        "width and channels to match"
      )
    return np.moveaxis(moments.astype(np.float32), 0, -1)


def draw(moments: np.ndarray, numbers: Numbers, seeds: Sequence[tuple[int, ...]]) -> np.ndarray:
  """Draws a latent of each image, by a generator of its own: float32 [n, H, W, channels], of mean 0 and std `STD`.

  Args:
    moments: [n, H, W, 2 * channels].
    numbers: of the data set.
    seeds: n seeds of numpy's generator.
  """
  means, stds = np.split(moments.astype(np.float32), 2, axis=-1)
  noise = np.stack([np.random.default_rng(seed).standard_normal(means.shape[1:], np.float32) for seed in seeds])
  scale = np.float32(STD) / np.asarray(numbers.std, np.float32)
  return (means + stds * noise - np.asarray(numbers.mean, np.float32)) * scale


def is_of_files(path: str) -> bool:
  """Whether `path` is a directory or zip of `.npy` files rather than a directory of prepared data sets."""
  return bool(path) and (path.lower().endswith(".zip") or (as_path(path) / "dataset.json").exists())


def read_numbers(name: str, data_path: str) -> Numbers:
  """Returns the numbers of a prepared data set of latents; arguments as of `TfdsSource`.

  Raises:
    UserError: it is not prepared, or not to its end.
  """
  path = epath.Path(opened(name, data_path).data_path) / NUMBERS_FILE
  with failing_as(f"cannot read {path}", path):
    try:
      return Numbers.read(json.loads(path.read_text()))
    except FileNotFoundError:
      raise UserError(
        f"{path} is missing: the data set has no latents, or prepare_data --encode was interrupted at its end: run the "
        "same command again"
      ) from None
    except (ValueError, TypeError, KeyError):
      raise UserError(f"{path} is damaged: remove it, and run prepare_data --encode again") from None


Encode = Callable[[np.ndarray], np.ndarray]
"""Images uint8 [n, H, W, C] -> their latents' means, then standard deviations, float32 [n, h, w, 2 * channels]."""


class Encoded:
  """The latents of a data set of images, as `shards.Records`: encoded a batch at a time, in the order of the images.

  Args:
    source: the images; has labels if they are to be kept.
    encode: the encoder.
    mirrored: also encode mirror images: an encoder does not turn with the image.
    batch: the number of images that are encoded together.
    weights: the digest of the encoder's weights.
  """

  def __init__(self, source: Source, encode: Encode, mirrored: bool, batch: int, weights: str):
    self._source = source
    self._encode = encode
    self._mirrored = mirrored
    self._batch = batch
    self.weights = weights
    self._first, self._examples = 0, list[dict[str, Any]]()

  def __len__(self) -> int:
    return len(self._source)

  def example(self, index: int) -> dict[str, Any]:
    if not 0 <= index - self._first < len(self._examples):
      self._first, self._examples = index, self._encoded(index)
    return self._examples[index - self._first]

  def digest(self) -> str:
    return f"{self._source.fingerprint()} {self.weights} {self._mirrored}"

  def _encoded(self, first: int) -> list[dict[str, Any]]:
    indices = np.arange(first, min(first + self._batch, len(self)))
    examples = self._source[indices]
    images = examples.pop("image")
    # Always as many, so that the encoder is compiled once.
    images = np.concatenate([images, np.repeat(images[-1:], self._batch - len(images), axis=0)])
    versions = (images, images[:, :, ::-1]) if self._mirrored else (images,)
    moments = np.stack([self._encode(version)[: len(indices)] for version in versions], axis=1).astype(np.float16)
    labels = {name: values.tolist() for name, values in examples.items()}
    return [{"moments": moments[i]} | {name: values[i] for name, values in labels.items()} for i in range(len(indices))]


def prepare_latents(
  images: str,
  name: str,
  data_dir: Path,
  size: tuple[int, int] | None,
  fit_by: str,
  encode: Encode,
  mirrored: bool,
  batch: int,
  weights: str,
) -> Prepared:
  """Encodes the split "train" of a prepared data set of images, and measures the numbers of its latents.

  The same call continues after an interruption.

  Args:
    images: the name of the data set, or its directory.
    name: of the data set of latents.
    data_dir: the directory of prepared data sets.
    size: the height and width to which images are brought; None: they are as they are.
    fit_by: how: see `images.fit`.
    encode: takes `batch` images.
    mirrored: also encode mirror images.
    batch: the number of images that are encoded together.
    weights: the digest of the encoder's weights.
  """
  import tensorflow_datasets as tfds

  check_name(name)
  is_directory = is_prepared(as_path(images))
  place = ("", images) if is_directory else (images, str(data_dir))
  features = dict(opened(*place).info.features.items())
  shape = getattr(features.get("image"), "shape", None)
  if not shape or (None in shape and not size):
    raise UserError(f"--prepared={images} has no images of one size: give their --resolution, or another data set")
  shape = (*(size or shape[:2]), shape[2])
  label = features.get("label")
  classes = label.num_classes if isinstance(label, tfds.features.ClassLabel) else 0
  source = TfdsSource(place[0], "train", place[1], shape[:2], Decoder(shape[2]), fit_by, classes)
  records = Encoded(source, encode, mirrored, batch, weights)
  stored = records.example(0)["moments"].shape
  moments = tfds.features.Tensor(shape=stored, dtype=np.float16, encoding="bytes")
  description = f"Means and standard deviations of latents of {images}"
  features = {"moments": moments} | ({"label": label} if classes else {})
  prepared = write_new(name, data_dir, description, features, records)
  path = prepared.directory / NUMBERS_FILE
  if not path.exists():
    latents = LatentSource("", "train", str(prepared.directory), (*stored[1:3], stored[3] // 2), 0, "label")
    numbers = Numbers(*measured(latents), (-1.0, 1.0), shape, weights)
    with failing_as(f"cannot write {path}", path):
      write_whole(path, json.dumps(asdict(numbers), indent=2) + "\n")
  return prepared


def measured(source: Source) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """Returns mean and standard deviation of each channel of the latents that are drawn from `source`, all versions.

  Of draws z = m + s n with n ~ N(0, 1), E[z] = E[m] and E[z^2] = E[m^2] + E[s^2].
  """
  sums = squares = np.zeros(())
  count = 0
  parts = range(0, len(source), _PART)
  with progress_bar(parts, total=len(parts), title="mean and std", unit="parts") as bar:
    for start in bar:
      moments = source[np.arange(start, min(start + _PART, len(source)))]["image"].astype(np.float64)
      means, stds = np.split(moments.reshape(-1, moments.shape[-1]), 2, axis=1)
      sums = sums + means.sum(axis=0)
      squares = squares + np.square(means).sum(axis=0) + np.square(stds).sum(axis=0)
      count += len(means)
  mean = sums / count
  std = np.sqrt(squares / count - np.square(mean))
  return tuple(mean.tolist()), tuple(std.tolist())
