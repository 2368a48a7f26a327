"""The results of a comparison: one small file a run, and what they amount to in a table."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from r3gan_jax.errors import UserError
from r3gan_jax.factory import BEST_METRICS
from r3gan_jax.reporting.series import TITLES

BOUNDS = "bounds"
"""The file of the floors and ceilings, and the name of their run."""
COLLAPSED = 2.0
"""A run has collapsed whose last score is worse than its best one by this factor."""

_SHORT = {"modes": "modes", "modes_kl": "KL", "class_accuracy": "class accuracy"}


@dataclass(frozen=True)
class Result:
  """The end of a run.

  Attributes:
    entry: its name in the comparison.
    seed: of the run.
    rate: what its learning rates were multiplied by.
    recipe: the name of its recipe.
    settings: all but those of `run`, before the budget changed their length.
    multiply_adds: the budget; 0: the recipe's own images.
    images: that were to be seen.
    multiply_adds_per_image: of training, per image seen.
    seconds_per_1000_images: of training, the median over the run; None: it ended before it was measured.
    parameters: by network.
    diverged_at: the images seen when a loss or gradient was not finite; None: it did not happen.
    protocol: of the scores at the end.
    curves: score -> 'images_seen' and 'values' during the run, by the protocol of the recipe.
    scores: at the end, by name; none if it diverged.
  """

  entry: str
  seed: int
  rate: float
  recipe: str
  settings: Mapping[str, Any]
  multiply_adds: float
  images: int
  multiply_adds_per_image: float
  seconds_per_1000_images: float | None
  parameters: Mapping[str, int]
  diverged_at: int | None
  protocol: Mapping[str, str | int | float]
  curves: Mapping[str, Mapping[str, Sequence[float]]]
  scores: Mapping[str, float]

  @classmethod
  def read(cls, path: epath.Path) -> "Result":
    """Reads a file of a run; raises a UserError if it is damaged."""
    values = read_json(path)
    if values.keys() != {field.name for field in fields(cls)}:
      raise UserError(f"{path} is no result of this version: delete it, and run the same command again")
    return cls(**values)

  def last_over_best(self, score: str) -> float | None:
    """Returns how much worse the last value during the run is than the best one; None: it was not measured."""
    curve = self.curves.get(score)
    if not curve or self.diverged_at is not None:
      return None
    last, lowest, highest = curve["values"][-1], min(curve["values"]), max(curve["values"])
    return last / max(lowest, 1e-12) if BEST_METRICS[score][1] == "min" else highest / max(last, 1e-12)


class Entry(NamedTuple):
  """An entry of a comparison, as a reader sees it; see configs/comparisons/common.py."""

  name: str
  group: str
  control: str
  given: str


class Row(NamedTuple):
  """An entry and its results: with its own learning rates, and with others."""

  entry: Entry
  results: list[Result]
  other_rates: list[Result]

  def values(self, score: str) -> list[float]:
    """Returns a score at the end of every run that has it."""
    return [result.scores[score] for result in self.results if score in result.scores]


Bounds = Mapping[str, Mapping[str, float]]
"""Name of a set of images -> score -> value."""


def result_path(results: epath.Path, entry: str, run: str) -> epath.Path:
  """Returns the file of a run; the picture of its samples has the same name but for the suffix."""
  return results / f"{entry}_{run}.json"


def read_json(path: epath.Path) -> dict[str, Any]:
  """Reads a JSON object; raises a UserError if it is damaged."""
  try:
    values = json.loads(path.read_text())
    if isinstance(values, dict):
      return values
  except (OSError, ValueError):
    pass
  raise UserError(f"{path} cannot be read: delete it, and run the same command again")


def read_results(results: epath.Path, entries: Sequence[Entry]) -> tuple[list[Row], Bounds]:
  """Returns the entries that have results, in their order, and the floors and ceilings."""
  found = [Result.read(path) for path in sorted(results.glob("*_seed_*.json"))]
  found.sort(key=lambda result: (result.rate, result.seed))
  rows = []
  for entry in entries:
    own = [result for result in found if result.entry == entry.name]
    if own:
      rows.append(Row(entry, [r for r in own if r.rate == 1], [r for r in own if r.rate != 1]))
  path = results / f"{BOUNDS}.json"
  return rows, read_json(path)["scores"] if path.exists() else {}


def scores_of(rows: Sequence[Row]) -> list[str]:
  """Returns the names of the scores that some run has."""
  return [name for name in BEST_METRICS if any(row.values(name) for row in rows)]


def main_score(rows: Sequence[Row]) -> str:
  """Returns the score by which runs collapse and controls are compared: FID, else the KL of modes, else the first."""
  names = scores_of(rows)
  return next((name for name in ("fid", "modes_kl") if name in names), names[0] if names else "fid")


def best_row(rows: Sequence[Row], score: str) -> Row | None:
  """Returns the row with the best mean of a score, of those of which no run has diverged; None: there is none."""
  steady = [row for row in rows if row.values(score) and all(r.diverged_at is None for r in row.results)]
  choose = min if BEST_METRICS[score][1] == "min" else max
  return choose(steady, key=lambda row: np.mean(row.values(score)), default=None)


def table(rows: Sequence[Row], bounds: Bounds) -> str:
  """Returns a Markdown table: a row per entry, and one for each floor and ceiling; columns that say nothing go."""
  names, main = scores_of(rows), main_score(rows)
  by_name = {row.entry.name: row for row in rows}
  columns: dict[str, Callable[[Row], str]] = {
    "system": lambda row: row.entry.name,
    "group": lambda row: row.entry.group,
    "seeds": lambda row: str(len(row.results)),
    **{title(name): lambda row, name=name: mean_and_std(row.values(name)) for name in names},  # type: ignore[misc]
    f"{title(main)} against its control": lambda row: _against(row, by_name.get(row.entry.control), main),
    "collapsed": lambda row: _ends(row, main),
    f"{title(main)} at other learning rates": lambda row: _other_rates(row, main),
    "million multiply-adds an image": lambda row: _mean(row, lambda r: r.multiply_adds_per_image / 1e6),
    "images": lambda row: _mean(row, lambda r: r.images, "{:,.0f}"),
    "s / 1000 images": lambda row: _mean(row, lambda r: r.seconds_per_1000_images),
    "parameters": lambda row: _parameters(row),
  }
  cells_of = {name: [column(row) for row in rows] for name, column in columns.items()}
  cells_of = {name: cells for name, cells in cells_of.items() if any(cells)}
  lines = [list(cells_of), ["---"] * len(cells_of), *map(list, zip(*cells_of.values(), strict=True))]
  for name, scores in bounds.items():
    cells = dict.fromkeys(cells_of, "") | {"system": f"*{name}*"}
    cells |= {title(score): _number(scores[score], 4) for score in names if score in scores}
    lines.append(list(cells.values()))
  return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def title(score: str) -> str:
  """Returns the name of a score in a table."""
  return _SHORT.get(score) or TITLES.get(score, score.replace("_", " "))


def mean_and_std(values: Sequence[float]) -> str:
  """Returns mean and sample standard deviation, "-" of nothing."""
  if not values:
    return "-"
  return _number(np.mean(values), 4) + (f" ± {_number(np.std(values, ddof=1), 2)}" if len(values) > 1 else "")


def difference(values: Sequence[float], control: Sequence[float]) -> tuple[float, bool] | None:
  """Returns the difference of the means, and whether it is beyond two standard errors of itself; None: unknown.

  With three seeds a side, two standard errors are weak evidence.
  """
  if min(len(values), len(control)) < 2:
    return None
  error = np.sqrt(sum(np.var(side, ddof=1) / len(side) for side in (values, control)))
  of_means = float(np.mean(values) - np.mean(control))
  return of_means, bool(abs(of_means) > 2 * error)


def _against(row: Row, control: Row | None, score: str) -> str:
  found = difference(row.values(score), control.values(score)) if control else None
  if not found or not control:
    return f"({row.entry.control})" if row.entry.control else ""
  shown = f"{'+' if found[0] > 0 else ''}{_number(found[0], 3)}" if found[1] else "no difference seen"
  return f"{shown} ({control.entry.name})"


def _ends(row: Row, score: str) -> str:
  diverged = [result.diverged_at for result in row.results if result.diverged_at is not None]
  ratios = [result.last_over_best(score) for result in row.results]
  collapsed = sum(ratio is not None and ratio > COLLAPSED for ratio in ratios)
  parts = [f"{collapsed} of {len(row.results)}"] * bool(collapsed)
  if diverged:
    parts.append(f"{len(diverged)} of {len(row.results)} diverged, at {' and '.join(f'{at:,}' for at in diverged)}")
  return "; ".join(parts) or ("none" if row.results else "")


def _other_rates(row: Row, score: str) -> str:
  return ", ".join(
    f"x {result.rate:g}: "
    + ("diverged" if result.diverged_at is not None else mean_and_std([v for v in [result.scores.get(score)] if v]))
    for result in row.other_rates
  )


def _mean(row: Row, value: Callable[[Result], float | None], form: str = "") -> str:
  values = [found for found in map(value, row.results) if found is not None]
  if not values:
    return "-"
  return form.format(np.mean(values)) if form else _number(np.mean(values), 3)


def _parameters(row: Row) -> str:
  counts = next((result.parameters for result in row.results), {})
  return " / ".join(f"{count:,}" for _, count in sorted(counts.items(), key=lambda item: item[0], reverse=True))


def _number(value: float | np.floating, digits: int) -> str:
  return np.format_float_positional(value, precision=digits, fractional=False, trim="-")
