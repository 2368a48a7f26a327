"""Several processes on loopback, started by the user's commands: they train as one, exit together and resume."""

import json
import re
import signal
import time

import jax
import numpy as np
import pytest
from helpers.image_files import write_images
from helpers.processes import Processes
from helpers.states import final_state

from r3gan_jax.errors import INTERRUPTED
from r3gan_jax.training.workdir import read_history

TRAIN = ("main", "--config=configs/stacked_digits.py:smoke", "--config.batch_size=8")
INTERVALS = ("--config.run.snapshot_every_images=80", "--config.run.log_every_images=80")
MODES = (
  *INTERVALS,
  "--config.data.source=stacked_digits",
  "--config.run.metrics=('modes',)",
  "--config.run.metric_samples=90",
)


def parameters(workdir):
  params = final_state(workdir).params
  return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])


def assert_same_run(workdir, expected):
  """Compares to rounding: sums in another order, amplified by Adam, differ by 1e-7 to 1.4e-5, depending on the CPU."""
  actual, expected = parameters(workdir), parameters(expected)
  assert np.linalg.norm(actual - expected) < 1e-4 * np.linalg.norm(expected)


@pytest.fixture(scope="module")
def whole(environment, tmp_path_factory):
  """A run of 30 iterations on 1 device of 1 process."""
  workdir = tmp_path_factory.mktemp("whole")
  Processes(environment, 1, 1, *TRAIN, *MODES, f"--workdir={workdir}", "--config.run.total_images=240").finish(0)
  return workdir


def test_a_run_resumes_with_any_number_of_processes_and_devices(environment, tmp_path, whole):
  """It trains on the same images; all processes count modes, and only the first writes logs and grids."""
  for total, count, devices in ((80, 2, 2), (160, 1, 8), (240, 2, 1)):
    train = (*TRAIN, *MODES, f"--workdir={tmp_path}", f"--config.run.total_images={total}")
    printed = Processes(environment, count, devices, *train).finish(*[0] * count)
    assert f"{total} of {total} images" in printed[0] and (f"{total - 80} images" in printed[0] or total == 80)
    assert all("images" not in text for text in printed[1:])
  assert_same_run(tmp_path, whole)

  def logged(workdir, name):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["images_seen"]: line[name] for line in lines if name in line}

  assert logged(tmp_path, "metrics/modes") == logged(whole, "metrics/modes")
  assert logged(tmp_path, "discriminator/r1") == pytest.approx(logged(whole, "discriminator/r1"), rel=1e-3)


def test_several_processes_change_settings(environment, tmp_path):
  train = (*TRAIN, f"--workdir={tmp_path}")
  Processes(environment, 1, 1, *train, "--config.run.total_images=8").finish(0)
  changed = ("--config.run.total_images=16", "--config.gan.gamma=2.0", "--change_settings")
  Processes(environment, 2, 1, *train, *changed).finish(0, 0)
  assert read_history(tmp_path)[0]["images_seen"] == 8 and final_state(tmp_path).images_seen == 16


def test_several_processes_sample_and_score_as_one(environment, tmp_path, whole):
  for name, arguments, file in (
    ("sample", ("--seeds=0-6",), "x.npz"),
    ("sample", ("--seeds=0-6",), "pictures"),
    ("evaluate", ("--metrics=modes", "--num_samples=90"), "x.json"),
  ):
    for count in (1, 2):
      out = tmp_path / str(count) / file
      out.parent.mkdir(exist_ok=True)
      flag = "--json" if name == "evaluate" else "--out"
      command = (name, f"--workdir={whole}", *arguments, f"{flag}={out}")
      Processes(environment, count, 3 - count, *command).finish(*[0] * count)
  for file in (tmp_path / "1").rglob("*"):
    other = tmp_path / "2" / file.relative_to(tmp_path / "1")
    if file.suffix == ".npz":
      np.testing.assert_array_equal(np.load(other)["images"], np.load(file)["images"])
    elif file.is_file():
      assert other.read_bytes() == file.read_bytes()
  assert len(list((tmp_path / "2" / "pictures").glob("*.png"))) == 7


LONG = ("--config.run.total_images=2000000", "--config.run.snapshot_every_images=400")


