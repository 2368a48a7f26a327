"""Draws images from a trained run: `python -m r3gan_jax.cli.sample --workdir=runs/NAME --seeds=0-63 --out=grid.png`.

One seed gives the same image whatever else is drawn with it. `--out` names a .png (one grid), a .npz (array `images`,
uint8 [n, H, W, C], and `seeds` and, if conditional, `labels`), or a directory (one PNG a seed).
"""

import math
from io import BytesIO

import jax
import numpy as np
from absl import flags
from etils import epath

from r3gan_jax import runs
from r3gan_jax.cli.processes import join_processes
from r3gan_jax.cli.runner import run
from r3gan_jax.errors import UserError
from r3gan_jax.sampling import Sampler, image_grid, labels_of_seeds, save_png
from r3gan_jax.storage import as_path, failing_as, make_directory
from r3gan_jax.training.distributed import gathered, is_first_process
from r3gan_jax.training.mesh import make_local_mesh

_WORKDIR = flags.DEFINE_string("workdir", None, "The work directory of the run.", required=True)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "", "Its images seen, or 'best'; default: the newest.")
_SEEDS = flags.DEFINE_string("seeds", "0-63", "Seeds, e.g. 0-63 or 1,5,10-19.")
_CLASS = flags.DEFINE_integer("class", None, "The class to draw; default: one drawn from each seed.")
_OUT = flags.DEFINE_string("out", None, "A .png, a .npz, or a directory.", required=True)


def main() -> None:
  join_processes()
  seeds = parse_seeds(_SEEDS.value)
  out = as_path(_OUT.value)
  trained = runs.open_run(_WORKDIR.value, _CHECKPOINT.value)
  labels = _labels(trained.algorithm.num_classes, seeds)
  # Of several processes each draws a share.
  share = -(-len(seeds) // jax.process_count())
  mine = slice(jax.process_index() * share, (jax.process_index() + 1) * share)
  sampler = Sampler(trained.algorithm, make_local_mesh())
  images = sampler(trained.params, trained.carry, seeds[mine], None if labels is None else labels[mine])
  with failing_as(f"cannot write --out={out}", out):
    if out.suffix not in (".png", ".npz"):
      _write_directory(out, images, seeds[mine])
    else:
      images = gathered(images, share)[: len(seeds)]
      if is_first_process():
        _write_file(out, images, seeds, labels)
  if is_first_process():
    print(f"{len(seeds)} images of the checkpoint at {trained.images_seen:,} images seen: {out}")


def parse_seeds(text: str) -> np.ndarray:
  """ "0-2,7" -> [0, 1, 2, 7]."""
  seeds: list[int] = []
  for part in text.split(","):
    first, dash, last = part.partition("-")
    try:
      part_seeds = range(int(first), int(last if dash else first) + 1)
    except ValueError:
      part_seeds = range(0)
    if not part_seeds or part_seeds[-1] >= 2**32:
      raise UserError(f"--seeds={text}: {part!r} is neither a number nor a range such as 0-63")
    seeds += part_seeds
  return np.array(seeds, np.int64)


def _labels(num_classes: int, seeds: np.ndarray) -> np.ndarray | None:
  wanted = _CLASS.value
  if wanted is None:
    return labels_of_seeds(seeds, num_classes) if num_classes else None
  if not num_classes:
    raise UserError(f"--class={wanted}: the run in {_WORKDIR.value} has no classes; leave --class out")
  if not 0 <= wanted < num_classes:
    raise UserError(f"--class={wanted}: choose from 0 to {num_classes - 1}")
  return np.full(len(seeds), wanted, np.int32)


def _write_file(out: epath.Path, images: np.ndarray, seeds: np.ndarray, labels: np.ndarray | None) -> None:
  make_directory(out.parent)
  if out.suffix == ".png":
    save_png(out, image_grid(images, math.ceil(math.sqrt(len(images)))))
    return
  buffer = BytesIO()
  arrays = {"images": images, "seeds": seeds} | ({} if labels is None else {"labels": labels})
  np.savez(buffer, **arrays)  # type: ignore[arg-type]
  out.write_bytes(buffer.getvalue())


def _write_directory(out: epath.Path, images: np.ndarray, seeds: np.ndarray) -> None:
  make_directory(out)
  for seed, image in zip(seeds.tolist(), images, strict=True):
    save_png(out / f"seed{seed:08}.png", image)


if __name__ == "__main__":
  run(main)
