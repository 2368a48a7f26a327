"""cli.compare, on real runs of a tiny network."""

import json
import shutil
import signal
import time

import numpy as np
import pytest
from helpers import commands
from PIL import Image

from r3gan_jax.training.checkpoint import DIRECTORY, newest_checkpoint
from r3gan_jax.training.logging import read_events, read_metrics
from r3gan_jax.training.workdir import read_config

RECIPE = """
from configs import stacked_digits
from configs.comparisons import common


def get_config():
  def tiny(**gan):
    config = stacked_digits.get_config()
    config.gan.update({"widths": (8, 8), "cardinalities": (2, 2), **gan})
    config.batch_size = 16
    config.run.update({"feature_network": "pixels", "metrics": ("fid",), "metric_samples": 100})
    config.run.best_metric = ""
    return config

  lost = tiny()
  lost.data.source = "folder"
  comparison = common.get_config("tiny", "A tiny comparison", {
    "rpgan": common.entry(tiny(), "losses"),
    "gan": common.entry(tiny(loss="non_saturating"), "losses", "rpgan", "An older loss."),
    "lost": common.entry(lost, "losses"),
  })
  comparison.metrics = ("fid", "precision_recall", "class_accuracy")
  comparison.samples = 200
  comparison.multiply_adds = 2.5e8
  return comparison
"""


@pytest.fixture
def recipe(tmp_path):
  (tmp_path / "tiny.py").write_text(RECIPE)
  return f"--comparison={tmp_path / 'tiny.py'}"


def read(path):
  return json.loads(path.read_text())


def test_runs_are_made_once_and_added_to(environment, command, recipe, tmp_path):
  """In processes of their own, two at a time; one of them fails, and the others do not mind."""
  flags = ("compare", recipe, f"--out={tmp_path}", "--seeds=3", "--jobs=2")
  done = command(*flags, "--only=bounds,lost,gan", status=2)
  assert "1 runs have failed" in done.stderr and "config.run.data_path is empty" in done.stderr
  results = tmp_path / "results" / "tiny"
  assert {path.name for path in results.iterdir()} == {
    *("bounds.json", "gan_seed_3.json", "gan_seed_3.png", "README.md", "axes.png", "samples.png")
  }
  bounds = read(results / "bounds.json")["scores"]
  assert bounds["one image"]["precision"] == 1 and bounds["one image"]["recall"] < 0.1 < bounds["real images"]["recall"]
  assert bounds["real images"]["fid"] < bounds["untrained network"]["fid"]

  # The budget gives the images, and they what the recipe counts in images.
  result, run = read(results / "gan_seed_3.json"), tmp_path / "tiny" / "gan" / "seed_3"
  assert result["images"] == round(2.5e8 / result["multiply_adds_per_image"]) > 64
  config = read_config(run)
  assert (config["seed"], config["gan"]["loss"]) == (3, "non_saturating")
  assert config["gan"]["burn_in_images"] == round(result["images"] / 2) and result["settings"]["seed"] == 3
  metrics = read_metrics(run)
  assert metrics["discriminator/loss"][0][-1] >= result["images"]
  images_seen, fid = metrics["metrics/fid"]
  assert 8 <= len(fid) <= 11 and result["curves"]["fid"] == {
    "images_seen": images_seen.tolist(),
    "values": fid.tolist(),
  }
  assert result["scores"]["fid"] != fid[-1], "by other numbers of samples"
  assert result["scores"].keys() == {"fid", "precision", "recall"} and not result["diverged_at"]
  assert result["parameters"].keys() == {"generator", "discriminator"} and result["seconds_per_1000_images"] > 0
  assert np.asarray(Image.open(results / "gan_seed_3.png")).shape == (8, 10 * 8 + 9 * 2, 3)
  for name in ("axes.png", "samples.png"):
    Image.open(results / name).verify()

  # A result stays, also without its work directory. One more run, alone, is in this process; it diverges.
  shutil.rmtree(tmp_path / "tiny")
  alone = ("compare", recipe, f"--out={tmp_path}", "--seeds=0", "--only=rpgan", "--rates=1e30")
  table = command(*alone).stdout.splitlines()
  assert [line.split(" | ")[0] for line in table[2:4]] == ["| rpgan", "| gan"]
  assert "x 1e+30: diverged" in table[2] and "(rpgan)" in table[3]
  assert [path.name for path in (tmp_path / "tiny").iterdir()] == ["rpgan"]
  assert read(results / "rpgan_seed_0_rate_1e+30.json")["diverged_at"] >= 16
  page = (results / "README.md").read_text()
  assert page.startswith("# A tiny comparison\n") and "- gan: An older loss." in page and table[2] in page

  before = {path.name: path.stat().st_mtime_ns for path in results.glob("*.json")}
  command(*flags, "--only=bounds,gan")
  assert before == {path.name: path.stat().st_mtime_ns for path in results.glob("*.json")}
  changes = {
    "entries.gan.config.batch_size=32": "config.batch_size = 16, but now it is 32",
    "multiply_adds=6e7": "comparison.multiply_adds = 250000000.0, but now it is 60000000.0",
    "samples=100": "num_samples = 200, but now it is 100",
  }
  calls = [(*flags[1:], "--only=gan", f"--comparison.{change}") for change in changes]
  for error, message in zip(commands.call(environment, "compare", calls), changes.values(), strict=True):
    assert f"gan_seed_3.json was made with {message}" in error


def test_a_signal_stops_the_runs(environment, recipe, tmp_path):
  """The one that trains is saved, and none is started after it."""
  flags = ("compare", recipe, f"--out={tmp_path}", "--seeds=0-1", "--only=gan", "--comparison.multiply_adds=1e11")
  running = commands.Command(environment, *flags, "--comparison.entries.gan.config.run.metrics=()")
  run = tmp_path / "tiny" / "gan" / "seed_0"
  deadline = time.monotonic() + 120
  while not read_events(run) and time.monotonic() < deadline:
    time.sleep(0.1)
  running.send_signal(signal.SIGTERM)
  done = running.finish(60)
  assert done.returncode == 75 and "stopped by SIGTERM: the same command continues" in done.stderr
  assert not (tmp_path / "results").exists()
  assert newest_checkpoint(run / DIRECTORY) > 0 and not (run / "lock").exists()
  assert [path.name for path in run.parent.iterdir() if path.is_dir()] == ["seed_0"]


def test_mistakes(environment, recipe, tmp_path):
  out = f"--out={tmp_path}"
  (tmp_path / "results" / "tiny").mkdir(parents=True)
  (tmp_path / "results" / "tiny" / "gan_seed_5.json").write_text("{")
  cases = [
    ((recipe, out, "--only=wgan"), "--only=wgan is unknown: choose from rpgan, gan, lost, bounds"),
    ((recipe, out, "--rates=0"), "--rates=0: give positive numbers"),
    ((recipe, out, "--only=gan", "--seeds=5"), "gan_seed_5.json cannot be read"),
    ((recipe, out, "--comparison.entries.gan.config.gan.loss=hinge"), "gan: config.gan.loss = 'hinge' is unknown"),
    ((recipe, "--out=gs://bucket/runs"), "runs are processes of this machine"),
    (("--comparison=configs/comparisons/losses.py:mnist", out), "losses.py has no variant 'mnist'"),
  ]
  errors = commands.call(environment, "compare", [flags for flags, _ in cases])
  for error, (_, message) in zip(errors, cases, strict=True):
    assert message in error
