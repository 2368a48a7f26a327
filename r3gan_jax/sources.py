"""Builds the data source of a configuration by config.data.source; a new one is one line of `SOURCES`."""

import hashlib
import os
import re
from collections.abc import Callable, Mapping

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from r3gan_jax.data.cache import cached
from r3gan_jax.data.files import ImageFiles
from r3gan_jax.data.folder import FolderSource
from r3gan_jax.data.generated import GeneratedSource
from r3gan_jax.data.images import Decoder
from r3gan_jax.data.labels import listed_labels
from r3gan_jax.data.latents import LatentFiles, LatentSource, Numbers, is_of_files, of_edm2, read_numbers
from r3gan_jax.data.pairs import PairSource
from r3gan_jax.data.prepare import prepare_images
from r3gan_jax.data.skipping import SkippingSource
from r3gan_jax.data.source import Source
from r3gan_jax.data.stacked import DigitsSource, StackedSource, load_small_digits
from r3gan_jax.data.tfds import TfdsSource, is_prepared, number_of_classes, splits
from r3gan_jax.errors import UserError
from r3gan_jax.interop.weights import cache_directory
from r3gan_jax.recipe import image_size
from r3gan_jax.storage import as_path


def _tfds(config: ConfigDict) -> Source:
  data = config.data
  given = (data.name, data.split, config.run.data_path, image_size(data), build_decoder(config), data.fit)
  if data.condition_channels:
    return PairSource(*given, data.condition_channels)
  return TfdsSource(*given, data.num_classes, data.label_key)


def labelled(config: ConfigDict, split: str) -> Source:
  """Builds a split of the run's data set with its labels, also where `config.data.num_classes` is 0.

  Raises:
    UserError: the data set has no such split, or no labels.
  """
  config = config.copy_and_resolve_references()
  data = config.data
  data.split = split
  data.num_classes = data.num_classes or number_of_classes(data.name, config.run.data_path, data.label_key)
  return SOURCES["tfds"](config)


def has_test_images(config: ConfigDict) -> bool:
  """Whether the run's data set has a split "test" that the run does not train on."""
  data = config.data
  if data.source != "tfds" or "test" in data.split:
    return False
  return "test" in splits(data.name, config.run.data_path)


def _path_of_images(config: ConfigDict) -> epath.Path:
  if not config.run.data_path:
    raise UserError("config.run.data_path is empty: give the folder or zip of images")
  return as_path(config.run.data_path)


def _folder(config: ConfigDict) -> Source:
  data, path = config.data, _path_of_images(config)
  skip = _skips_corrupt(config)
  return FolderSource(str(path), image_size(data), build_decoder(config), data.num_classes, skip)


def _images(config: ConfigDict) -> Source:
  """Builds the source of images of any size, prepared once, in the user's cache, or of a prepared data set."""
  data, path = config.data, _path_of_images(config)
  if not is_prepared(path):
    if jax.process_count() > 1:
      raise UserError(f"{path} is not a prepared data set, which several processes need: run prepare_data first")
    files, decoder = ImageFiles(path), build_decoder(config)
    in_directories = bool(data.num_classes) and listed_labels(files, or_directories=True) is None
    parts = (files.digest(), files.names, image_size(data), decoder, in_directories, _skips_corrupt(config))
    directory = cache_directory() / "images" / hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
    prepared = prepare_images(
      files,
      "images",
      directory,
      image_size(data),
      decoder,
      class_directories=in_directories,
      processes=os.cpu_count() or 1,
      skip_corrupt=_skips_corrupt(config),
    )
    path = prepared.directory
  return TfdsSource(
    "", "train", str(path), image_size(data), build_decoder(config), "crop_resize", data.num_classes, data.label_key
  )


def build_decoder(config: ConfigDict) -> Decoder:
  """Builds the decoder of image files and records."""
  data = config.data
  return Decoder(data.channels, data.background, data.get("bits", 8))  # a converted snapshot has no bits


