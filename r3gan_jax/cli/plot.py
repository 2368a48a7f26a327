"""Plots a run: `python -m r3gan_jax.cli.plot --workdir=runs/NAME` writes runs/NAME/curves.png."""

from io import BytesIO

import matplotlib
from absl import flags
from etils import epath

from r3gan_jax.cli.runner import run
from r3gan_jax.errors import UserError
from r3gan_jax.training.logging import read_metrics

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_WORKDIR = flags.DEFINE_string("workdir", None, "The work directory of the run.", required=True)

PANELS = {
  "adversarial losses": (("discriminator/adversarial_loss", "D"), ("generator/loss", "G")),
  "gradient penalties": (("discriminator/r1", "R1 (on reals)"), ("discriminator/r2", "R2 (on fakes)")),
  "relativistic logits: mean sign": (("discriminator/relativistic_sign", "D"), ("generator/relativistic_sign", "G")),
  "modes": (("metrics/modes", "modes hit"),),
  "KL(samples || uniform), nats": (("metrics/modes_kl", "KL"),),
}


def main() -> None:
  workdir = epath.Path(_WORKDIR.value)
  try:
    metrics = read_metrics(workdir)
  except FileNotFoundError:
    raise UserError(f"{workdir} holds no metrics.jsonl: name the work directory of a run") from None
  panels = {
    title: [(label, *metrics[name]) for name, label in curves if name in metrics] for title, curves in PANELS.items()
  }
  panels = {title: curves for title, curves in panels.items() if curves}
  figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.4), layout="constrained", squeeze=False)
  for axis, (title, curves) in zip(axes[0], panels.items(), strict=True):
    for label, images_seen, values in curves:
      axis.plot(images_seen / 1000, values, label=label, marker="o" if len(values) < 20 else None, markersize=3)
    axis.set(title=title, xlabel="images seen (thousands)")
    axis.grid(alpha=0.3)
    if len(curves) > 1:
      axis.legend()
  buffer = BytesIO()
  figure.savefig(buffer, format="png", dpi=110)
  (workdir / "curves.png").write_bytes(buffer.getvalue())
  for name in ("modes", "modes_kl"):
    if f"metrics/{name}" in metrics:
      print(f"{name}: {metrics[f'metrics/{name}'][1][-1]:g}")
  print(f"curves: {workdir / 'curves.png'}\nsamples: {workdir / 'samples'}")


if __name__ == "__main__":
  run(main)
