"""Measures the loader's images per second, shuffled and flipped, from ArrayRecord, a folder and a zip.

    python -m benchmarks.data

The images are generated PNGs in the system's page cache. "cached": all images have been decoded before, as in all
epochs but the first of a data set smaller than config.run.cache_gib.
"""

import math
import os
import zipfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import jax
import numpy as np
from PIL import Image

from benchmarks import measure
from r3gan_jax.data.cache import cached
from r3gan_jax.data.files import ImageFiles
from r3gan_jax.data.folder import FolderSource
from r3gan_jax.data.images import Decoder
from r3gan_jax.data.loader import Loader
from r3gan_jax.data.prepare import prepare_images
from r3gan_jax.data.source import Source
from r3gan_jax.data.tfds import TfdsSource
from r3gan_jax.training.mesh import batch_sharding, make_mesh

BATCHES = {32: 256, 64: 128, 256: 32}
"""Resolution -> batch; an iteration uses two."""

ITERATIONS = 16


def main() -> None:
  options = measure.parser(__doc__ or "", repetitions=5).parse_args()
  rows: list[measure.Row] = []
  for resolution, batch in BATCHES.items():
    images = 2 * batch * ITERATIONS
    with TemporaryDirectory() as directory:
      sources = _sources(Path(directory), resolution, images)
      calls = {
        (name, kept): _delivery(cached(source, math.inf) if kept == "cached" else source, batch)
        for name, source in sources.items()
        for kept in ("uncached", "cached")
      }
      seconds = measure.interleaved_seconds({" ".join(key): call for key, call in calls.items()}, options.repetitions)
    for name in sources:
      row: measure.Row = {"pixels": resolution, "images from": name}
      rows.append(row | {kept: images / seconds[f"{name} {kept}"] for kept in ("uncached", "cached")})
  measure.report({f"images/s, {measure.threads()} threads": rows}, options.json)


def _sources(directory: Path, resolution: int, count: int) -> dict[str, Source]:
  """Returns the same images in each form."""
  folder = directory / "images"
  folder.mkdir()
  random = np.random.default_rng(0)
  for index in range(count):
    # Smooth with a little noise, so that PNGs are about as large as those of photographs.
    coarse = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((resolution, resolution))
    noisy = np.asarray(coarse) + random.integers(-4, 5, (resolution, resolution, 3))
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{index:06}.png", compress_level=1)
  with zipfile.ZipFile(directory / "images.zip", "w") as archive:
    for file in folder.iterdir():
      archive.write(file, file.name)
  decoder, size = Decoder(channels=3), (resolution, resolution)
  prepare_images(ImageFiles(folder), "images", directory, size, decoder, False, os.cpu_count() or 1, False)
  return {
    "ArrayRecord": TfdsSource("images", "train", str(directory), size, decoder, "crop_resize"),
    "folder": FolderSource(str(folder), size, decoder, 0),
    "zip": FolderSource(str(directory / "images.zip"), size, decoder, 0),
  }


def _delivery(source: Source, batch: int) -> Callable[[], None]:
  """Returns a call that loads ITERATIONS iterations from the start, as training does."""
  loader = Loader(source, seed=0, x_flip=True)
  sharding = batch_sharding(make_mesh(jax.devices()[:1]))

  def call() -> None:
    iterator = loader.iterate((batch, batch), 0, sharding)
    for batches in islice(iterator, ITERATIONS):
      jax.block_until_ready(batches)
    iterator.close()  # type: ignore[attr-defined]

  return call


if __name__ == "__main__":
  main()
