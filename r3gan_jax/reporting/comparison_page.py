"""The page of a comparison: a table, a figure of quality, diversity and stability, and a wall of samples."""

from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import Any

import matplotlib
from etils import epath

from r3gan_jax.reporting.results import COLLAPSED, Bounds, Row, main_score, result_path, scores_of, table, title
from r3gan_jax.settings import counts_images
from r3gan_jax.storage import write_whole
from r3gan_jax.training.workdir import flatten

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

PAGE, FIGURE, WALL = "README.md", "axes.png", "samples.png"
"""The files of a page, beside the results."""

_DIVERSITY = (("recall", "coverage"), ("modes_kl",), ("intra_fid",))
"""The scores of diversity, of which the figure shows the first group that there is."""
_OF_THE_RUN = ("name", "seed", "algorithm")
"""Settings that say which run it is."""


def write_page(results: epath.Path, heading: str, rows: Sequence[Row], bounds: Bounds) -> None:
  """Writes the page of `rows`, which are at least one, and its pictures into the directory of their results."""
  write_whole(results / FIGURE, figure(rows, bounds))
  parts = [f"# {heading}", _reading(rows), table(rows, bounds).rstrip()]
  given = [f"- {row.entry.name}: {row.entry.given}" for row in rows if row.entry.given]
  if given:
    parts += ["What each got beyond the common budget, and where the protocol is unfair to it:", "\n".join(given)]
  unlike = list(_unlike_controls(rows))
  if unlike:
    parts += ["Settings that an entry and its control both have, at other values (the control's in brackets):"]
    parts += ["\n".join(unlike)]
  parts.append(f"![quality, diversity and stability]({FIGURE})")
  parts += write_wall(results, rows)
  write_whole(results / PAGE, "\n\n".join(parts) + "\n")


def _unlike_controls(rows: Sequence[Row]) -> Iterator[str]:
  """Yields a line per entry: the settings that its control has, too, but with another value.

  What counts images is left out of runs of one budget, which has changed it with their length.
  """
  settings = {row.entry.name: flatten(dict(row.results[0].settings)) for row in rows if row.results}
  for row in rows:
    own, control = settings.get(row.entry.name), settings.get(row.entry.control)
    if own and control:
      shared = own.keys() & control.keys() - set(_OF_THE_RUN)
      if row.results[0].multiply_adds:
        shared = {name for name in shared if not (name.startswith("gan.") and counts_images(name[4:]))}
      changed = [
        f"{name.removeprefix('gan.')} {_shown(own[name])} ({_shown(control[name])})"
        for name in sorted(shared)
        if own[name] != control[name]
      ]
      if changed:
        yield f"- {row.entry.name}, beside {row.entry.control}: {', '.join(changed)}"


def _shown(value: Any) -> str:
  """Returns a setting as a reader writes it; two floats are the ends of a schedule."""
  if isinstance(value, list):
    ends = list(map(_shown, value))
    if len(value) == 2 and all(isinstance(end, float) for end in value):
      return ends[0] if ends[0] == ends[1] else " to ".join(ends)
    return "-".join(ends)
  return f"{value:g}" if isinstance(value, float) else str(value)


def write_wall(results: epath.Path, rows: Sequence[Row]) -> list[str]:
  """Writes the wall of samples beside the results; returns the page's words about it, none if there are no samples."""
  samples = [(row.entry.name, path) for row in rows if (path := _samples_of(results, row))]
  if not samples:
    return []
  write_whole(results / WALL, wall(samples))
  return [
    "Samples of the moving average, where there is one, at the end of the run with the first seed; not chosen:",
    f"![samples]({WALL})",
  ]


def _reading(rows: Sequence[Row]) -> str:
  """Returns how to read the table."""
  result = next(result for row in rows for result in (*row.results, *row.other_rates))
  score = title(main_score(rows))
  budget = f"{result.multiply_adds:.3g} multiply-adds" if result.multiply_adds else "as many images as its line says"
  samples = result.protocol.get("num_samples", 0)
  return (
    f"Each run has {budget}; scores are of {samples:,} samples, mean and standard deviation over seeds. {score} "
    "against the control, in brackets, is the difference of means that is beyond two of its standard errors. A run "
    f"has collapsed if its last {score} is more than {COLLAPSED:g} times its best one. Rows in italics are floors and "
    "ceilings. Parameters are those of G / D."
  )


