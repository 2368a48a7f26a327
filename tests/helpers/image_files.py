"""Small image and idx files of random content for the tests of data/."""

import gzip
import struct
import zipfile

import numpy as np
from PIL import Image


def write_images(directory, count, side=8, channels=3, suffix="png", first=0):
  """Writes random images 00000.png, ... to `directory`; returns them, uint8 [count, side, side, channels]."""
  images = np.random.default_rng(first).integers(0, 256, (count, side, side, channels), dtype=np.uint8)
  directory.mkdir(parents=True, exist_ok=True)
  for index, image in enumerate(images, first):
    Image.fromarray(image if channels == 3 else image[..., 0]).save(directory / f"{index:05}.{suffix}", lossless=True)
  return images


def zip_directory(directory, path, compression=zipfile.ZIP_STORED):
  """Packs all files below `directory`, in reverse order, on which no reader may rely."""
  with zipfile.ZipFile(path, "w", compression) as archive:
    for file in sorted(directory.rglob("*"), reverse=True):
      archive.write(file, file.relative_to(directory))
  return path


def idx(array):
  """Encodes a uint8 array in MNIST's format."""
  return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx_files(directory):
  """Writes MNIST's four files, those for training gzipped; returns prefix -> (uint8 [n, 28, 28], labels uint8 [n])."""
  random = np.random.default_rng(0)
  splits = {}
  for prefix, count in (("train", 12), ("t10k", 5)):
    images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
    labels = random.integers(0, 10, count, dtype=np.uint8)
    splits[prefix] = images, labels
    for kind, array in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels)):
      if prefix == "train":
        (directory / f"{prefix}-{kind}.gz").write_bytes(gzip.compress(idx(array)))
      else:
        (directory / f"{prefix}-{kind}").write_bytes(idx(array))
  return splits