def latent_numbers(config: ConfigDict) -> Numbers:
  """Returns the numbers of a run's data set of latents; raises a UserError if it is not prepared."""
  if is_of_files(config.run.data_path):
    return of_edm2(*image_size(config.data))
  return read_numbers(config.data.name, config.run.data_path)


def _latents(config: ConfigDict) -> Source:
  data, path = config.data, config.run.data_path
  shape = (*image_size(data), data.channels)
  source: Source
  if is_of_files(path):
    source = LatentFiles(path, shape, data.num_classes)
  else:
    source = LatentSource(data.name, data.split, path, shape, data.num_classes, data.label_key)
  if data.x_flip and source[np.arange(1)]["image"].shape[1] == 1:
    raise UserError(
      "config.data.x_flip needs the latents of mirror images, which the data set lacks: encode it with --mirrored, or "
      "set config.data.x_flip = False"
    )
  return source


def _pixels(config: ConfigDict) -> Source:
  """Builds the source of the images of latents; see `factory.of_images`."""
  data = config.data
  if not data.pixels:
    raise UserError(
      "config.data.pixels is empty: give the images that the latents are of, which metrics compare with: the name of "
      "a prepared data set, or a directory or zip"
    )
  if re.fullmatch(r"[\w/]+", data.pixels) and not as_path(data.pixels).exists():
    return _tfds(config)
  config = config.copy_and_resolve_references()
  config.run.data_path = data.pixels
  return _images(config)


def _skips_corrupt(config: ConfigDict) -> bool:
  return config.run.on_corrupt_image == "skip"


def _readable(config: ConfigDict, source: Source) -> Source:
  """Wraps `source` as config.run says: skipping corrupt images, cached in memory if it is small."""
  source = SkippingSource(source) if _skips_corrupt(config) else source
  return cached(source, config.run.cache_gib)


def _check_stacked(config: ConfigDict) -> None:
  for name, fixed in (("channels", 3), ("num_classes", 0), ("width", 0), ("bits", 8)):
    if config.data[name] != fixed:
      raise UserError(f"config.data.{name} = {config.data[name]}: stacked digits need {fixed}")


def of_single_digits(config: ConfigDict) -> ConfigDict:
  """Returns the configuration of stacked digits as one of single ones, grey and with labels; others as they are."""
  single = {"stacked_mnist": "tfds", "stacked_digits": "digits"}
  if config.data.source not in single:
    return config
  _check_stacked(config)
  config = config.copy_and_resolve_references()
  config.data.update({"source": single[config.data.source], "channels": 1, "num_classes": 10})
  return config


def _stacked_mnist(config: ConfigDict) -> Source:
  digits = _tfds(of_single_digits(config))
  return StackedSource(digits[np.arange(len(digits))]["image"][..., 0])


def _stacked_digits(config: ConfigDict) -> Source:
  digits = _digits(of_single_digits(config))
  return StackedSource(digits[np.arange(len(digits))]["image"][..., 0])


def _digits(config: ConfigDict) -> Source:
  for name, fixed in (("resolution", 8), ("channels", 1), ("num_classes", 10), ("width", 0), ("bits", 8)):
    if config.data[name] != fixed:
      raise UserError(f"config.data.{name} = {config.data[name]}: scikit-learn's digits need {fixed}")
  return DigitsSource(*load_small_digits())


def _generated(config: ConfigDict) -> Source:
  data = config.data
  return GeneratedSource(image_size(data), data.channels + data.condition_channels, data.num_classes, bits=data.bits)


SOURCES: Mapping[str, Callable[[ConfigDict], Source]] = {
  "tfds": lambda config: _readable(config, _tfds(config)),
  "folder": lambda config: _readable(config, _folder(config)),
  "images": lambda config: _readable(config, _images(config)),
  "digits": _digits,
  "stacked_digits": _stacked_digits,
  "stacked_mnist": _stacked_mnist,
  "generated": _generated,
  "latents": lambda config: _readable(config, _latents(config)),
  "pixels": lambda config: _readable(config, _pixels(config)),
}
