"""Converts a snapshot of the official PyTorch implementation to a work directory, and a work directory back:

    python -m r3gan_jax.cli.convert network-snapshot-000010000.pkl --out=runs/NAME    # or an http(s) URL
    python -m r3gan_jax.cli.convert --workdir=runs/NAME --out=state.npz

Nothing in the snapshot is executed, and PyTorch is not needed. cli.sample draws from the work directory as it is.
Training continues, from weights, Adam's second moments and images seen, with any recipe of the same networks: `python
main.py --config=... --workdir=runs/NAME`. Evaluation needs the recipe's data. Published FIDs are of images that were
quantised in bfloat16: use --quantisation=official with cli.evaluate and cli.sample, and
--config.run.quantisation=official with main.py.

The .npz has, with official names and in PyTorch's layout, `G/NAME`, `D/NAME` and `G_ema/NAME`, Adam's
`G_opt_state/exp_avg_sq/NAME` and `G_opt_state/step`, the same for D, and `cur_nimg`. In PyTorch:

    state = np.load("state.npz")
    G_ema.load_state_dict({name[6:]: torch.from_numpy(state[name]) for name in state if name.startswith("G_ema/")})
"""

import re
import tempfile
from pathlib import Path
from typing import Any

import jax
from absl import flags

from r3gan_jax import runs
from r3gan_jax.cli.shared.outputs import output_path
from r3gan_jax.cli.shared.runner import run
from r3gan_jax.conversion import as_snapshot, write_workdir
from r3gan_jax.errors import UserError
from r3gan_jax.interop.download import check_sum, fetch
from r3gan_jax.interop.official import Snapshot, official_arrays, read_snapshot
from r3gan_jax.storage import write_npz

_OUT = flags.DEFINE_string(
  "out", None, "The work directory to write; with --workdir, the .npz to write.", required=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "The work directory to convert back.")
_CHECKPOINT = flags.DEFINE_string(
  "checkpoint", "", "With --workdir: the checkpoint, as images seen or 'best'; default: the newest."
)
_SHA256 = flags.DEFINE_string("sha256", "", "The first digits of the snapshot's SHA-256; default: not verified.")


def main(snapshot: str = "") -> None:
  if bool(snapshot) == bool(_WORKDIR.value):
    raise UserError("give either a snapshot, as a file or an http(s) URL, or a --workdir")
  if "://" in _OUT.value:
    raise UserError(f"--out={_OUT.value}: write to a local path, and copy it from there")
  suffixes = () if snapshot else (".npz",)
  out = Path(output_path("out", _OUT.value, suffixes, directory=bool(snapshot))[0])
  try:
    if snapshot:
      _to_workdir(snapshot, out)
    else:
      _to_npz(out)
  except OSError as error:
    raise UserError(f"cannot write --out={out}: {error.strerror or error}") from None


def _to_workdir(name: str, out: Path) -> None:
  if out.exists() and not (out.is_dir() and not any(out.iterdir())):
    raise UserError(f"--out={out} exists and is not empty: choose another directory")
  snapshot = _read(name)
  write_workdir(snapshot, out)
  side = 4 * 2 ** (len(snapshot.generator.widths) - 1)
  print(
    f"G and D of {_count(snapshot.params['generator']):,} and {_count(snapshot.params['discriminator']):,} parameters, "
    f"{side}x{side}, {snapshot.generator.num_classes or 'no'} classes, {snapshot.images_seen:,} images seen: {out}"
  )
  if not all(snapshot.updates.values()):
    print("the snapshot has no state of Adam: training would start from second moments of zero")


def _to_npz(out: Path) -> None:
  _, algorithm, state = runs.open_state(_WORKDIR.value or "", _CHECKPOINT.value)
  arrays = official_arrays(as_snapshot(algorithm, state))
  write_npz(out, arrays)
  print(f"the checkpoint at {int(state.images_seen):,} images seen: {out}")


def _read(name: str) -> Snapshot:
  sha256 = _SHA256.value.lower()
  if not re.fullmatch("[0-9a-f]{0,64}", sha256):
    raise UserError(f"--sha256={sha256}: give at most 64 hexadecimal digits")
  if re.match("https?://", name):
    with tempfile.TemporaryDirectory() as directory:
      path = Path(directory) / "snapshot.pkl"
      fetch(name, path, sha256, otherwise="give the file instead of the URL")
      return read_snapshot(path)
  path = Path(name).expanduser()
  if sha256 and path.is_file():
    check_sum(path, sha256)
  return read_snapshot(path)


def _count(params: Any) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(params))


if __name__ == "__main__":
  run(main, max_arguments=1)
