"""Logging to Weights & Biases, by its own library: offline, and against servers on this machine."""

import json
import os
import signal
import sys
import threading
import time
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import wandb
from etils import epath
from helpers.commands import Command
from helpers.wandb_files import history, offline_runs, records, settings
from PIL import Image

from r3gan_jax.errors import UserError
from r3gan_jax.recipe import Run
from r3gan_jax.settings import read
from r3gan_jax.training.logging import read_metrics
from r3gan_jax.training.weights_and_biases import ID_FILE, check_wandb, wandb_writer

SMOKE = "--config=configs/stacked_digits.py:smoke"


def without_account(home):
  """Returns environment variables that hide the developer's own account and settings."""
  hidden = {name: "" for name in os.environ if name.startswith("WANDB_")}
  return hidden | {"HOME": str(home), "NETRC": str(home / "netrc"), "WANDB_ERROR_REPORTING": "false"}


@pytest.fixture
def set_environment(monkeypatch, tmp_path):
  """Sets environment variables for wandb, which reads them at its first use; its process ends after the test."""

  def set_all(**variables):
    for name, value in (without_account(tmp_path) | variables).items():
      monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)

  wandb.teardown()
  yield set_all
  wandb.teardown()


def services(pid):
  """Returns the process ids of the services that this process started."""
  found = []
  for path in Path("/proc").glob("[0-9]*/cmdline"):
    try:
      words = path.read_bytes().split(b"\0")
    except OSError:  # it has just ended
      continue
    if words[0].endswith(b"wandb-core") and str(pid).encode() in words:
      found.append(int(path.parent.name))
  return found


def series(rows, name):
  return [(row["images_seen"], row[name]) for row in rows if name in row]


def opened(run):
  """Returns the record that opens a run."""
  (record,) = (record.run for record in records(run) if record.HasField("run"))
  return record


def test_a_run_offline_has_the_numbers_pictures_and_settings_of_its_work_directory(environment, tmp_path):
  environment = environment | without_account(tmp_path) | {"WANDB_MODE": "offline"}
  workdir = tmp_path / "run"
  flags = (f"--workdir={workdir}", "--config.run.wandb=us/gans", "--config.run.total_images=16")
  done = Command(environment, "main", SMOKE, *flags, "--config.run.grid_scale=1").finish()
  assert done.returncode == 0, done.stderr
  for _ in range(100):  # it ends by itself, soon after the process that started it
    if not services(done.pid):
      break
    time.sleep(0.1)
  assert not services(done.pid)

  (run,) = offline_runs(workdir)
  rows, metrics = history(run), read_metrics(workdir)
  assert len(metrics) > 15
  for name, (images_seen, values) in metrics.items():
    assert series(rows, name) == list(zip(images_seen, values, strict=True)), name
  pictures = series(rows, "samples.filenames")
  assert [images_seen for images_seen, _ in pictures] == [0, 16]
  for images_seen, (file,) in pictures:
    ours = Image.open(workdir / "samples" / f"fakes_{images_seen:010}.png")
    np.testing.assert_array_equal(np.asarray(Image.open(run / "files" / file)), np.asarray(ours))
  kept = json.loads((workdir / "config.json").read_text())
  assert settings(run) == kept | {"_wandb": {}}
  assert (opened(run).entity, opened(run).project, opened(run).display_name) == ("us", "gans", str(workdir))


def test_a_run_that_resumes_is_the_same_run_with_the_settings_of_today(set_environment, tmp_path):
  set_environment(WANDB_MODE="offline")
  for log_every_images in (8, 16):
    with wandb_writer("gans", epath.Path(tmp_path), {"run": {"log_every_images": log_every_images}}):
      pass
    time.sleep(1.1)  # W&B names the directory by the second
  first, second = offline_runs(tmp_path)
  assert opened(first).run_id == opened(second).run_id == (tmp_path / ID_FILE).read_text().strip()
  assert opened(second).resume
  assert settings(second)["run"] == {"log_every_images": 16}


