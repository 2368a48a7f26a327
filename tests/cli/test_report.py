"""The command, and the whole page that it writes, read as a browser reads it."""

import json
import shutil

import numpy as np
import pytest
from helpers.report_pages import embedded, read_page, write_run
from PIL import Image

SCALARS = {
  "discriminator/adversarial_loss": 0.6875,
  "generator/loss": 2.125,
  "discriminator/r1": 0.03125,
  "discriminator/r2": 0.0625,
  "generator/relativistic_sign": -0.9375,
  "hyperparameters/gamma": 0.375,
  "metrics/modes": 987.0,
  "metrics/modes_kl": 0.4375,
  "metrics/modes_samples": 26000.0,
  "metrics/real_modes": 1000.0,
  "metrics/fid<i>$x$": 12.5,
  "metrics/kid (num_samples=90)": 0.25,
  "metrics/kid_num_real (num_samples=90)": 70.0,
  "progress/peak_memory_bytes": 1.5 * 2**30,
  "encoder/loss": 5.5,
}


def test_a_run(command, tmp_path):
  """Resumed once: what was logged after its checkpoint does not count, and its last line is cut off."""
  workdir = tmp_path / "a run"
  lines = [{"images_seen": 1000} | dict.fromkeys(SCALARS, 3.0), {"images_seen": 1500, "metrics/modes": 999.0}]
  lines += [{"images_seen": 1000, "event": "resumed"}, b"\xff\xfe", b"12", {"foo": 1}]
  lines += [{"images_seen": 2000} | SCALARS, b'{"images_seen": 3000, "generator/lo']
  grids = [(seen, np.full((6, 8, 3), seen // 10, np.uint8)) for seen in (0, 1000, 2000)]
  config = {"name": "<b>digits & co", "network": {"widths": [4, 8]}, "run": {"total_images": 40000}}
  write_run(workdir, config, lines, grids)
  Image.new("L", (8, 6), 77).save(workdir / "samples" / "reals.png")
  (workdir / "samples" / "fakes_mine.png").write_text("not the run's")
  shutil.copy(workdir / "samples" / "fakes_0000000000.png", workdir / "samples" / "fakes_0000002500.png")  # lost, too
  for seen, level in ((1000, 33), (2000, 44)):
    Image.new("L", (8, 6), level).save(workdir / "samples" / f"reals_and_reconstructions_{seen:010}.png")

  done = command("report", f"--workdir={workdir}", f"--curves={tmp_path}/curves.png")
  assert done.stdout.splitlines()[:2] == [
    *("modes: 987 (best 987, at 2,000 images seen)", "modes_kl: 0.4375 (best 0.4375, at 2,000 images seen)")
  ]
  assert done.stdout.splitlines()[-1] == f"report: {workdir}/report.html"
  with Image.open(tmp_path / "curves.png") as picture:
    # Losses, penalties, sign; modes, KL, FID and KID.
    assert picture.width == pytest.approx(7 * 4.2 * 110, abs=2)

  page = read_page(workdir)
  assert page.text["h1"] == ["<b>digits & co"] and page.text["title"] == ["<b>digits & co: run report"]
  assert not page.find("i") and page.text["span"] == ["2,000 of 40,000 images seen"]
  assert str(workdir) in page.text["p"][-1] or any(str(workdir) in text for text in page.text["p"])

  images = page.find("img")[:-1]  # the last one is empty until a picture is enlarged
  assert [image["alt"] for image in images] == [
    *(f"Generated, at {seen} images seen" for seen in ("0", "1,000", "2,000")),
    *("Real images", "Reals and reconstructions, at 2,000 images seen"),
  ]
  assert [embedded(image).convert("L").getpixel((0, 0)) for image in images] == [0, 100, 200, 77, 44]
  assert ["hidden" in grid for grid in page.find("div") if "data-at" in grid] == [True, True, False]
  (slider,) = page.find("input")
  assert (slider["min"], slider["max"], slider["value"]) == ("0", "2", "2") and "hidden" not in slider
  assert page.text["output"] == ["2,000"]
  assert len(page.find("button")) == len(images) + 1  # and one that closes

  rows = page.table("score")
  shown = [(row["score"][:3], row["best"], row["best at images"], row["last"], row["protocol"]) for row in rows]
  assert shown == [
    ("mod", "987", "2,000", "987", "modes samples 26,000"),
    ("KL(", "0.4375", "2,000", "0.4375", "modes samples 26,000"),
    ("fid", "", "", "12.5", ""),
    ("KID", "0.25", "2,000", "0.25", "num samples 90, kid num real 70"),
  ]
  assert [row["real images"] for row in rows] == ["1,000", "", "", ""]
  assert rows[2]["score"] == "fid<i>$x$" and "(num_samples=90)" in rows[3]["score"]
  assert [(row["setting"], row["value"]) for row in page.table("setting")] == [
    *(("name", '"<b>digits & co"'), ("network.widths", "[4, 8]"), ("run.total_images", "40000"))
  ]

  assert page.text["h2"] == [
    *("Samples", "Results", "Training", "Schedules", "Speed and memory"),
    *("Starts, rollbacks and ends", "Configuration"),
  ]
  for title in ("fid<i>$x$", "adversarial losses", "encoder/loss", "peak memory, GiB", "gamma"):
    assert title in page.text["h3"]
  labels = [text.strip() for text in page.text["text"]]
  for text in ("R1 (on reals)", "G", "of real images", "images seen (thousands)"):
    assert text in labels
  last = [text for text in page.text["b"] if text.startswith("last ")]
  assert "last D: 0.6875, G: 2.125" in last and "last 1.5" in last
  assert len(page.find("svg")) == len(last) and all(
    svg["aria-label"] and svg["role"] == "img" for svg in page.find("svg")
  )
  svg = (workdir / "report.html").read_text().partition("<svg")[2]
  assert "currentColor" in svg and "#010203" not in svg


def test_a_large_run(command, tmp_path):
  """More grids than are shown, larger than is embedded as it is, and more points than are drawn."""
  random = np.random.default_rng(0)
  grids = [(i * 1_000_000, random.integers(0, 256, (250, 300), np.uint8)) for i in range(50)]
  grids[-1] = (grids[-1][0], random.integers(0, 256, (600, 1200, 3), np.uint8))
  lines = [{"images_seen": i, "generator/loss": random.uniform()} for i in range(0, 49_000_001, 5000)]
  write_run(tmp_path / "run", {"name": "large"}, lines, grids)
  command("report", f"--workdir={tmp_path}/run")
  page = read_page(tmp_path / "run")
  images = page.find("img")[:-1]
  shown = [int(grid["data-at"].replace(",", "")) // 1_000_000 for grid in page.find("div") if "data-at" in grid]
  assert len(shown) == 24 and shown[0] == 0 and shown[-1] == 49 and set(np.diff(shown)) == {2, 3}
  assert page.find("input")[0]["max"] == "23"
  assert {embedded(image).format for image in images} == {"JPEG"}
  assert embedded(images[0]).size == (300, 250) and embedded(images[0]).mode == "L"
  assert embedded(images[-1]).size == (1024, 512)
  assert (images[-1]["width"], images[-1]["height"]) == ("1024", "512")
  note = next(text for text in page.text["p"] if "grids" in text)
  assert note.startswith("24 of 50 grids") and "1024 pixels" in note
  assert "images seen (millions)" in [text.strip() for text in page.text["text"]]
  assert max(len(path.get("d", "")) for path in page.find("path")) < 20_000


def test_a_run_that_has_just_begun(command, refused, tmp_path):
  write_run(tmp_path / "run", {"name": "new", "run": {"total_images": 100}})
  command("report", f"--workdir={tmp_path}/run")
  page = read_page(tmp_path / "run")
  assert page.state == "not started" and page.text["span"] == ["0 of 100 images seen"]
  for note in ("No samples have been drawn yet.", "No metrics have been computed.", "Nothing has been logged yet."):
    assert note in page.text["p"]
  assert len(page.find("img")) == 1 and not page.find("input") and not page.find("svg")
  error = refused("report", f"--workdir={tmp_path}/run", f"--curves={tmp_path}/curves.png")
  assert error == f"--curves: nothing has been logged in {tmp_path}/run yet"


def test_what_is_no_run(refused, tmp_path):
  assert f"{tmp_path} is not a work directory" in refused("report", f"--workdir={tmp_path}")
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  "config",
  [
    {"run": 5, "gan": [], "name": ["x"], "history": 7},
    {"run": {"total_images": "many"}, "algorithm": ["r3gan"], "name": "<script>" + "x" * 500},
    {"algorithm": "r3gan", "network": 3, "run": None, "history": [1, {"changes": {"a": 1}}, {"images_seen": "x"}]},
  ],
  ids=str,
)
def test_odd_configurations(command, tmp_path, config):
  lines = [
    {"images_seen": 10, "discriminator/real_logits": float("nan"), "metrics/fid": float("inf"), "<u>\ud800": 1e308},
    {"images_seen": 20, "discriminator/real_logits": 1.0, "metrics/fid": 3.0, "<u>\ud800": -1e308, "x" * 400: True},
    {"images_seen": 10**30, "metrics/fid": 1.0},
    {"images_seen": 30, "metrics/kid": 10**400, "discriminator/real_logits": None, "generator/loss": float("nan")},
    b"[" * 100_000,
  ]
  write_run(tmp_path / "run", config, lines)
  command("report", f"--workdir={tmp_path}/run", f"--curves={tmp_path}/curves.png")
  page = read_page(tmp_path / "run")
  assert not page.find("u") and len(page.find("script")) == 1
  (row,) = page.table("score")
  assert (row["best"], row["last"]) == ("3", "3")
  assert any("1 value is not finite" in text for text in page.text["b"])


def test_damaged_pictures_are_left_out_and_named(command, tmp_path):
  grids = [(seen, np.full((64, 64), seen, np.uint8)) for seen in (0, 8, 16)]
  write_run(tmp_path / "run", {"name": "x"}, [{"images_seen": 16, "x": 1}], grids)
  cut, foreign = (tmp_path / "run" / "samples" / f"fakes_{seen:010}.png" for seen in (8, 16))
  cut.write_bytes(cut.read_bytes()[:-30])
  foreign.write_bytes(b"not a picture <b>")
  (tmp_path / "run" / "samples" / "reals.png").write_bytes(b"")
  command("report", f"--workdir={tmp_path}/run")
  page = read_page(tmp_path / "run")
  assert [image["alt"] for image in page.find("img")][:-1] == ["Generated, at 0 images seen"]
  (note,) = (text for text in page.text["p"] if "cannot be read" in text)
  assert cut.name.capitalize() in note and foreign.name in note and "reals.png" in note


def test_a_record_of_settings_that_changed(command, tmp_path):
  history = [{"images_seen": 2000, "changes": {"gan.gamma": [[0.3, 0.3], 1.0], "batch_size": [64, 32]}}]
  write_run(tmp_path / "run", {"name": "x", "history": history}, [{"images_seen": 3000, "x": 1}])
  command("report", f"--workdir={tmp_path}/run")
  page = read_page(tmp_path / "run")
  assert page.table("before") == [
    {"at images seen": "2,000", "setting": "gan.gamma", "before": "[0.3, 0.3]", "after": "1.0"},
    {"at images seen": "2,000", "setting": "batch_size", "before": "64", "after": "32"},
  ]
  assert page.facts["changed settings"].startswith("2,")
  assert json.loads((tmp_path / "run" / "config.json").read_text())["history"] == history
