"""The table and the page of a comparison, from results written by hand."""

import json
from dataclasses import asdict
from io import BytesIO

import pytest
from etils import epath
from helpers.results import result
from PIL import Image

from r3gan_jax.errors import UserError
from r3gan_jax.reporting.comparison_page import figure, write_page
from r3gan_jax.reporting.results import Entry, Result, Row, difference, mean_and_std, read_results, result_path, table

ENTRIES = (
  Entry("plain", "nets", "", ""),
  Entry("better", "nets", "plain", "Labels."),
  Entry("wild", "nets", "plain", ""),
)


RESULTS = (
  *(result("plain", seed, fid, recall=0.25) for seed, fid in enumerate((50.0, 52.0, 54.0))),
  *(result("better", seed, fid, recall=0.5) for seed, fid in enumerate((40.0, 41.0, 42.0))),
  result("better", 0, 44.0, rate=0.5),
  result("better", 0, rate=2.0, diverged_at=777),
  result("wild", 0, 53.0, curve=(30, 10, 20.5)),
  result("wild", 1, 51.0, curve=(30, 10, 20)),
  result("wild", 2, diverged_at=12_345),
)


@pytest.fixture
def results(tmp_path):
  for one in RESULTS:
    run = f"seed_{one.seed}" + (f"_rate_{one.rate:g}" if one.rate != 1 else "")
    path = result_path(epath.Path(tmp_path), one.entry, run)
    path.write_text(json.dumps(asdict(one)))
    Image.new("L", (50, 8), 99).save(path.with_suffix(".png"))
  bounds = {"scores": {"real images": {"fid": 1.5, "recall": 0.9}, "one image": {"fid": 300.0, "recall": 0.0}}}
  (tmp_path / "bounds.json").write_text(json.dumps(bounds))
  return epath.Path(tmp_path)


def test_the_figure_has_a_panel_for_each_score_of_diversity():
  """Beside quality and stability; of recall and coverage both, before the KL of modes."""

  def width(**scores):
    return Image.open(BytesIO(figure([Row(ENTRIES[0], [result("plain", 0, 50.0, **scores)], [])], {}))).width

  assert width() == 840 and width(recall=0.2) == width(modes_kl=0.3) == 1200
  assert width(recall=0.2, modes_kl=0.3) == 1200 and width(recall=0.2, coverage=0.3, modes_kl=0.3) == 1560


def test_the_table(results):
  head, _, *lines = (line[2:-2].split(" | ") for line in table(*read_results(results, ENTRIES)).splitlines())
  plain, better, wild, real, one = (dict(zip(head, line, strict=True)) for line in lines)
  assert [line["system"] for line in (plain, better, wild, real, one)] == [
    *("plain", "better", "wild", "*real images*", "*one image*")
  ]
  assert (plain["FID"], plain["recall"], plain["seeds"], plain["images"]) == ("52 ± 2", "0.25 ± 0", "3", "100,000")
  assert (plain["million multiply-adds an image"], plain["s / 1000 images"]) == ("200", "7.5")
  assert plain["parameters"] == "2,000 / 1,000"
  assert (better["FID"], wild["FID"], real["FID"], one["recall"]) == ("41 ± 1", "52 ± 1.4", "1.5", "0")
  against = [line["FID against its control"] for line in (plain, better, wild)]
  assert against == ["", "-11 (plain)", "no difference seen (plain)"]
  ends = [line["collapsed"] for line in (plain, better, wild)]
  assert ends == ["none", "none", "1 of 3; 1 of 3 diverged, at 12,345"]
  assert better["FID at other learning rates"] == "x 0.5: 44, x 2: diverged"


def test_differences_by_hand():
  # Means 2 and 4.5; variances 1 and 4 over 3 and 3 seeds: the standard error is sqrt(5 / 3) = 1.29.
  assert difference([1, 2, 3], [2.5, 4.5, 6.5]) == (-2.5, False)
  assert difference([1, 2, 3], [4, 6, 8]) == (-4, True)
  assert difference([1], [4, 6, 8]) is None
  assert [mean_and_std(values) for values in ([], [1.23456], [1, 2, 3])] == ["-", "1.235", "2 ± 1"]


def test_the_last_value_over_the_best():
  wild = result("wild", 0, 1.0, curve=(30, 10, 25))
  assert wild.last_over_best("fid") == 2.5 and wild.last_over_best("modes") is None
  of_recall = {"recall": {"images_seen": [1, 2], "values": [0.6, 0.2]}}
  assert Result(**asdict(wild) | {"curves": of_recall}).last_over_best("recall") == pytest.approx(3)
  assert result("wild", 0, diverged_at=1).last_over_best("fid") is None


def test_the_page(results):
  write_page(results, "A title", *read_results(results, ENTRIES))
  page = (results / "README.md").read_text()
  assert page.startswith("# A title\n") and "- better: Labels." in page and "2e+13 multiply-adds" in page
  assert table(*read_results(results, ENTRIES)) in page
  for name in ("axes.png", "samples.png"):
    with Image.open(results / name) as picture:
      assert name in page and picture.width > 500


def test_what_else_differs_from_a_control(tmp_path):
  """Settings that both have; with a budget not those of the algorithm that count images, as they follow the length."""
  one = {
    "name": "a",
    "data": {"num_classes": 0, "labelled_images": 0},
    "gan": {"widths": [8, 8], "learning_rate": [2e-4, 2e-4], "ema_half_life": 10.0, "beta1": 0.0, "only_here": 1},
  }
  other = {
    "name": "b",
    "data": {"num_classes": 0, "labelled_images": 1000},
    "gan": {"widths": [8, 4], "learning_rate": [2e-4, 1e-5], "ema_half_life": 20.0, "beta1": 0.0, "only_there": 1},
  }
  lines = []
  for budget in (2e13, 0.0):
    plain, better = (
      Row(entry, [Result(**asdict(result(entry.name, 0, 1.0)) | {"settings": settings, "multiply_adds": budget})], [])
      for entry, settings in zip(ENTRIES, (one, other), strict=False)
    )
    write_page(epath.Path(tmp_path), "A title", [plain, better], {})
    page = (tmp_path / "README.md").read_text().splitlines()
    lines += [line for line in page if line.startswith("- better, beside plain: ")]
  expected = "data.labelled_images 1000 (0), learning_rate 0.0002 to 1e-05 (0.0002), widths 8-4 (8-8)"
  assert lines[0] == f"- better, beside plain: {expected}"
  assert lines[1].endswith(expected.replace("learning_rate", "ema_half_life 20 (10), learning_rate"))


@pytest.mark.parametrize("damage", ["{", "[]", '{"entry": "plain"}'])
def test_a_damaged_result(results, damage):
  (results / "plain_seed_1.json").write_text(damage)
  with pytest.raises(UserError, match=r"plain_seed_1\.json .*: delete it, and run the same command again"):
    read_results(results, ENTRIES)
