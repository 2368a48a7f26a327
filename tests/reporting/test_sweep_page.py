"""The page of a sweep, from results written by hand."""

import pytest
from etils import epath
from helpers.results import result
from PIL import Image

from r3gan_jax.reporting.results import Entry, Row, best_row, table
from r3gan_jax.reporting.sweep_page import FIGURE, Point, best, write_sweep_page

FIDS = {"0.1": (50.0, 52.0, 54.0), "1": (40.0, 41.0, 42.0), "x2": (41.0, 40.0, 43.5), "10": (10.0, 10.0)}
POINTS = {f"gamma_{text}": Point({"gan.gamma": text}, f"train --gamma={text}") for text in FIDS}
ROWS = [
  Row(Entry(f"gamma_{text}", "", "", ""), [result(f"gamma_{text}", seed, fid) for seed, fid in enumerate(fids)], [])
  for text, fids in FIDS.items()
]
ROWS[-1].results.append(result("gamma_10", 2, diverged_at=777))


def test_the_best_has_the_best_mean_and_did_not_diverge():
  assert best_row(ROWS, "fid").entry.name == "gamma_1" and best_row(ROWS[3:], "fid") is None
  highest = [Row(ROWS[0].entry, [result("a", 0, 1.0, recall=recall)], []) for recall in (1, 3, 2, 0)]
  assert best_row(highest, "recall") is highest[1]


def test_the_best_is_named_with_what_is_as_good():
  """By two standard errors; one run alone tells nothing."""
  assert best(POINTS, ROWS) == (
    "Best: gan.gamma = 1, with FID 41 ± 1. Within two standard errors of it: gan.gamma = x2. To train with it:\n\n"
    "    train --gamma=1"
  )
  alone = [Row(row.entry, row.results[:1], []) for row in ROWS[:2]]
  assert "with FID 40. Too few runs have scores to tell it from gan.gamma = 0.1." in best(POINTS, alone)


@pytest.mark.parametrize("texts", [("0.1", "1", "x2", "10"), ("relu", "1", "2", "3"), ("0", "-1", "2", "3")])
def test_the_page(tmp_path, texts):
  """On a logarithmic axis, one in turns, and a linear one; and with a second setting."""
  points = {
    name: Point({"gan.gamma": text, "batch_size": size}, point.command)
    for (name, point), text, size in zip(POINTS.items(), texts, ("64", "64", "128", "128"), strict=True)
  }
  bounds = {"real images": {"fid": 1.5}}
  write_sweep_page(epath.Path(tmp_path), "A title", points, ROWS, bounds)
  page = (tmp_path / "README.md").read_text()
  assert page.startswith(f"# A title\n\n{best(points, ROWS)}\n") and table(ROWS, bounds) in page and FIGURE in page
  assert "group" not in table(ROWS, bounds) and "control" not in table(ROWS, bounds)
  with Image.open(tmp_path / FIGURE) as picture:
    assert picture.width > 500
