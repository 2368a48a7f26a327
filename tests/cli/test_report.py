"""The page, read as a browser reads it, from work directories made by hand."""

import base64
import json
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
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
  "metrics/fid<i>$x$": 12.5,
  "metrics/kid (num_samples=90)": 0.25,
  "metrics/kid_num_real (num_samples=90)": 70.0,
  "progress/peak_memory_bytes": 1.5 * 2**30,
  "encoder/loss": 5.5,
}
VOID = {"meta", "img", "input"}


class Page(HTMLParser):
  """Elements as (tag, attributes), all text by the element it is in; fails where elements are not nested."""

  def __init__(self, text):
    super().__init__()
    self.elements, self.text, self._open = [], {}, []
    self.feed(text)
    self.close()
    assert not self._open

  def handle_starttag(self, tag, attributes):
    self.elements.append((tag, dict(attributes)))
    if tag not in VOID:
      self._open.append(tag)

  def handle_startendtag(self, tag, attributes):
    self.elements.append((tag, dict(attributes)))

  def handle_endtag(self, tag):
    assert self._open.pop() == tag

  def handle_data(self, data):
    if self._open and data.strip():
      self.text.setdefault(self._open[-1], []).append(data)

  def find(self, tag):
    return [attributes for name, attributes in self.elements if name == tag]


def write_run(directory, config, lines=(), grids=()):
  """A work directory; `grids`: (images seen, uint8 array)."""
  (directory / "samples").mkdir(parents=True)
  (directory / "config.json").write_text(json.dumps(config))
  for images_seen, grid in grids:
    Image.fromarray(grid).save(directory / "samples" / f"fakes_{images_seen:010}.png")
  if lines:
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def read_page(workdir):
  page = Page((workdir / "report.html").read_text("utf-8"))
  for tag, attributes in page.elements:
    for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
      assert attributes.get(name, "#").startswith(("#", "data:image/")), f"<{tag}> loads {attributes[name]}"
  assert "@import" not in str(page.text["style"]) and "url(" not in str(page.text["style"])
  return page


def embedded(image):
  return Image.open(BytesIO(base64.b64decode(image["src"].partition(",")[2])))


