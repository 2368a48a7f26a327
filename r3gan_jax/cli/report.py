"""Writes a run's report on one page, runs/NAME/report.html: `python -m r3gan_jax.cli.report --workdir=runs/NAME`.

The page is self-contained. It may be written at any time, also while the run trains.
"""

import base64
import html
import json
import re
from collections.abc import Sequence
from datetime import datetime
from importlib import resources
from io import BytesIO
from itertools import starmap
from string import Template
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from absl import flags
from etils import epath
from PIL import Image

from r3gan_jax.cli.shared.runner import run
from r3gan_jax.errors import UserError
from r3gan_jax.storage import as_path, failing_as, write_whole
from r3gan_jax.training.logging import read_metrics
from r3gan_jax.training.workdir import flatten, read_config

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

_WORKDIR = flags.DEFINE_string("workdir", None, "The work directory of the run.", required=True)
_CURVES = flags.DEFINE_string("curves", None, "Also write the curves of training and of the metrics to this .png.")

MAX_GRIDS = 24
MAX_GRIDS_BYTES = 1_500_000
"""Grids larger than this in total are embedded as JPEGs of at most `MAX_SIDE` pixels a side."""
MAX_SIDE = 1024

TRAINING = {
  "adversarial losses": {"discriminator/adversarial_loss": "D", "generator/loss": "G"},
  "gradient penalties": {"discriminator/r1": "R1 (on reals)", "discriminator/r2": "R2 (on fakes)"},
  "relativistic logits: mean sign": {"discriminator/relativistic_sign": "D", "generator/relativistic_sign": "G"},
  "D's loss with its penalties": {"discriminator/loss": "D"},
  "D's mean logits": {"discriminator/real_logits": "of reals", "discriminator/fake_logits": "of fakes"},
  "gradient norms": {"discriminator/gradient_norm": "D", "generator/gradient_norm": "G"},
}
PANELS_IN_PICTURE = 3
"""The picture of --curves has the first panels of `TRAINING`, this many, and those of the metrics."""
TITLES = {
  "metrics/fid": "FID",
  "metrics/kid": "KID",
  "metrics/modes_kl": "KL(samples || uniform), nats",
  "hyperparameters/augment_p": "augmentation probability",
  "hyperparameters/beta2": "Adam's beta2",
  "hyperparameters/ema_half_life": "half-life of the moving average, images",
  "progress/images_per_second": "images/s",
  "progress/peak_memory_bytes": "peak memory, GiB",
}
SETTINGS = ("_samples", "num_real", "num_fake", "neighbours", "_subsets", "_subset_size", "_splits", "seed")
"""Endings of metrics that say how another was computed: shown in the table of metrics, not as curves."""
SCALES = {"progress/peak_memory_bytes": 2**-30}

Metrics = dict[str, tuple[np.ndarray, np.ndarray]]


class Curve(NamedTuple):
  label: str
  images_seen: np.ndarray  # int64 [n]
  values: np.ndarray  # float64 [n]


Panels = dict[str, list[Curve]]


def main() -> None:
  workdir = as_path(_WORKDIR.value)
  config = read_config(workdir)
  metrics = read_metrics(workdir)
  sections = arrange(metrics)
  if _CURVES.value:
    _write(as_path(_CURVES.value), _picture(sections), "--curves")
  _write(workdir / "report.html", _page(workdir, config, metrics, sections).encode(), "--workdir")
  for name, (_, values) in metrics.items():
    if name.startswith("metrics/"):
      print(f"{name.removeprefix('metrics/')}: {values[-1]:g}")
  print(f"report: {workdir / 'report.html'}")


