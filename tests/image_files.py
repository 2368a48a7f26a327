"""Image files for the tests of data/: small, different, and known."""

import zipfile

import numpy as np
from PIL import Image


def write_images(directory, count, side=8, channels=3, suffix="png", first=0):
  """Writes `count` random images 00000.png, ... below `directory`; uint8 [count, side, side, channels]."""
  images = np.random.default_rng(first).integers(0, 256, (count, side, side, channels), dtype=np.uint8)
  directory.mkdir(parents=True, exist_ok=True)
  for index, image in enumerate(images, first):
    Image.fromarray(image if channels == 3 else image[..., 0]).save(directory / f"{index:05}.{suffix}", lossless=True)
  return images


def zip_directory(directory, path, compression=zipfile.ZIP_STORED):
  """Packs all files below `directory`, in reverse order: a reader must not rely on it."""
  with zipfile.ZipFile(path, "w", compression) as archive:
    for file in sorted(directory.rglob("*"), reverse=True):
      archive.write(file, file.relative_to(directory))
  return path
