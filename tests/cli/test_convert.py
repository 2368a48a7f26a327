"""The command, from files and from a server: conversion, samples, training, and the way back."""

import functools
import hashlib
import http.server
import threading
from pathlib import Path

import numpy as np
import pytest
from helpers import official_pickles

from r3gan_jax import runs

ROOT = Path(__file__).parent.parent.parent
SNAPSHOT = official_pickles.path("cond_8px")


def test_there_samples_training_and_back(command, tmp_path):
  run = tmp_path / "run"
  digest = hashlib.sha256(SNAPSHOT.read_bytes()).hexdigest()
  done = command("convert", SNAPSHOT, f"--out={run}", f"--sha256={digest}")
  assert f"G and D of 22,680 and 23,312 parameters, 8x8, 5 classes, 123,456 images seen: {run}" in done.stdout
  assert "no state of Adam" not in done.stdout
  samples = (f"--workdir={run}", "--seeds=0-3", f"--out={tmp_path}/samples.npz", "--quantisation=official")
  command("sample", *samples)
  assert np.load(tmp_path / "samples.npz")["images"].std() > 10

  shape = ("widths=(32,16)", "cardinalities=(8,4)", "blocks=(2,1)", "noise_dim=8", "bfloat16_stages=0")
  done = command(
    *("main", "--config=configs/cifar10.py:smoke", f"--workdir={run}", "--config.run.total_images=123472"),
    *(f"--config.gan.{setting}" for setting in shape),
    *("--config.data.resolution=8", "--config.data.num_classes=5", "--config.gan.augment_p=(0.0,0.0)"),
  )
  assert "resumed from" in done.stderr and "at 123,456 images" in done.stderr
  _, _, state = runs.open_state(run)
  assert int(state.images_seen) == 123472
  assert [int(adam.updates) for adam in state.optimizer.values()] == [3, 3]  # one of them in the snapshot

  command("convert", f"--workdir={run}", "--checkpoint=123456", f"--out={tmp_path}/state.npz")
  with np.load(tmp_path / "state.npz") as back:
    for letter in ("G", "D", "G_ema"):
      for name, call in official_pickles.calls(official_pickles.read("cond_8px")[letter]).items():
        np.testing.assert_array_equal(back[f"{letter}/{name}"], official_pickles.array(call))
  assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "samples.npz", "state.npz"]


@pytest.fixture
def server(tmp_path):
  """Serves the golden directory."""

  class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
      pass

  handler = functools.partial(Quiet, directory=official_pickles.GOLDEN)
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
    threading.Thread(target=running.serve_forever).start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()


def test_from_a_server(command, refused, tmp_path, server):
  url = f"{server}/{SNAPSHOT.name}"
  error = refused("convert", url, "--sha256=01234567", f"--out={tmp_path}/run")
  assert f"{SNAPSHOT.name} is damaged: its SHA-256 begins with" in error
  error = refused("convert", f"{server}/none.pkl", f"--out={tmp_path}/run")
  assert "none.pkl could not be downloaded (HTTP Error 404" in error
  assert not list(tmp_path.iterdir())
  command("convert", url, f"--out={tmp_path}/run")
  assert runs.open_run(tmp_path / "run").images_seen == 123456


@pytest.mark.parametrize(
  "arguments, message",
  [
    ((SNAPSHOT, "more.pkl"), "unexpected arguments ['more.pkl']"),
    ((SNAPSHOT, f"--out={ROOT}"), f"--out={ROOT} exists"),
    (
      ("README.md",),
      "README.md cannot be read as an official snapshot of R3GAN: replace it (UnpicklingError: it is not",
    ),
  ],
)
def test_bad_input_is_one_line_that_names_the_cure_and_writes_nothing(refused, tmp_path, arguments, message):
  assert message in refused("convert", f"--out={tmp_path}/run", *arguments)
  assert not list(tmp_path.iterdir())