def arrange(metrics: Metrics) -> dict[str, Panels]:
  """Returns all curves by section and panel: known ones of training share panels, every other has its own."""
  known = {name for names in TRAINING.values() for name in names}
  sections: dict[str, Panels] = {"Metrics": {}, "Training": {}, "Schedules": {}, "Speed and memory": {}, "Other": {}}
  for title, names in TRAINING.items():
    if curves := [Curve(label, *metrics[name]) for name, label in names.items() if name in metrics]:
      sections["Training"][title] = curves
  of_prefix = {"metrics": "Metrics", "hyperparameters": "Schedules", "progress": "Speed and memory"}
  for name, (images_seen, values) in metrics.items():
    prefix, _, rest = name.partition("/")
    if name in known or (prefix == "metrics" and rest.partition(" ")[0].endswith(SETTINGS)):
      continue
    fake = name.replace("metrics/real_", "metrics/")
    title = _title(fake.removeprefix(f"{prefix}/") if prefix in of_prefix else fake, fake)
    curve = Curve("of real images" if name != fake else title, images_seen, values * SCALES.get(name, 1))
    sections[of_prefix.get(prefix, "Other")].setdefault(title, []).append(curve)
  return {section: panels for section, panels in sections.items() if panels}


def _title(text: str, name: str) -> str:
  """Returns the title of the series `name`, by default `text`; another protocol, in brackets, is kept as it is."""
  text, space, protocol = text.partition(" ")
  return TITLES.get(name.partition(" ")[0], text.replace("_", " ")) + space + protocol


def _page(workdir: epath.Path, config: dict[str, Any], metrics: Metrics, sections: dict[str, Panels]) -> str:
  drawn = {path.stem.removeprefix("fakes_"): path for path in (workdir / "samples").glob("fakes_*.png")}
  grids = {int(count): path for count, path in sorted(drawn.items()) if count.isdecimal()}
  images_seen = max([*grids, *(int(seen[-1]) for seen, _ in metrics.values())], default=0)
  total = config.get("run", {}).get("total_images", 0)
  curves = "".join(
    f"<h2>{html.escape(section)}</h2>\n<div class=panels>{''.join(starmap(_panel, panels.items()))}</div>\n"
    for section, panels in sections.items()
  )
  settings = [(name, json.dumps(value)) for name, value in flatten(config).items()]
  template = Template(resources.files("r3gan_jax.cli").joinpath("report.html").read_text("utf-8"))
  return template.substitute(
    name=html.escape(str(config.get("name") or workdir.name)),
    workdir=html.escape(str(workdir)),
    images_seen=f"{images_seen:,}" + (f" of {total:,}" if total else ""),
    date=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    samples=_samples(workdir / "samples", grids),
    metrics=_metrics_table(metrics),
    curves=curves or "<p class=note>Nothing has been logged yet.</p>",
    settings_count=len(settings),
    settings=_table(("setting", "value"), settings),
  )


def _samples(directory: epath.Path, grids: dict[int, epath.Path]) -> str:
  """Returns the grids by images seen, with a slider, and the real images beside them."""
  if not grids:
    return "<p class=note>No samples have been drawn yet.</p>"
  every = list(grids)
  shown = [every[i] for i in np.unique(np.linspace(0, len(every) - 1, MAX_GRIDS).round().astype(int))]
  paths = {seen: grids[seen] for seen in shown}
  size = sum(path.stat().length for path in paths.values())
  compress = size > MAX_GRIDS_BYTES
  reals = directory / "reals.png"
  notes = []
  if len(shown) < len(every):
    notes.append(f"{len(shown)} of {len(every)} grids, evenly spread")
  if compress:
    notes.append(f"compressed to JPEGs of at most {MAX_SIDE} pixels")
  if notes:
    notes.append("all grids at full quality are in the run's directory samples")
  images = "".join(
    _image(path, f"{seen:,} images seen", compress, hidden=seen != shown[-1]) for seen, path in paths.items()
  )
  last = len(shown) - 1
  return (
    f"<div class=samples><figure id=grids>{images}<figcaption>"
    f"<label>Generated, at <output>{shown[-1]:,} images seen</output>"
    f"<input type=range min=0 max={last} value={last}{' hidden' if last == 0 else ''}></label></figcaption></figure>"
    + (f"<figure>{_image(reals, 'Real', compress)}<figcaption>Real</figcaption></figure>" if reals.exists() else "")
    + _pictures(directory, compress)
    + "</div>\n"
    + (f"<p class=note>{'; '.join(notes).capitalize()}.</p>" if notes else "")
  )


