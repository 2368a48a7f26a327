"""Chooses the settings of a recipe that are `None` by looking at the images: configs/images.py.

    resolution, width   all images of one size of at most 256 pixels that networks can have: as they are; else squares,
                        of the largest side, 4 times a power of 2, that three quarters of the images reach, at most 256
    channels, bits      grey, if all images are; RGBA, if all have transparent pixels; else RGB. 16 bits, if all have
    num_classes         those of dataset.json or, if every image is in one, of the directories
    batch_size          64 of `tiny` and `small`, 256 of `base` and `paper`; at most a quarter of the images
    widths, blocks      as of the paper's presets, whose widest stages have 768 channels: see `Size`
    gamma               from 10 g to g, with g = 0.03 (side / 32)^3: `gamma_rule`
    augment_p           up to 0.3, of few images more: `augmentation_rule`

The choices become settings of the run: a resumed one keeps them. Micro-batches depend on the devices instead, and are
chosen at each start: config.run.fit_memory.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from r3gan_jax.data.files import ImageFiles
from r3gan_jax.data.images import DEEP_MODES, Decoder, to_array
from r3gan_jax.data.labels import directory_labels, listed_labels
from r3gan_jax.data.survey import Header, describe, name_classes, number_classes, survey
from r3gan_jax.data.tfds import is_prepared, open_directory
from r3gan_jax.errors import UserError
from r3gan_jax.storage import as_path
from r3gan_jax.training.workdir import CONFIG_FILE, read_config

LARGEST_SIDE = 256
FEW_IMAGES = 1000
_GREY_MODES = ("1", "L", "LA", *DEEP_MODES)
_LOOKED_THROUGH = 16
"""The number of images with an alpha channel whose pixels are examined: many files have one that hides nothing."""


@dataclass(frozen=True)
class Size:
  """Networks of one size.

  Attributes:
    width: channels of the stages up to `widest` pixels; each later stage has half of the one before it.
    widest: see `width`.
    narrowest: the fewest channels of a stage.
    blocks: residual blocks of each stage.
  """

  width: int
  widest: int
  narrowest: int
  blocks: int
  batch_size: int
  learning_rate: tuple[float, float]
  total_images: int
  burn_in_images: int
  ema_half_life: float

  def apply(self, config: ConfigDict) -> None:
    """Sets what does not depend on the images."""
    config.gan.learning_rate = self.learning_rate
    config.gan.burn_in_images = self.burn_in_images
    config.gan.ema_half_life = (0.0, self.ema_half_life)
    config.run.total_images = self.total_images
    config.run.log_every_images = max(2_000, self.total_images // 1000)
    config.run.snapshot_every_images = max(20_000, self.total_images // 100)

  def widths(self, side: int, stages: int) -> tuple[int, ...]:
    """Returns the channels of each stage; `side` is the shorter one of the images."""
    sides = [side >> (stages - 1 - stage) for stage in range(stages)]
    # A stage whose side is not a power of 2 counts as the next lower one: 6x8 is a first stage like 4x4.
    return tuple(
      max(self.narrowest, self.width >> max(0, int(math.log2(at)) - int(math.log2(self.widest)))) for at in sides
    )


_SIZES = {
  "tiny": Size(64, 8, 16, 1, 64, (1e-3, 2e-4), 200_000, 100_000, 10_000.0),
  "small": Size(128, 8, 32, 1, 64, (1e-3, 2e-4), 400_000, 200_000, 10_000.0),
  "base": Size(384, 32, 48, 2, 256, (2e-4, 5e-5), 25_000_000, 5_000_000, 500_000.0),
  "paper": Size(768, 32, 96, 2, 256, (2e-4, 5e-5), 100_000_000, 20_000_000, 500_000.0),
}


def _sized(name: str, config: ConfigDict) -> None:
  _SIZES[name].apply(config)


SIZES: dict[str, Callable[[ConfigDict], None]] = {name: partial(_sized, name) for name in _SIZES}
"""The variants of configs/images.py."""


def gamma_rule(height: int, width: int) -> float:
  """Returns the final gamma, g = 0.03 (side / 32)^3, for images of height x width pixels, or of 32 if they are smaller.

  It begins at 10 g, as in all presets of the paper, to which g is fitted. In brackets their gamma over the rule's:
  CIFAR-10 0.005 (0.17), ImageNet-32 0.05 (1.7), StackedMNIST 0.1 (3.3), FFHQ-64 0.2 (1), ImageNet-64 0.1 (0.5),
  FFHQ-256 15 (0.75). So it is right within a factor of 6, and a sweep may be worth its time. There is no preset of 128
  pixels, and none of few images.
  """
  return float(f"{0.03 * max(1.0, math.sqrt(height * width) / 32) ** 3:.1g}")


def augmentation_rule(images: int) -> float:
  """Returns the final probability of augmentation: 0.3 as of FFHQ (70,000 images), 0.5 below 20,000, 0.7 below 5,000.

  Fewer images need more, as in StyleGAN2-ADA (Karras et al. 2020, figure 7), where 0.6 and more suited 2,000 of them.
  """
  return 0.3 if images >= 20_000 else 0.5 if images >= 5_000 else 0.7


@dataclass(frozen=True)
class Found:
  """The facts about the images that choices depend on; `described` is a line for the user."""

  count: int
  sizes: list[tuple[int, int]]  # (width, height)
  channels: int
  bits: int
  classes: int
  described: str


def completed(config: ConfigDict, workdir: epath.PathLike | None = None) -> ConfigDict:
  """Returns `config` with a choice for each setting that is None, and logs them; other recipes as they are.

  A work directory's own choices come first.

  Raises:
    UserError: there are no images at config.run.data_path, or settings that are given do not fit them.
  """
  if config.data.source != "images" or not _open(config):
    return config
  config = config.copy_and_resolve_references()
  config.unlock()
  if workdir and (as_path(workdir) / CONFIG_FILE).exists():
    kept = read_config(workdir)
    for section, name in _open(config):
      _of(config, section)[name] = _of(kept, section).get(name)
  if not (left := _open(config)):
    return config.lock()
  if not config.run.data_path:
    raise UserError("config.run.data_path is empty: give the folder or zip of images, or a prepared data set")
  path = as_path(config.run.data_path)
  found = _of_prepared(path) if is_prepared(path) else _of_files(config)
  logging.info("%s", found.described)
  _choose(config, found)
  chosen = [f"{section}.{name}".lstrip(".") + f" = {_of(config, section)[name]}" for section, name in left]
  logging.info("chosen (each can be set by --config.NAME=...): %s", ", ".join(chosen))
  if config.data.x_flip:
    logging.info("images are mirrored at random: set --config.data.x_flip=False for writing and the like")
  if found.count < FEW_IMAGES:
    logging.warning(
      "%d images are few: a GAN learns them by heart rather than what they have in common; start from a trained one "
      "by --config.init_from, see docs/fine_tuning.md, or find more",
      found.count,
    )
  return config.lock()


def _open(config: ConfigDict) -> list[tuple[str, str]]:
  """Returns (section, name) of the settings that are None; the section of the top level is ""."""
  parts = {"": config, "data": config.data, "gan": config.gan, "run": config.run}
  return [(section, name) for section, part in parts.items() for name in part if part[name] is None]


def _of(config: Any, section: str) -> Any:
  return config[section] if section else config


def _choose(config: ConfigDict, found: Found) -> None:
  data, gan = config.data, config.gan

  def take(part: ConfigDict, name: str, value: Any) -> None:
    if part[name] is None:
      part[name] = value

  size = _SIZES.get(config.name.removeprefix("images_"))
  if size is None:
    raise UserError(
      f"config.name = {config.name!r}: the recipe's name says the size of the networks: leave it as it is"
    )
  height, width = _size(found.sizes)
  if data.resolution is not None:
    width = height = data.resolution
  take(data, "resolution", height)
  take(data, "width", 0 if width == height else width)
  take(data, "channels", found.channels)
  take(data, "bits", found.bits if data.channels == 1 else 8)
  take(data, "num_classes", found.classes)
  height, width = data.resolution, data.width or data.resolution
  shorter = min(height, width)
  stages = max(1, (shorter // 4).bit_length())
  take(gan, "widths", size.widths(shorter, stages))
  take(gan, "cardinalities", tuple(width // 8 for width in gan.widths))
  take(gan, "blocks", (size.blocks,) * len(gan.widths))
  gamma = gamma_rule(height, width)
  take(gan, "gamma", (10 * gamma, gamma))
  take(gan, "augment_p", (0.0, augmentation_rule(found.count)))
  take(config, "batch_size", min(size.batch_size, max(8, 2 ** (max(1, found.count // 4).bit_length() - 1))))
  columns = max(2, min(16, 1024 // width))
  take(config.run, "grid", (columns, max(2, min(16, 1024 // height))))


def _size(sizes: list[tuple[int, int]]) -> tuple[int, int]:
  """Returns (height, width) for images of these sizes, (width, height)."""
  (width, height), *others = set(sizes)
  scale = 2 ** max(0, (min(width, height) // 4).bit_length() - 1)
  whole = min(width, height) >= 4 and not (width % scale or height % scale)
  if not others and whole and max(width, height) <= LARGEST_SIDE and (width != height or width == 4 * scale):
    return height, width
  reached = sorted(min(size) for size in sizes)[len(sizes) // 4]
  side = 2 ** int(math.log2(max(4, min(reached, LARGEST_SIDE))))
  return side, side


def _of_prepared(path: epath.Path) -> Found:
  info = open_directory(Path(path)).info
  features = dict(info.features.items())
  height, width, channels = features["image"].shape
  if not (height and width):
    raise UserError(f"{path} has images of several sizes: set config.data.resolution")
  label = features.get("label")
  classes = int(getattr(label, "num_classes", 0) or 0)
  count = info.splits["train"].num_examples
  bits = 8 * np.dtype(features["image"].np_dtype).itemsize
  described = f"{count:,} images in {path}: {width}x{height}, {channels} channels, {classes} classes"
  return Found(count, [(width, height)], channels, bits, classes, described)


def _of_files(config: ConfigDict) -> Found:
  files = ImageFiles(config.run.data_path)
  found = survey(files)
  if not found.headers or (found.corrupt and config.run.on_corrupt_image == "stop"):
    raise found.corrupt[0]
  for error in found.corrupt:
    logging.warning("left out: %s", error)
  modes = {header.mode for header in found.headers}
  grey = all(mode in _GREY_MODES for mode in modes)
  transparent = not grey and _all_transparent(files, found.headers)
  classes, described = _classes(files, config)
  channels = 1 if grey else 4 if transparent else 3
  return Found(
    len(files),
    [header.size for header in found.headers],
    channels,
    16 if modes <= set(DEEP_MODES) else 8,
    classes,
    describe(files, found, described, Decoder(channels, config.data.background)),
  )


def _all_transparent(files: ImageFiles, headers: list[Header]) -> bool:
  """Whether every image has transparent pixels, as far as a few are examined."""
  if not all(header.transparent for header in headers):
    return False
  some = headers[:: max(1, len(headers) // _LOOKED_THROUGH)]
  decoder = Decoder(4)
  return all(to_array(decoder(files.read(h.index), files.title(h.index)))[..., 3].min() < 255 for h in some)


def _classes(files: ImageFiles, config: ConfigDict) -> tuple[int, str]:
  """Returns the number of classes, 0 for none, and a description."""
  if config.data.num_classes == 0:
    return 0, "classes are not looked at"
  labels = listed_labels(files, or_directories=True)
  if labels is not None:
    return int(labels.max()) + 1, number_classes(labels)
  if not all("/" in name for name in files.names):
    return 0, "no classes"
  try:
    _, names = directory_labels(files)
  except UserError as error:
    return 0, f"no classes ({error})"
  return (len(names), name_classes(names)) if len(names) > 1 else (0, "no classes")
