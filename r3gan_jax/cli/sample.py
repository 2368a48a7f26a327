"""Draws images from a trained run: `python -m r3gan_jax.cli.sample --workdir=runs/NAME --seeds=0-63 --out=grid.png`.

A seed always gives the same image, whatever else is drawn with it. `--out` is one of

    grid.png                                one grid, enlarged by config.run.grid_scale
    samples.npz                             `images` uint8 [n, H, W, C], `seeds` and, with classes, `labels`
    samples                                 a directory with a PNG for each seed; the same command continues an
                                            interrupted one, and other seeds and classes can be added
    samples.zip                             the same as a zip, which appears when it is complete

With classes, their numbers are in the names of the PNGs, and dataset.json lists them for prepare_data and the tools of
StyleGAN and EDM.

    --class=3                               all seeds in class 3; by default each seed also draws its class
    --class=0-9                             every seed in every class; in a grid, a row per class, a column per seed
    --interpolate=2 --out=walk.gif          2 seconds from each seed to the next and back to the first, as a loop;
                                            .mp4 after `pip install -e '.[video]'`; classes move side by side
    --truncation=0.7                        less varied, more typical images: StyleGAN2's w moves 0.3 of the way to
                                            its mean; BigGAN's noise is without tails, 0.7 of the distribution;
                                            R3GAN's noise is multiplied by 0.7 (not in the paper)
    --condition=FOLDER                      of an image-to-image GAN: draws from the images in it, or in a zip, which
                                            are the classes 0, 1, ... in the order of their names; without --class,
                                            every seed from each of them
    --quantisation=official                 uint8 as in the official code, in bfloat16 if G's last stage computes in
                                            it: 41 % of values are one level higher (ops/images.py)
"""

import math
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import jax
import numpy as np
from absl import flags
from etils import epath
from jax.experimental import multihost_utils
from tqdm import tqdm

from r3gan_jax import factory, runs, sample_sets
from r3gan_jax.cli.shared.numbers import Numbers, parse_numbers
from r3gan_jax.cli.shared.outputs import check_mp4, output_path
from r3gan_jax.cli.shared.processes import join_processes
from r3gan_jax.cli.shared.runner import run
from r3gan_jax.data.images import to_straight_alpha
from r3gan_jax.errors import UserError
from r3gan_jax.progress_bar import progress_bar
from r3gan_jax.runs import TrainedRun
from r3gan_jax.sampling import (
  FRAME_RATE,
  Sampler,
  image_grid,
  labels_of_seeds,
  noise_path,
  save_png,
  save_pngs,
  save_video,
)
from r3gan_jax.storage import failing_as, write_npz
from r3gan_jax.training.distributed import gathered, is_first_process, on_first_process
from r3gan_jax.training.mesh import make_mesh

_WORKDIR = flags.DEFINE_string("workdir", None, "The work directory of the run.", required=True)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "", "The checkpoint: its images seen, or 'best'; default: the newest.")
_SEEDS = flags.DEFINE_string("seeds", "0-63", "Seeds, e.g. 0-63 or 1,5,10-19.")
_CLASS = flags.DEFINE_string("class", None, "Classes to draw, e.g. 3 or 0-9; default: each seed draws one.")
_CONDITION = flags.DEFINE_string(
  "condition", None, "Images from which an image-to-image GAN draws: a directory or zip."
)
_INTERPOLATE = flags.DEFINE_float(
  "interpolate", None, "Seconds from each seed to the next, in a .gif or .mp4.", lower_bound=1 / FRAME_RATE
)
_TRUNCATION = flags.DEFINE_float(
  "truncation", 1.0, "Variety of the images: from 1, as trained, to 0, all alike.", lower_bound=0.0, upper_bound=1.0
)
_OUT = flags.DEFINE_string(
  "out", None, "A .png, .npz, .zip or directory; a .gif or .mp4 with --interpolate.", required=True
)
_QUANTISATION = flags.DEFINE_string(
  "quantisation", "", "How images become uint8, 'float32' or 'official'; default: the run's setting."
)

_VIDEOS = (".gif", ".mp4")
_MIN_VIDEO_SIDE = 256
"""Smaller frames are enlarged, in pixels."""
_COPIES = 3
"""How often the images of one file are in memory at the same time, at most."""

Row = tuple[int, int | None]
"""The seed and the class of an image."""


