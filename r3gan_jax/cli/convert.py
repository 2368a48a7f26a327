"""Turns a snapshot of the official PyTorch implementation into a work directory, and a work directory back:

    python -m r3gan_jax.cli.convert network-snapshot-000010000.pkl --out=runs/NAME    # or an http(s) URL
    python -m r3gan_jax.cli.convert --workdir=runs/NAME --out=state.npz

Nothing in the snapshot is executed, and PyTorch is not needed. The directory is one to draw samples from as it is, and
one to go on training with any recipe of the same networks, from its weights, its Adams' second moments and its images
seen: `python main.py --config=... --workdir=runs/NAME`; the recipe also says what data it is evaluated on.

The .npz holds, in PyTorch's layout and by their official names, `G/NAME`, `D/NAME` and `G_ema/NAME`, Adam's
`G_opt_state/exp_avg_sq/NAME` and `G_opt_state/step`, the same of D, and `cur_nimg`. In PyTorch:

    state = np.load("state.npz")
    G_ema.load_state_dict({name[6:]: torch.from_numpy(state[name]) for name in state if name.startswith("G_ema/")})
"""

import re
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from r3gan_jax import factory
from r3gan_jax.cli.runner import run
from r3gan_jax.errors import UserError
from r3gan_jax.interop.download import check_sum, fetch
from r3gan_jax.interop.official import Snapshot, read_snapshot, resampling_kernels, to_state_dict
from r3gan_jax.training.checkpoint import Checkpoints
from r3gan_jax.training.optimizer import AdamState
from r3gan_jax.training.state import TrainState
from r3gan_jax.training.workdir import claim_workdir

_OUT = flags.DEFINE_string("out", None, "The work directory to make; with --workdir, the .npz to write.", required=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "The work directory to convert back.")
_CHECKPOINT = flags.DEFINE_integer("checkpoint", None, "With --workdir: images seen; default: the newest.")
_SHA256 = flags.DEFINE_string("sha256", "", "What the snapshot's SHA-256 begins with; default: it is not checked.")

_SEED = 0
"""Of what training draws from here on; the official one is not in the snapshot."""


def main(snapshot: str = "") -> None:
  if bool(snapshot) == bool(_WORKDIR.value):
    raise UserError("name either a snapshot, a file or an http(s) URL, or a --workdir")
  if snapshot:
    to_workdir(snapshot, Path(_OUT.value), _SHA256.value.lower())
  else:
    to_npz(_WORKDIR.value or "", Path(_OUT.value), _CHECKPOINT.value)


def to_workdir(snapshot: str, out: Path, sha256: str = "") -> None:
  """Writes a work directory, whole or not at all; a UserError where `out` is taken or the snapshot is refused."""
  if not re.fullmatch("[0-9a-f]{0,64}", sha256):
    raise UserError(f"--sha256={sha256} is not written in hexadecimal digits, 64 of them at most")
  if out.exists() and not (out.is_dir() and not any(out.iterdir())):
    raise UserError(f"--out={out} exists: name another directory")
  official = _read(snapshot, sha256)
  config, state = configuration(official, snapshot), train_state(official)
  try:
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{out.name}.", dir=out.parent) as directory:
      workdir = claim_workdir(Path(directory) / out.name, config)
      checkpoints = Checkpoints(workdir / "checkpoints")
      checkpoints.save(state)
      checkpoints.close()
      workdir.rename(out)
  except OSError as error:
    raise UserError(f"cannot write --out={out}: {error.strerror or error}") from None
  side = config["data"]["resolution"]
  print(
    f"{_count(official.params['generator']):,} parameters of G, {_count(official.params['discriminator']):,} of D, "
    f"{side}x{side}, {official.generator.num_classes or 'no'} classes, {official.images_seen:,} images seen: {out}"
  )
  if not all(official.updates.values()):
    print("the snapshot holds no state of Adam: training would go on from second moments of zero")


def to_npz(workdir: str, out: Path, images_seen: int | None = None) -> None:
  """Writes a checkpoint by official names and in PyTorch's layout; a UserError where there is none."""
  if out.suffix != ".npz":
    raise UserError(f"--out={out}: with --workdir it names an .npz")
  algorithm, state = factory.open_state(workdir, images_seen)
  arrays: dict[str, np.ndarray] = {"cur_nimg": np.asarray(state.images_seen)}
  for letter, name in (("G", "generator"), ("D", "discriminator")):
    network, adam = getattr(algorithm, name), state.optimizer[name]
    parts = {letter: state.params[name], f"{letter}_opt_state/exp_avg_sq": adam.second_moment}
    if name in state.ema:
      parts[f"{letter}_ema"] = state.ema[name]
    for part, params in parts.items():
      arrays |= {f"{part}/{key}": value for key, value in to_state_dict(network, params).items()}
    for part in parts.keys() - {f"{letter}_opt_state/exp_avg_sq"}:
      arrays |= {f"{part}/{key}": value for key, value in resampling_kernels(network).items()}
    arrays[f"{letter}_opt_state/step"] = np.asarray(adam.updates)
  try:
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{out.name}.", dir=out.parent) as directory:
      np.savez(Path(directory) / out.name, **arrays)  # type: ignore[arg-type]
      (Path(directory) / out.name).replace(out)
  except OSError as error:
    raise UserError(f"cannot write --out={out}: {error.strerror or error}") from None
  print(f"the checkpoint at {int(state.images_seen):,} images seen: {out}")


def configuration(snapshot: Snapshot, title: str) -> dict[str, Any]:
  """The settings that a snapshot fixes, as in configs/common.py; a UserError where no settings say what it is."""
  generator, discriminator = snapshot.generator, snapshot.discriminator
  found, expected = (generator.embed_dim, discriminator.embed_dim), (generator.noise_dim, generator.widths[0])
  if generator.num_classes and found != expected:
    raise UserError(
      f"{title}: the class embeddings of G and D have the lengths {found}; config.network knows no others than "
      f"{expected}, noise_dim and widths[0]: interop.official.read_snapshot reads it for use without a configuration"
    )
  shape = ("widths", "cardinalities", "blocks", "expansion", "noise_dim", "bfloat16_stages")
  return {
    "seed": _SEED,
    "algorithm": "r3gan",
    "data": {
      "resolution": 4 * 2 ** (len(generator.widths) - 1),
      "channels": generator.image_channels,
      "num_classes": generator.num_classes,
    },
    "network": {name: getattr(generator, name) for name in shape},
  }


def train_state(snapshot: Snapshot) -> TrainState:
  """The state that training goes on from."""
  return jax.device_put(
    TrainState(
      params=snapshot.params,
      optimizer={
        name: AdamState(jnp.int32(snapshot.updates[name]), moments) for name, moments in snapshot.second_moments.items()
      },
      ema={"generator": snapshot.ema},
      carry={},
      rng=jax.random.key(_SEED),
      images_seen=jnp.int32(snapshot.images_seen),
    )
  )


def _read(snapshot: str, sha256: str) -> Snapshot:
  if re.match("https?://", snapshot):
    with tempfile.TemporaryDirectory() as directory:
      path = Path(directory) / "snapshot.pkl"
      fetch(snapshot, path, sha256, otherwise="name the file in place of the URL")
      return read_snapshot(path)
  path = Path(snapshot).expanduser()
  if sha256 and path.is_file():
    check_sum(path, sha256)
  return read_snapshot(path)


def _count(params: Any) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(params))


if __name__ == "__main__":
  run(main, max_arguments=1)