def _pictures(directory: epath.Path, compress: bool) -> str:
  """Returns the newest picture of each kind that the GAN draws besides samples: NAME_0000012345.png."""
  newest = {}
  for path in sorted(directory.glob("*_*.png")):
    name, _, count = path.stem.rpartition("_")
    if name != "fakes" and count.isdecimal():
      newest[name.replace("_", " ").capitalize()] = path, int(count)
  return "".join(
    f"<figure>{_image(path, name, compress)}<figcaption>{html.escape(name)}, at {count:,} images seen"
    "</figcaption></figure>"
    for name, (path, count) in newest.items()
  )


def _image(path: epath.Path, text: str, compress: bool, hidden: bool = False) -> str:
  data, kind = path.read_bytes(), "png"
  try:
    image = Image.open(BytesIO(data))
    image.load()
  except OSError as error:
    raise UserError(
      f"{path} cannot be read ({error}): delete it, or wait until it is complete, and report again"
    ) from None
  if compress:
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    buffer = BytesIO()
    image.convert("L" if image.mode in ("L", "LA") else "RGB").save(buffer, "JPEG", quality=85)
    data, kind = buffer.getvalue(), "jpeg"
  source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
  size = f"width={image.width} height={image.height}"
  return f'<img alt="{html.escape(text)}" {size} src="{source}"{" hidden" if hidden else ""}>'


def _metrics_table(metrics: Metrics) -> str:
  rows = [
    (_title(name.removeprefix("metrics/"), name), f"{values[-1]:,.6g}", f"{images_seen[-1]:,}")
    for name, (images_seen, values) in metrics.items()
    if name.startswith("metrics/")
  ]
  if not rows:
    return "<p class=note>No metrics have been computed.</p>"
  return _table(("metric", "last value", "at images seen"), rows)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
  def row(cells: tuple[str, ...], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>\n"

  return f"<table>\n{row(head, 'th')}{''.join(row(cells, 'td') for cells in rows)}</table>"


_INK = "#010203"


def _panel(title: str, curves: list[Curve]) -> str:
  """Returns one panel as SVG in the page's own colour, light or dark, with the last values below it."""
  inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color")
  settings: Any = {"svg.fonttype": "none"} | dict.fromkeys(inked, _INK)
  with plt.rc_context(settings):
    figure, axis = plt.subplots(figsize=(4.2, 3.1), layout="constrained")
    _draw(axis, title, curves)
    buffer = BytesIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    plt.close(figure)
  svg = buffer.getvalue().decode()
  svg = re.sub(
    r'<g id="[^"]*">', "<g>", svg[svg.index("<svg") :]
  )  # ids that every figure repeats; nothing refers to them
  last = ", ".join((f"{curve.label}: " if len(curves) > 1 else "") + f"{curve.values[-1]:,.4g}" for curve in curves)
  return f"<figure>{svg.replace(_INK, 'currentColor')}<figcaption>last {html.escape(last)}</figcaption></figure>\n"


def _draw(axis: Axes, title: str, curves: list[Curve]) -> None:
  millions = max(curve.images_seen[-1] for curve in curves) >= 10_000_000
  for label, images_seen, values in curves:
    marker = "o" if len(values) < 20 else None
    axis.plot(images_seen / (1e6 if millions else 1e3), values, label=label, marker=marker, markersize=3)
  # A metric's name is text, not a formula.
  axis.set_title(title, parse_math=False)
  axis.set_xlabel(f"images seen ({'millions' if millions else 'thousands'})")
  axis.ticklabel_format(useOffset=False)
  axis.grid(alpha=0.2)
  if len(curves) > 1:
    axis.legend(framealpha=0)


def _picture(sections: dict[str, Panels]) -> bytes:
  """Returns the most important curves, side by side, as PNG."""
  panels = list(sections.get("Training", {}).items())[:PANELS_IN_PICTURE] + list(sections.get("Metrics", {}).items())
  if not panels:
    raise UserError(f"--curves: nothing has been logged in {_WORKDIR.value} yet")
  figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.4), layout="constrained", squeeze=False)
  for axis, panel in zip(axes[0], panels, strict=True):
    _draw(axis, *panel)
  buffer = BytesIO()
  figure.savefig(buffer, format="png", dpi=110)
  plt.close(figure)
  return buffer.getvalue()


def _write(path: epath.Path, data: bytes, flag: str) -> None:
  with failing_as(f"{flag}: cannot write {path}", path):
    write_whole(path, data)


if __name__ == "__main__":
  run(main)
