"""Makes moving averages of any length after training:

    python -m r3gan_jax.cli.posthoc_ema --workdir=runs/NAME --std=0.03,0.07,0.15 --out=runs/NAME_averages

combines those that a run with config.gan.ema_stds has kept, and writes a work directory for each,
runs/NAME_averages/std_0.03 and so on. cli.sample draws from it and cli.evaluate scores it; cli.export, cli.publish,
config.init_from and, in Python, `r3gan_jax.load` take it. D, and G before averaging, are those of the checkpoint at
--images or, if that is gone, of the newest.

--std is the standard deviation of the weights of the average over time, relative to the length of the training up to
--images (docs/training.md).
"""

from pathlib import Path

from absl import flags, logging

from r3gan_jax import runs
from r3gan_jax.cli.shared.outputs import output_path
from r3gan_jax.cli.shared.runner import run
from r3gan_jax.conversion import write_state
from r3gan_jax.errors import UserError
from r3gan_jax.settings import relative_std
from r3gan_jax.storage import as_path, failing_as, is_remote
from r3gan_jax.training import checkpoint, posthoc
from r3gan_jax.training.workdir import read_config

_WORKDIR = flags.DEFINE_string("workdir", None, "The work directory of the run.", required=True)
_STD = flags.DEFINE_list("std", None, "One or more relative standard deviations, e.g. 0.05,0.1.", required=True)
_IMAGES = flags.DEFINE_integer(
  "images", None, "The images seen of the snapshot, as if training had ended there; default: the newest."
)
_OUT = flags.DEFINE_string("out", None, "Where to write the work directories.", required=True)

_FAR = 0.1
"""The distance of a profile from the wanted one that is worth a warning."""


def main() -> None:
  stds = [_relative_std(text) for text in _STD.value]
  outs = {std: _out(f"std_{std}") for std in stds}
  directory = as_path(_WORKDIR.value) / posthoc.DIRECTORY
  config = read_config(_WORKDIR.value)
  stored = posthoc.stored_averages(directory)
  images_seen = _IMAGES.value if _IMAGES.value is not None else max(stored, default=0)
  kept = checkpoint.checkpoint_steps(as_path(_WORKDIR.value) / checkpoint.DIRECTORY)
  _, algorithm, state = runs.open_state(_WORKDIR.value, str(images_seen) if images_seen in kept else "")
  for std, out in outs.items():
    made, distance = posthoc.reconstructed(directory, algorithm, state, posthoc.Profile(images_seen, std))
    with failing_as(f"cannot write --out={out}", out):
      write_state(config, made, out)
    print(
      f"std {std} at {images_seen:,} images seen, with weights {distance:.1%} from the exact ones: {out}", flush=True
    )
    if distance > _FAR:
      logging.warning(
        "std %s cannot be made well from config.gan.ema_stds = %s and the %d snapshots up to %s images: choose one "
        "nearer to these",
        std,
        tuple(rule.std for rule in posthoc.power_averages(algorithm).values()),
        sum(time <= images_seen for time in stored),
        f"{images_seen:,}",
      )


def _relative_std(text: str) -> float:
  try:
    std = float(text)
  except ValueError:
    raise UserError(f"--std={text}: give numbers, such as 0.05,0.1") from None
  if wrong := relative_std(std):
    raise UserError(f"--std={text} {wrong}")
  return std


def _out(name: str) -> Path:
  if is_remote(_OUT.value):
    raise UserError(f"--out={_OUT.value}: write to a local path, and copy it from there")
  out = Path(output_path("out", f"{_OUT.value}/{name}/", directory=True)[0])
  if out.exists() and any(out.iterdir()):
    raise UserError(f"--out: {out} exists and is not empty: choose another directory")
  return out


if __name__ == "__main__":
  run(main)
