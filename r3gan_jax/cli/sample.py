"""Draws images from a trained run: `python -m r3gan_jax.cli.sample --workdir=runs/NAME --seeds=0-63 --out=grid.png`.

A seed always gives the same image, whatever else is drawn with it. `--out` is a .png (one grid), a .npz (`images`
uint8 [n, H, W, C], `seeds` and, with classes, `labels`) or a directory (one PNG per seed).

    --class=3                               all seeds in class 3; by default each seed also draws its class
    --class=0-9                             every seed in every class; in a grid, a row per class, a column per seed
    --interpolate=2 --out=walk.gif          2 seconds from each seed to the next and back to the first, as a loop;
                                            .mp4 after `pip install -e '.[video]'`; classes move side by side
    --truncation=0.7                        less varied, more typical images: StyleGAN2's w moves 0.3 of the way to
                                            its mean; R3GAN's noise is multiplied by 0.7 (not in the paper)
    --quantisation=official                 uint8 as in the official code, in bfloat16 if G's last stage computes in
                                            it: 41 % of values are one level higher (ops/images.py)
"""

import importlib.util
import math

import jax
import numpy as np
from absl import flags
from etils import epath

from r3gan_jax import factory, runs
from r3gan_jax.cli.shared.numbers import parse_numbers
from r3gan_jax.cli.shared.processes import join_processes
from r3gan_jax.cli.shared.runner import run
from r3gan_jax.errors import UserError
from r3gan_jax.sampling import (
  FRAME_RATE,
  Sampler,
  image_grid,
  interpolation,
  labels_of_seeds,
  save_png,
  save_pngs,
  save_video,
)
from r3gan_jax.storage import as_path, failing_as, make_directory, write_npz
from r3gan_jax.training.distributed import gathered, is_first_process
from r3gan_jax.training.mesh import make_mesh

_WORKDIR = flags.DEFINE_string("workdir", None, "The work directory of the run.", required=True)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "", "Its images seen, or 'best'; default: the newest.")
_SEEDS = flags.DEFINE_string("seeds", "0-63", "Seeds, e.g. 0-63 or 1,5,10-19.")
_CLASS = flags.DEFINE_string("class", None, "Classes to draw, e.g. 3 or 0-9; default: each seed draws one.")
_INTERPOLATE = flags.DEFINE_float(
  "interpolate", None, "Seconds from each seed to the next, in a .gif or .mp4.", lower_bound=1 / FRAME_RATE
)
_TRUNCATION = flags.DEFINE_float(
  "truncation", 1.0, "Variety of the images: from 1, as trained, to 0, all alike.", lower_bound=0.0, upper_bound=1.0
)
_OUT = flags.DEFINE_string("out", None, "A .png, .npz or directory; a .gif or .mp4 with --interpolate.", required=True)
_QUANTISATION = flags.DEFINE_string(
  "quantisation", "", "How images become uint8, 'float32' or 'official'; default: the run's setting."
)

_VIDEOS = (".gif", ".mp4")
_MIN_VIDEO_SIDE = 256
"""Smaller frames are enlarged, in pixels."""


def main() -> None:
  join_processes()
  seeds = parse_numbers("seeds", _SEEDS.value, 2**32)
  out = as_path(_OUT.value)
  _check_video(out, seeds)
  trained = runs.open_run(_WORKDIR.value, _CHECKPOINT.value)
  classes = _classes(trained.algorithm.num_classes)
  trained.config.run.quantisation = _QUANTISATION.value or trained.config.run.quantisation
  quantised_in = factory.quantised_in(trained.config, trained.algorithm)
  sampler = Sampler(
    trained.algorithm, make_mesh(jax.local_devices()), truncation=_TRUNCATION.value, quantised_in=quantised_in
  )
  noise = sampler.noise(seeds)
  if _INTERPOLATE.value:
    noise = interpolation(noise, round(_INTERPOLATE.value * FRAME_RATE))
  labels = None
  if classes is not None:  # all noise in the first class, then all noise in the second, ...
    labels = np.repeat(classes, len(noise))
    noise, seeds = np.tile(noise, (len(classes), 1)), np.tile(seeds, len(classes))
  elif trained.algorithm.num_classes:
    labels = labels_of_seeds(seeds, trained.algorithm.num_classes)

  # Each process draws a share.
  share = -(-len(noise) // jax.process_count())
  mine = slice(jax.process_index() * share, (jax.process_index() + 1) * share)
  batches = sampler.batches(trained.params, trained.carry, noise[mine], None if labels is None else labels[mine])
  several = 1 if classes is None else len(classes)
  with failing_as(f"cannot write --out={out}", out):
    if out.suffix in (".png", ".npz", *_VIDEOS):
      images = gathered(np.concatenate(list(batches)), share)[: len(noise)]
      if is_first_process():
        _write_file(out, images, seeds, labels, several)
    else:
      make_directory(out)
      save_pngs(out, _names(seeds, labels if several > 1 else None)[mine], batches)
  if is_first_process():
    print(f"{len(noise)} images of the checkpoint at {trained.images_seen:,} images seen: {out}")


def _check_video(out: epath.Path, seeds: np.ndarray) -> None:
  if (out.suffix in _VIDEOS) != bool(_INTERPOLATE.value):
    raise UserError(f"--out={out}: a .gif or .mp4 goes with --interpolate, and nothing else does")
  if _INTERPOLATE.value and len(seeds) < 2:
    raise UserError(f"--seeds={_SEEDS.value} is one seed, and --interpolate needs at least two")
  if out.suffix == ".mp4" and importlib.util.find_spec("av") is None:
    raise UserError(f"--out={out} needs PyAV: pip install -e '.[video]', or write a .gif")


def _classes(num_classes: int) -> np.ndarray | None:
  wanted = _CLASS.value
  if wanted is not None and not num_classes:
    raise UserError(f"--class={wanted}: the run in {_WORKDIR.value} has no classes: leave --class out")
  if wanted is not None:
    return parse_numbers("class", wanted, num_classes).astype(np.int32)
  if num_classes and _INTERPOLATE.value:
    raise UserError(f"--interpolate stays within a class: choose classes, e.g. --class=0-{num_classes - 1}")
  return None


def _names(seeds: np.ndarray, labels: np.ndarray | None) -> list[str]:
  names = [f"seed{seed:08}.png" for seed in seeds.tolist()]
  if labels is None:
    return names
  return [f"class{label:04}_{name}" for label, name in zip(labels.tolist(), names, strict=True)]


def _write_file(
  out: epath.Path, images: np.ndarray, seeds: np.ndarray, labels: np.ndarray | None, several: int
) -> None:
  """Writes `images`, ordered by class, of which there are `several`."""
  if out.suffix == ".png":
    columns = len(images) // several if several > 1 else math.ceil(math.sqrt(len(images)))
    save_png(out, image_grid(images, columns))
  elif out.suffix == ".npz":
    write_npz(out, {"images": images, "seeds": seeds} | ({} if labels is None else {"labels": labels}))
  else:
    frames = images.reshape(several, -1, *images.shape[1:]).swapaxes(0, 1)
    columns = math.ceil(math.sqrt(several))
    save_video(out, (image_grid(frame, columns) for frame in frames), -(-_MIN_VIDEO_SIDE // images.shape[1]))


if __name__ == "__main__":
  run(main)
