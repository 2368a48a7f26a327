"""Writes the averaged generator of a run as a folder in the form of the Hugging Face Hub, and uploads it if asked to:

    python -m r3gan_jax.cli.publish --workdir=runs/NAME --out=published
    python -m r3gan_jax.cli.publish --workdir=runs/NAME --out=published --licence=cc-by-4.0 --push=OWNER/NAME

In Python, `r3gan_jax.load("published")` or, after `pip install -e '.[hub]'`, `r3gan_jax.load("hf://OWNER/NAME")`. The
folder has

    config.json         the settings, without local paths
    model.safetensors   the averaged generator by names such as "generator.Dense_0.kernel"
    samples.png         the images of seeds 0 to 63
    README.md           the model card: data, recipe, images seen, scores and their protocol, limits

Scores are those that the run has logged for this checkpoint: cli.evaluate adds some.

    --all               model.safetensors also has D and the other networks, the weights before averaging
                        ("unaveraged.generator. ...") and the optimisers ("optimizer.generator. ...")
    --push=OWNER/NAME   needs huggingface_hub (extra "hub") and your login, by `hf auth login` or HF_TOKEN
"""

import re
from pathlib import Path

from absl import flags

from r3gan_jax import runs
from r3gan_jax.cli.shared.outputs import output_path
from r3gan_jax.cli.shared.runner import run
from r3gan_jax.errors import UserError
from r3gan_jax.interop import hub
from r3gan_jax.published import WEIGHTS_FILE, write_published
from r3gan_jax.storage import as_path, failing_as, is_remote

_WORKDIR = flags.DEFINE_string("workdir", None, "The work directory of the run.", required=True)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "", "The checkpoint: its images seen, or 'best'; default: the newest.")
_OUT = flags.DEFINE_string("out", None, "The folder to write.", required=True)
_LICENCE = flags.DEFINE_string(
  "licence", "unknown", "Of the weights, one of https://huggingface.co/docs/hub/repositories-licenses"
)
_ALL = flags.DEFINE_bool("all", False, "Also publish D and the optimisers.")
_PUSH = flags.DEFINE_string("push", "", "Also upload the folder as OWNER/NAME.")
_PRIVATE = flags.DEFINE_bool("private", False, "With --push: only the owner sees it.")


def main() -> None:
  out = _out()
  if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", _LICENCE.value):
    raise UserError(f"--licence={_LICENCE.value}: give an identifier of the Hub such as apache-2.0, mit or cc-by-4.0")
  if _PRIVATE.value and not _PUSH.value:
    raise UserError("--private is about the upload: add --push=OWNER/NAME")
  if _PUSH.value:
    hub.check_upload(_PUSH.value)
  config, algorithm, state = runs.open_state(_WORKDIR.value, _CHECKPOINT.value)
  trained = runs.averaged_run(_WORKDIR.value, config, algorithm, state)
  address = f"{hub.SCHEME}{_PUSH.value}" if _PUSH.value else out.name
  with failing_as(f"cannot write --out={out}", out):
    write_published(trained, as_path(_WORKDIR.value), out, _LICENCE.value, address, state if _ALL.value else None)
  size = (out / WEIGHTS_FILE).stat().st_size
  print(f"the generator at {trained.images_seen:,} images seen, {size / 2**20:.1f} MiB: {out}")
  if _PUSH.value:
    print(f"uploaded: {hub.upload(out, _PUSH.value, _PRIVATE.value)}")


def _out() -> Path:
  if is_remote(_OUT.value):
    raise UserError(f"--out={_OUT.value}: write to a local folder, and copy it from there")
  out = Path(output_path("out", _OUT.value, directory=True)[0])
  if out.exists() and any(out.iterdir()):
    raise UserError(f"--out={out} exists and is not empty: choose another folder")
  return out


if __name__ == "__main__":
  run(main)