@dataclass(frozen=True)
class Request:
  """The images to draw: every seed in each of `classes`, or, without them, in the class that it draws, if any."""

  seeds: Numbers
  classes: Numbers | None
  num_classes: int

  def __len__(self) -> int:
    return len(self.seeds) * (len(self.classes) if self.classes else 1)

  def __iter__(self) -> Iterator[Row]:
    if self.classes:
      return ((seed, label) for label in self.classes for seed in self.seeds)
    return ((seed, self._own_class(seed)) for seed in self.seeds)

  def _own_class(self, seed: int) -> int | None:
    return int(labels_of_seeds(np.array([seed]), self.num_classes)[0]) if self.num_classes else None

  def __contains__(self, row: Row | None) -> bool:
    return row is not None and row[0] in self.seeds and (not self.classes or row[1] in self.classes)

  def distinct(self) -> "Request":
    """Returns every seed and class once."""
    return Request(self.seeds.distinct(), self.classes and self.classes.distinct(), self.num_classes)

  def arrays(self, rows: Sequence[Row]) -> tuple[np.ndarray, ...]:
    """Converts rows to seeds int64 [n] and, with classes, labels int32 [n]."""
    seeds = np.array([seed for seed, _ in rows], np.int64)
    return (seeds, np.array([label for _, label in rows], np.int32)) if self.num_classes else (seeds,)


def main() -> None:
  join_processes()
  seeds = parse_numbers("seeds", _SEEDS.value, 2**32)
  out, kind = output_path("out", _OUT.value, (".png", ".npz", ".zip", *_VIDEOS), directory=True)
  _check_video(kind, seeds)
  trained = runs.open_run(_WORKDIR.value, _CHECKPOINT.value)
  if _CONDITION.value:
    trained = runs.on_conditions(trained, _CONDITION.value)
  num_classes = trained.algorithm.num_classes
  request = Request(seeds, _classes(num_classes), num_classes)
  steps = round(_INTERPOLATE.value * FRAME_RATE) if _INTERPOLATE.value else 1
  if kind in ("", ".zip"):
    request = request.distinct()  # equal names would be equal images
  else:
    _check_memory(steps * len(request), trained.algorithm.image_shape)
  trained.config.run.quantisation = _QUANTISATION.value or trained.config.run.quantisation
  quantised_in = factory.quantised_in(trained.config, trained.algorithm)
  mesh, truncation = make_mesh(jax.local_devices()), _TRUNCATION.value
  sampler = Sampler(trained.algorithm, mesh, truncation=truncation, quantised_in=quantised_in, title=trained.title)
  there = 0
  with failing_as(f"cannot write --out={out}", out):
    if kind in _VIDEOS:
      _write_video(out, sampler, trained, request, steps)
    elif kind in ("", ".zip"):
      networks = trained.params, trained.carry
      settings = sample_sets.settings_of(trained.title, networks, truncation, quantised_in.name)
      if kind == ".zip":
        _write_zip(out, sampler, trained, request, settings)
      else:
        there = _write_directory(out, sampler, trained, request, settings)
    else:
      images = np.concatenate(list(_drawn(sampler, trained, request)))
      if is_first_process():
        _write_file(out, kind, images, request, trained.config.run.grid_scale)
  if is_first_process():
    before = f" ({there:,} of them were there)" if there else ""
    print(f"{steps * len(request):,} images{before} of the checkpoint at {trained.images_seen:,} images seen: {out}")


def _check_video(kind: str, seeds: Numbers) -> None:
  if (kind in _VIDEOS) != bool(_INTERPOLATE.value):
    raise UserError(f"--out={_OUT.value}: a .gif or .mp4 goes with --interpolate, and nothing else does")
  if _INTERPOLATE.value and len(seeds) < 2:
    raise UserError(f"--seeds={_SEEDS.value} is one seed, and --interpolate needs at least two")
  if kind == ".mp4":
    check_mp4("out", _OUT.value)


def _check_memory(count: int, image_shape: tuple[int, int, int]) -> None:
  """Raises a UserError if one file of so many images would not fit in memory, where it is assembled."""
  needed = _COPIES * count * math.prod(image_shape)
  if needed > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
    size = "x".join(map(str, image_shape[:2]))
    raise UserError(
      f"--out={_OUT.value}: {count:,} images of {size} in one file need {needed / 2**30:,.0f} GiB of memory: draw "
      "fewer, or write a directory or .zip"
    )


