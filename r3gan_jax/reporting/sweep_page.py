"""The page of a sweep: the best values, a plot of the score against them, a table and a wall of samples."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from r3gan_jax.reporting.comparison_page import PAGE, plt, png, write_wall
from r3gan_jax.reporting.drawing import make_logarithmic
from r3gan_jax.reporting.results import (
  Bounds,
  Row,
  best_row,
  difference,
  main_score,
  mean_and_std,
  table,
  title,
)
from r3gan_jax.storage import write_whole

FIGURE = "sweep.png"
"""The plot, beside the results."""

_SPREAD = 8.0
"""Positive values get a logarithmic axis if the largest is this many times the smallest."""


class Point(NamedTuple):
  """An entry of a sweep: the text of each setting's value, and the command that trains with them at full length."""

  values: Mapping[str, str]
  command: str

  @property
  def label(self) -> str:
    return ", ".join(f"{name} = {value}" for name, value in self.values.items())


def write_sweep_page(
  results: epath.Path, heading: str, points: Mapping[str, Point], rows: Sequence[Row], bounds: Bounds
) -> None:
  """Writes the page of `rows`, which are at least one, and its pictures into the directory of their results.

  Args:
    heading: the title of the page.
    points: by the name of the entry.
  """
  write_whole(results / FIGURE, figure(points, rows, bounds))
  parts = [f"# {heading}", best(points, rows), f"![{title(main_score(rows))}]({FIGURE})"]
  parts += [_reading(rows), table(rows, bounds).rstrip(), *write_wall(results, rows)]
  write_whole(results / PAGE, "\n\n".join(parts) + "\n")


def best(points: Mapping[str, Point], rows: Sequence[Row]) -> str:
  """Returns, as Markdown, the best values, which others may be as good, and the command that trains with the best."""
  score = main_score(rows)
  first = best_row(rows, score)
  if not first:
    return "No values have scores without a run that diverged."
  point, values = points[first.entry.name], first.values(score)
  words = f"Best: {point.label}, with {title(score)} {mean_and_std(values)}."
  compared = {row.entry.name: difference(values, row.values(score)) for row in rows if row is not first}
  if unknown := [points[name].label for name, found in compared.items() if found is None]:
    words += f" Too few runs have scores to tell it from {'; '.join(unknown)}."
  if alike := [points[name].label for name, found in compared.items() if found and not found[1]]:
    words += f" Within two standard errors of it: {'; '.join(alike)}."
  return f"{words} To train with it:\n\n    {point.command}"


def _reading(rows: Sequence[Row]) -> str:
  result = next(result for row in rows for result in row.results)
  return (
    f"Each run has {result.images:,} images, and what the recipe counts in images was changed in proportion: a longer "
    f"run may prefer other values. Scores are of {result.protocol.get('num_samples', 0):,} samples at the end of a "
    "run, mean and standard deviation over seeds. Rows in italics are floors and ceilings."
  )


def figure(points: Mapping[str, Point], rows: Sequence[Row], bounds: Bounds) -> bytes:
  """Draws, as PNG, the score against the first setting: a line of means and a dot per run for all others alike.

  Crosses at the top have diverged. The dashed line is the score of real images.
  """
  score = main_score(rows)
  (setting, *_) = points[rows[0].entry.name].values
  texts = list(dict.fromkeys(points[row.entry.name].values[setting] for row in rows))
  places, logarithmic = _places(texts)
  canvas, axis = plt.subplots(figsize=(5.6, 3.6), layout="constrained")
  lines: dict[str, list[Row]] = {}
  for row in rows:
    others = {name: value for name, value in points[row.entry.name].values.items() if name != setting}
    lines.setdefault(Point(others, "").label, []).append(row)
  for index, (label, alike) in enumerate(lines.items()):
    colour = f"C{index % 10}"
    alike.sort(key=lambda row: places[points[row.entry.name].values[setting]])
    means = []
    for row in alike:
      x, values = places[points[row.entry.name].values[setting]], row.values(score)
      axis.plot([x] * len(values), values, "o", color=colour, markersize=5, alpha=0.6)
      diverged = sum(result.diverged_at is not None for result in row.results)
      axis.plot([x] * diverged, [0.97] * diverged, "x", color=colour, transform=axis.get_xaxis_transform())
      means.append((x, np.mean(values) if values else np.nan))
    axis.plot(*zip(*means, strict=True), color=colour, label=label)
  if score in (real := bounds.get("real images", {})):
    axis.axhline(real[score], color="0.4", linestyle="--", linewidth=1, label="real images")
  if logarithmic:
    axis.set_xscale("log")
  lowest, highest = axis.dataLim.intervaly
  if score in ("fid", "modes_kl", "intra_fid") and lowest > 0:
    make_logarithmic(axis, np.log10(highest / lowest))
  axis.set_xticks([places[text] for text in texts], texts)
  axis.set_xticks([], minor=True)
  axis.set_xlabel(f"config.{setting}", parse_math=False)
  axis.set_ylabel(title(score), parse_math=False)
  axis.grid(alpha=0.2)
  if axis.get_legend_handles_labels()[1]:
    axis.legend(framealpha=0)
  return png(canvas)


def _places(texts: Sequence[str]) -> tuple[dict[str, float], bool]:
  """Returns where values are on the axis, and whether it is logarithmic; what is no number takes its turn."""
  try:
    numbers = [float(text.removeprefix("x")) for text in texts]
  except ValueError:
    return {text: float(place) for place, text in enumerate(texts)}, False
  lowest, highest = min(numbers), max(numbers)
  return dict(zip(texts, numbers, strict=True)), 0 < lowest * _SPREAD <= highest