def test_images_seen_is_the_axis_and_may_go_back(set_environment, tmp_path):
  """As after a rollback; W&B drops what is logged at an earlier step of its own."""
  set_environment(WANDB_MODE="offline")
  with wandb_writer("gans", epath.Path(tmp_path), {"seed": 1}) as writer:
    writer.write_scalars(20, {"a/x": np.float32(0.5)})
    writer.write_images(20, {"samples": np.full((1, 4, 6, 1), 7, np.uint8)})
    writer.write_scalars(10, {"a/x": 0.25})
    writer.write_scalars(10, {"b": float("nan")})
  (run,) = offline_runs(tmp_path)
  rows = history(run)
  assert series(rows, "a/x") == [(20, 0.5), (10, 0.25)]
  assert [(n, np.isnan(value)) for n, value in series(rows, "b")] == [(10, True)]
  assert [row["_step"] for row in rows] == [0, 1, 2, 3]
  (file,) = series(rows, "samples.filenames")[0][1]
  picture = Image.open(run / "files" / file)
  assert (picture.mode, np.unique(np.asarray(picture)).tolist(), picture.size) == ("L", [7], (6, 4))
  metrics = [record.metric for record in records(run) if record.HasField("metric")]
  assert [(one.name, one.glob_name, one.step_metric) for one in metrics] == [
    ("images_seen", "", ""),
    ("", "*", "images_seen"),
  ]
  assert [record.exit.exit_code for record in records(run) if record.HasField("exit")] == [0]


def test_a_run_that_fails_is_marked_as_failed(set_environment, tmp_path):
  set_environment(WANDB_MODE="offline")
  with pytest.raises(UserError, match="no images"), wandb_writer("gans", epath.Path(tmp_path), {}):
    raise UserError("no images")
  (run,) = offline_runs(tmp_path)
  assert [record.exit.exit_code for record in records(run) if record.HasField("exit")] == [1]


def test_the_end_of_its_process_does_not_end_training(environment, tmp_path):
  environment = environment | without_account(tmp_path) | {"WANDB_MODE": "offline"}
  workdir = tmp_path / "run"
  flags = (f"--workdir={workdir}", "--config.run.wandb=gans", "--config.run.total_images=96")
  run = Command(environment, "main", SMOKE, *flags, "--config.run.log_every_images=8")
  while not list(workdir.glob("samples/fakes_*")) or not services(run.pid):
    assert run.poll() is None
    time.sleep(0.05)
  (pid,) = services(run.pid)
  os.kill(pid, signal.SIGKILL)
  done = run.finish()
  assert done.returncode == 0 and done.stderr.count("cannot log") == 1, done.stderr
  assert read_metrics(workdir)["discriminator/loss"][0].tolist() == list(range(8, 97, 8))


class Refusing(BaseHTTPRequestHandler):
  """Answers every request with: not authorised."""

  def do_POST(self):
    self.rfile.read(int(self.headers["Content-Length"]))
    self.send_response(401)
    self.send_header("Content-Length", "0")
    self.end_headers()

  def log_message(self, *arguments):
    pass


def test_a_server_that_refuses_leaves_the_run_offline(set_environment, tmp_path, caplog):
  with ExitStack() as held:
    server = held.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Refusing))
    held.callback(server.shutdown)
    threading.Thread(target=server.serve_forever).start()
    set_environment(WANDB_API_KEY="a" * 40, WANDB_BASE_URL=f"http://127.0.0.1:{server.server_port}")
    check_wandb("gans")
    with wandb_writer("gans", epath.Path(tmp_path), {}) as writer:
      writer.write_scalars(8, {"x": 1.0})
  assert series(history(*offline_runs(tmp_path)), "x") == [(8, 1.0)]
  assert any("401" in line and "wandb sync" in line for line in caplog.messages)


def test_without_an_account_it_is_refused_before_anything_is_written(environment, tmp_path):
  flags = (SMOKE, f"--workdir={tmp_path / 'run'}", "--config.run.wandb=gans")
  done = Command(environment | without_account(tmp_path), "main", *flags).finish()
  line = done.stderr.strip().splitlines()[-1]
  assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
  for word in ("config.run.wandb = 'gans'", "wandb login", "WANDB_API_KEY", "WANDB_MODE=offline"):
    assert word in line
  assert not (tmp_path / "run").exists()


def test_without_the_package_the_error_names_it(monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(UserError, match=r"config.run.wandb = 'gans' .*pip install -e '.\[wandb\]'"):
    check_wandb("gans")


@pytest.mark.parametrize("project", ["a/b/c", "a#b", "/a", "a/", "a" * 129])
def test_other_names_of_projects_are_refused(project):
  with pytest.raises(UserError, match=r"config\.run\.wandb"):
    read(Run, {"wandb": project}, "run")


def test_an_id_that_cannot_be_used_is_refused(set_environment, tmp_path):
  set_environment(WANDB_MODE="offline")
  (tmp_path / ID_FILE).write_text("a/b")
  with pytest.raises(UserError, match=r"config\.run\.wandb"), wandb_writer("gans", epath.Path(tmp_path), {}):
    pass