@pytest.mark.parametrize("which", [0, 1])
def test_all_processes_exit_when_one_is_killed_and_resume_when_restarted(environment, tmp_path, whole, which):
  train = (*TRAIN, f"--workdir={tmp_path}", "--config.run.peer_timeout_seconds=10")
  joined = Processes(environment, 2, 2, *train, *LONG)
  joined.wait_for(tmp_path / "samples" / "fakes_0000000400.png")
  joined.processes[which].send_signal(signal.SIGKILL)
  began = time.monotonic()
  other = joined.processes[1 - which].finish(60)
  assert time.monotonic() - began < 40
  assert other.returncode not in (0, 2, -signal.SIGKILL)
  assert "another task died" in other.stderr or "another process has ended" in other.stderr
  total = max(int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdecimal()) + 80
  printed = Processes(environment, 2, 2, *train, f"--config.run.total_images={total}").finish(0, 0)
  assert f"resumed from {tmp_path}/checkpoints at {total - 80:,} images" in printed[0]


def test_sigterm_to_one_process_saves_and_ends_all(environment, tmp_path):
  train = (*TRAIN, f"--workdir={tmp_path}")
  joined = Processes(environment, 2, 1, *train, *LONG)
  joined.wait_for(tmp_path / "samples" / "fakes_0000000400.png")
  joined.processes[1].send_signal(signal.SIGTERM)
  printed = joined.finish(INTERRUPTED, INTERRUPTED)
  saved = max(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
  assert saved >= 400
  assert all(f"stopped by SIGTERM at {saved:,} images" in text for text in printed)


def test_a_single_process_ignores_the_environment(environment, tmp_path):
  """An incomplete SLURM environment, as inside an allocation that another program uses."""
  slurm = {
    "SLURM_JOB_ID": "x",
    "SLURM_STEP_NODELIST": "",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
  }
  train = (*TRAIN, f"--workdir={tmp_path}/run", "--config.run.total_images=8")
  (printed,) = Processes(environment | slurm, 1, 1, *train).finish(2)
  assert "could not be joined" in printed and "--num_processes=1" in printed
  Processes(environment | slurm, 1, 1, *train, "--num_processes=1").finish(0)


@pytest.mark.parametrize("which", [0, 1])
def test_a_peer_that_does_not_come(environment, tmp_path, which):
  train = (*TRAIN, f"--workdir={tmp_path}", "--config.run.peer_timeout_seconds=3")
  joined = Processes(environment, 2, 1, *train)
  joined.processes[1 - which].send_signal(signal.SIGKILL)
  done = joined.processes[which].finish()
  assert done.returncode == INTERRUPTED and "Check failure" not in done.stderr
  assert "not all processes have come within 3 seconds" in done.stderr


def test_directories_and_data_that_are_not_the_same_for_all(environment, tmp_path):
  """As on hosts with disks of their own."""
  for name in ("0", "1"):
    write_images(tmp_path / name / "images", 4, first=int(name))
  folder = ("--config.data.source=folder", "--config.data.num_classes=0", "--config.run.data_path=~/images")
  for flags, message in (
    ([f"--workdir={tmp_path}/{{}}/run"], "the work directory .* differs from that of process 0"),
    (
      [f"--workdir={tmp_path}/run", *folder],
      "the data of process 1 differs",
    ),
  ):
    joined = Processes(environment | {"HOME": f"{tmp_path}/{{}}"}, 2, 1, *TRAIN, *flags)
    for text in joined.finish(2, 2):
      assert re.search(message, text)
    assert not (tmp_path / "1" / "run").exists()


@pytest.mark.parametrize(
  "flags, message",
  [
    (["--num_processes=2"], "--coordinator, --num_processes and --process_id go together"),
    (["--num_processes=2", "--process_id=0", "--coordinator=localhost"], "--coordinator=localhost has no port"),
    (["--num_processes=2", "--process_id=2", "--coordinator=localhost:1"], "--process_id=2 of 2 processes"),
  ],
)
def test_flags_that_do_not_fit_together(refused, flags, message):
  assert message in refused(*TRAIN, *flags)


def test_bad_input_ends_all_processes_with_the_reason(environment, tmp_path):
  (tmp_path / "something").write_text("else")
  printed = Processes(environment, 2, 1, *TRAIN, f"--workdir={tmp_path}").finish(2, 2)
  assert all("is not empty" in text for text in printed)