def test_a_run(command, tmp_path):
  """Resumed once: the counts before the interruption come twice, and its last line is cut off."""
  workdir = tmp_path / "a run"
  lines = [{"images_seen": seen} | dict.fromkeys(SCALARS, 3.0) for seen in (1000, 2000)]
  lines.append({"images_seen": 2000} | SCALARS)
  grids = [(seen, np.full((6, 8, 3), seen // 10, np.uint8)) for seen in (0, 1000, 2000)]
  config = {"name": "<b>digits & co", "network": {"widths": [4, 8]}, "run": {"total_images": 40000}}
  write_run(workdir, config, lines, grids)
  Image.new("L", (8, 6), 77).save(workdir / "samples" / "reals.png")
  (workdir / "samples" / "fakes_mine.png").write_text("not the run's")
  for seen, level in ((1000, 33), (2000, 44)):
    Image.new("L", (8, 6), level).save(workdir / "samples" / f"reals_and_reconstructions_{seen:010}.png")
  with (workdir / "metrics.jsonl").open("a") as file:
    file.write('{"images_seen": 3000, "generator/lo')

  done = command("report", f"--workdir={workdir}", f"--curves={tmp_path}/curves.png")
  assert done.stdout.splitlines()[:2] == ["modes: 987", "modes_kl: 0.4375"]
  assert done.stdout.splitlines()[-1] == f"report: {workdir}/report.html"
  with Image.open(tmp_path / "curves.png") as picture:
    # Losses, penalties, sign; modes, KL, FID and KID.
    assert picture.width == pytest.approx(7 * 4.2 * 110, abs=2)

  page = read_page(workdir)
  assert page.text["h1"] == ["<b>digits & co"] and page.text["title"] == ["<b>digits & co: run report"]
  assert not page.find("b") and not page.find("i")
  assert page.text["p"][0].startswith(f"2,000 of 40,000 images seen · {workdir} · report of 20")

  images = page.find("img")
  assert [image["alt"] for image in images] == [f"{seen} images seen" for seen in ("0", "1,000", "2,000")] + [
    "Real",
    "Reals and reconstructions",
  ]
  assert ["hidden" in image for image in images] == [True, True, False, False, False]
  assert [embedded(image).convert("L").getpixel((0, 0)) for image in images] == [0, 100, 200, 77, 44]
  (slider,) = page.find("input")
  assert (slider["min"], slider["max"], slider["value"]) == ("0", "2", "2") and "hidden" not in slider
  assert page.text["output"] == ["2,000 images seen"]

  cells = page.text["td"]
  rows = list(zip(*[iter(cells[:18])] * 3, strict=True))
  assert rows == [
    ("modes", "987", "2,000"),
    ("KL(samples || uniform), nats", "0.4375", "2,000"),
    ("modes samples", "26,000", "2,000"),
    ("fid<i>$x$", "12.5", "2,000"),
    ("KID (num_samples=90)", "0.25", "2,000"),
    ("kid num real (num_samples=90)", "70", "2,000"),
  ]
  assert cells[18:] == ["name", '"<b>digits & co"', "network.widths", "[4, 8]", "run.total_images", "40000"]

  assert page.text["h2"] == [
    *("Samples", "Last metrics", "Metrics", "Training", "Schedules", "Speed and memory", "Other", "Configuration")
  ]
  # The title of a panel and the labels of its legend are text; the last values are below it.
  labels = [text.strip() for text in page.text["text"]]
  captions = [text for text in page.text["figcaption"] if text.startswith("last ")]
  assert captions == [
    *("last 987", "last 0.4375", "last 12.5", "last 0.25"),
    *("last D: 0.6875, G: 2.125", "last R1 (on reals): 0.03125, R2 (on fakes): 0.0625", "last -0.9375"),
    *("last 0.375", "last 1.5", "last 5.5"),
  ]
  for text in ("modes", "KL(samples || uniform), nats", "fid<i>$x$", "adversarial losses", "R1 (on reals)", "G"):
    assert text in labels
  for text in ("R2 (on fakes)", "gamma", "peak memory, GiB", "encoder/loss", "images seen (thousands)"):
    assert text in labels
  assert "modes samples" not in labels
  assert len(page.find("svg")) == len(captions)
  svg = (workdir / "report.html").read_text().partition("<svg")[2]
  assert "currentColor" in svg and "#010203" not in svg


def test_a_large_run(command, tmp_path):
  """More grids than are shown, and larger than is embedded as it is."""
  random = np.random.default_rng(0)
  grids = [(i * 1_000_000, random.integers(0, 256, (250, 300), np.uint8)) for i in range(50)]
  grids[-1] = (grids[-1][0], random.integers(0, 256, (600, 1200, 3), np.uint8))
  write_run(tmp_path / "run", {"name": "large"}, [{"images_seen": 49_000_000, "hyperparameters/gamma": 1.0}], grids)
  command("report", f"--workdir={tmp_path}/run")
  page = read_page(tmp_path / "run")
  images = page.find("img")
  shown = [int(image["alt"].partition(" ")[0].replace(",", "")) // 1_000_000 for image in images]
  assert len(shown) == 24 and shown[0] == 0 and shown[-1] == 49 and set(np.diff(shown)) == {2, 3}
  assert page.find("input")[0]["max"] == "23"
  assert {embedded(image).format for image in images} == {"JPEG"}
  assert embedded(images[0]).size == (300, 250) and embedded(images[0]).mode == "L"
  assert embedded(images[-1]).size == (1024, 512)
  assert (images[-1]["width"], images[-1]["height"]) == ("1024", "512")
  note = next(text for text in page.text["p"] if "grids" in text)
  assert note.startswith("24 of 50 grids") and "1024 pixels" in note
  assert "images seen (millions)" in [text.strip() for text in page.text["text"]]


def test_a_run_that_has_just_begun(command, refused, tmp_path):
  write_run(tmp_path / "run", {"name": "new", "run": {"total_images": 100}})
  command("report", f"--workdir={tmp_path}/run")
  page = read_page(tmp_path / "run")
  assert page.text["p"][0].startswith("0 of 100 images seen")
  assert page.text["p"][1:] == [
    *("No samples have been drawn yet.", "No metrics have been computed.", "Nothing has been logged yet.")
  ]
  assert not page.find("img") and not page.find("input") and not page.find("svg")
  error = refused("report", f"--workdir={tmp_path}/run", f"--curves={tmp_path}/curves.png")
  assert error == f"--curves: nothing has been logged in {tmp_path}/run yet"


def test_what_is_no_run(refused, tmp_path):
  assert f"{tmp_path} is not a work directory" in refused("report", f"--workdir={tmp_path}")
  assert not list(tmp_path.iterdir())

  write_run(tmp_path / "run", {"name": "x"}, grids=[(0, np.zeros((64, 64), np.uint8))])
  grid = tmp_path / "run" / "samples" / "fakes_0000000000.png"
  grid.write_bytes(grid.read_bytes()[:-30])
  assert refused("report", f"--workdir={tmp_path}/run").startswith(f"{grid} cannot be read")