def _classes(num_classes: int) -> Numbers | None:
  wanted = _CLASS.value
  if wanted is not None and not num_classes:
    raise UserError(f"--class={wanted}: the run in {_WORKDIR.value} has no classes: leave --class out")
  if wanted is not None:
    return parse_numbers("class", wanted, num_classes)
  if _CONDITION.value:
    return Numbers((range(num_classes),))
  if num_classes and _INTERPOLATE.value:
    raise UserError(f"--interpolate stays within a class: choose classes, e.g. --class=0-{num_classes - 1}")
  return None


def _drawn(sampler: Sampler, trained: TrainedRun, request: Request) -> Iterator[np.ndarray]:
  """Yields uint8 [., H, W, C], all images in order on every process; each draws a share."""
  batch, first, left = sampler.batch, jax.process_index() * sampler.batch, len(request)
  parts = (request.arrays(rows[first : first + batch]) for rows in _chunks(request, batch * jax.process_count()))
  with _progress(left) as bar:
    for images in sampler.drawn(trained.params, trained.carry, parts):
      images = gathered(images, batch)[:left]
      left -= len(images)
      yield images
      bar.update(len(images))


def _chunks(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
  rows = iter(rows)
  while chunk := list(islice(rows, size)):
    yield chunk


def _progress(total: int, initial: int = 0) -> tqdm:
  return progress_bar(total=total, title="samples", initial=initial, quiet=not is_first_process())


def _write_directory(
  out: epath.Path, sampler: Sampler, trained: TrainedRun, request: Request, settings: Mapping[str, Any]
) -> int:
  """Writes the images that are not there yet; returns how many are. Each process draws and writes a share."""
  on_first_process(lambda: sample_sets.claim_directory(out, settings))
  there = sample_sets.present(out)
  before = sum(sample_sets.seed_and_label(name) in request for name in there)
  process, processes, batch = jax.process_index(), jax.process_count(), sampler.batch

  def missing() -> Iterator[tuple[Row, str]]:
    for index, row in enumerate(request):
      if index // batch % processes == process and (name := sample_sets.name_of(*row)) not in there:
        yield row, name

  def images() -> Iterator[np.ndarray]:
    parts = map(request.arrays, _chunks((row for row, _ in missing()), batch))
    with _progress(len(request) // processes, before // processes) as bar:
      for images in sampler.drawn(trained.params, trained.carry, parts):
        yield images
        bar.update(len(images))

  save_pngs(out, (name for _, name in missing()), images())
  multihost_utils.sync_global_devices("samples written")
  if is_first_process():
    sample_sets.write_labels(out)
  return before


def _write_zip(
  out: epath.Path, sampler: Sampler, trained: TrainedRun, request: Request, settings: Mapping[str, Any]
) -> None:
  on_first_process(lambda: sample_sets.check_zip(out, settings))
  batches = _drawn(sampler, trained, request)
  if is_first_process():
    sample_sets.write_zip(out, (sample_sets.name_of(*row) for row in request), batches, settings)
  else:
    deque(batches, maxlen=0)  # this process's share


def _write_file(out: epath.Path, kind: str, images: np.ndarray, request: Request, scale: int) -> None:
  if kind == ".png":
    several = request.classes and len(request.classes) > 1
    columns = len(request.seeds) if several else math.ceil(math.sqrt(len(images)))
    save_png(out, image_grid(images, columns), scale)
  else:
    names = ("seeds", "labels")
    write_npz(
      out, {"images": to_straight_alpha(images)} | dict(zip(names, request.arrays(list(request)), strict=False))
    )


def _write_video(out: epath.Path, sampler: Sampler, trained: TrainedRun, request: Request, steps: int) -> None:
  """Writes the way through the seeds, in all classes side by side."""
  noise = noise_path(trained.algorithm, sampler.noise(np.array(list(request.seeds))), steps)
  several = len(request.classes) if request.classes else 1
  labels = np.repeat(list(request.classes), len(noise)) if request.classes else None
  noise = np.tile(noise, (several, 1))
  share = -(-len(noise) // jax.process_count())
  mine = slice(jax.process_index() * share, (jax.process_index() + 1) * share)
  batches = sampler.batches(trained.params, trained.carry, noise[mine], None if labels is None else labels[mine])
  images = gathered(np.concatenate(list(batches)), share)[: len(noise)]
  if is_first_process():
    frames = images.reshape(several, -1, *images.shape[1:]).swapaxes(0, 1)
    columns = math.ceil(math.sqrt(several))
    save_video(out, (image_grid(frame, columns) for frame in frames), -(-_MIN_VIDEO_SIDE // images.shape[1]))


if __name__ == "__main__":
  run(main)
