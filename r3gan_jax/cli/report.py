"""Writes a run's report on one page, runs/NAME/report.html: `python -m r3gan_jax.cli.report --workdir=runs/NAME`.

The page is self-contained. It may be written at any time, also while the run trains.
"""

from absl import flags
from etils import epath

from r3gan_jax.cli.shared.runner import run
from r3gan_jax.errors import UserError
from r3gan_jax.reporting import drawing, series
from r3gan_jax.reporting.page import page
from r3gan_jax.storage import as_path, failing_as, write_whole
from r3gan_jax.training.logging import read_events, read_metrics
from r3gan_jax.training.protocol import read_protocol
from r3gan_jax.training.workdir import read_config

_WORKDIR = flags.DEFINE_string("workdir", None, "The work directory of the run.", required=True)
_CURVES = flags.DEFINE_string("curves", None, "Also write the curves of training and of the scores to this .png.")

PANELS_IN_PICTURE = 3
"""The picture of --curves has this many panels of training, and those of the scores."""


def main() -> None:
  workdir = as_path(_WORKDIR.value)
  config = read_config(workdir)
  with failing_as(f"cannot read {workdir}", workdir):
    metrics, events, protocol = read_metrics(workdir), read_events(workdir), read_protocol(workdir)
  scores = series.scores(metrics, protocol)
  if _CURVES.value:
    panels = series.training_panels(metrics, config)[:PANELS_IN_PICTURE] + series.score_panels(scores)
    if not panels:
      raise UserError(f"--curves: nothing has been logged in {workdir} yet")
    _write(as_path(_CURVES.value), drawing.png(panels), "--curves")
  text = page(workdir, config, metrics, events, protocol)
  _write(workdir / "report.html", text.encode(errors="replace"), "--workdir")
  for score in scores:
    best = f" (best {score.best[0]:g}, at {score.best[1]:,} images seen)" if score.best else ""
    print(f"{score.name}{score.suffix}: {score.curve.values[-1]:g}{best}")
  print(f"report: {workdir / 'report.html'}")


def _write(path: epath.Path, data: bytes, flag: str) -> None:
  with failing_as(f"{flag}: cannot write {path}", path):
    write_whole(path, data)


if __name__ == "__main__":
  run(main)