def figure(rows: Sequence[Row], bounds: Bounds) -> bytes:
  """Draws, as PNG, a line per entry and a dot per run: quality, diversity and stability.

  Filled dots are runs with the recipe's learning rates, hollow ones with others, crosses have diverged. Dashed lines
  are the floors and ceilings.
  """
  names, main = scores_of(rows), main_score(rows)
  found = ([name for name in group if name in names and name != main] for group in _DIVERSITY)
  diversity = next(filter(None, found), [])
  panels = [main, *diversity]
  count = len(panels) + 1
  canvas, axes = plt.subplots(
    1, count, figsize=(3.6 * count + 1.2, 0.28 * len(rows) + 1.4), sharey=True, layout="constrained", squeeze=False
  )
  groups = list(dict.fromkeys(row.entry.group for row in rows))
  for place, row in enumerate(rows):
    colour = f"C{groups.index(row.entry.group) % 10}"
    for axis, score in zip(axes[0], panels, strict=False):
      _dots(axis, row.values(score), place, colour, filled=True)
      _dots(axis, [r.scores[score] for r in row.other_rates if score in r.scores], place, colour, filled=False)
    stability = axes[0][-1]
    for results, filled in ((row.results, True), (row.other_rates, False)):
      _dots(stability, [v for r in results if (v := r.last_over_best(main)) is not None], place, colour, filled)
      diverged = sum(r.diverged_at is not None for r in results)
      # At the right edge, wherever that is.
      stability.plot(
        [0.98] * diverged, [place] * diverged, "x", color=colour, transform=stability.get_yaxis_transform()
      )
  for axis, kind, score in zip(axes[0], ("quality", *["diversity"] * len(diversity)), panels, strict=False):
    axis.set_title(f"{kind}: {title(score)}", parse_math=False)
    for index, (name, scores) in enumerate(bounds.items()):
      if score in scores:
        axis.axvline(scores[score], color="0.4", linestyle=("--", ":", "-.")[index % 3], linewidth=1, label=name)
    if score in ("fid", "modes_kl", "intra_fid"):
      axis.set_xscale("log")
  axes[0][-1].set_title(f"stability: last {title(main)} / best", parse_math=False)
  axes[0][-1].axvline(COLLAPSED, color="0.4", linewidth=1)
  axes[0][0].set_yticks(range(len(rows)), [row.entry.name for row in rows], parse_math=False)
  axes[0][0].set_ylim(len(rows) - 0.5, -0.5)
  for axis in axes[0]:
    axis.grid(alpha=0.2)
  if bounds:
    handles, labels = axes[0][0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=max(1, len(labels)), frameon=False)
  return png(canvas)


def _dots(axis: Axes, values: Sequence[float], place: int, colour: str, filled: bool) -> None:
  face = colour if filled else "none"
  axis.plot(values, [place] * len(values), "o", color=colour, markerfacecolor=face, markersize=5, alpha=0.8)


def wall(samples: Sequence[tuple[str, epath.Path]]) -> bytes:
  """Draws a row of samples per (name, picture), as PNG."""
  pictures = [plt.imread(BytesIO(path.read_bytes()), format="png") for _, path in samples]
  height, width = pictures[0].shape[:2]
  scale = max(1.0, 640 / width) / 100
  canvas, axes = plt.subplots(
    len(samples), 1, figsize=(scale * width + 1.6, (scale * height + 0.06) * len(samples)), squeeze=False
  )
  canvas.subplots_adjust(left=1.6 / (scale * width + 1.6), right=1, top=1, bottom=0, hspace=0.04)
  for axis, (name, _), picture in zip(axes[:, 0], samples, pictures, strict=True):
    axis.imshow(picture, interpolation="nearest", cmap="gray", vmin=0, vmax=1)
    axis.set_axis_off()
    axis.text(-0.01, 0.5, name, transform=axis.transAxes, ha="right", va="center", parse_math=False)
  return png(canvas)


def _samples_of(results: epath.Path, row: Row) -> epath.Path | None:
  """Returns the picture of the first run that has one."""
  paths = (result_path(results, row.entry.name, f"seed_{result.seed}").with_suffix(".png") for result in row.results)
  return next((path for path in paths if path.exists()), None)


def png(canvas: Figure) -> bytes:
  """Returns a figure as PNG, and closes it."""
  buffer = BytesIO()
  canvas.savefig(buffer, format="png", dpi=100)
  plt.close(canvas)
  return buffer.getvalue()
