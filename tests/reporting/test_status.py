"""The state of a run, from its events or, where it says nothing, from the age of its last line."""

import os
import time

import pytest
from etils import epath

from r3gan_jax.reporting.status import duration, facts, status, training_seconds
from r3gan_jax.training.logging import append_line, read_events, read_metrics

START = {"event": "started", "time": "2026-01-02T03:04:05+00:00", "devices": "8 x TPU v4", "versions": "jax 1"}
ENDED = {"event": "ended", "reason": "finished"}
DIVERGED = {"event": "ended", "reason": "training diverged at 60 images: generator/loss not finite. The last good"}
STOPPED = {"event": "ended", "reason": "stopped by SIGTERM at 64 images: the same command resumes"}
RATE = {"progress/images_per_second": 2.0}

CASES = {
  "old, finished": ([(100, RATE)], 0, False, "finished"),
  "old, running": ([(64, RATE)], 0, False, "running"),
  "old, stopped": ([(64, RATE)], 3600, False, "stopped"),
  "slow": ([(64, {"progress/images_per_second": 0.01})], 3600, False, "running"),
  "running": ([(0, START), (64, RATE)], 0, True, "running"),
  "killed": ([(0, START), (64, RATE)], 3600, True, "stopped"),
  "crashed": ([(0, START), (64, RATE)], 0, False, "stopped"),
  "finished": ([(0, START), (64, RATE), (100, ENDED)], 0, False, "finished"),
  "more images wanted": ([(0, START), (64, RATE), (64, ENDED)], 0, False, "finished"),
  "diverged": ([(0, START), (64, RATE), (64, DIVERGED)], 0, False, "diverged"),
  "interrupted": ([(0, START), (64, STOPPED), (64, {"metrics/fid": 1.0})], 0, False, "stopped"),
  "resumed": ([(0, START), (64, STOPPED), (64, START | {"event": "resumed"})], 0, True, "running"),
  "rolled back": ([(0, START), (64, RATE), (32, {"event": "rolled back"})], 0, True, "running"),
  "nothing": ([], 0, False, "not started"),
}


@pytest.mark.parametrize("name", CASES)
def test_state(tmp_path, name):
  lines, age, is_locked, state = CASES[name]
  for images_seen, values in lines:
    append_line(epath.Path(tmp_path / "metrics.jsonl"), images_seen, values)
  if lines:
    os.utime(tmp_path / "metrics.jsonl", (time.time() - age,) * 2)
  if is_locked:
    (tmp_path / "lock").touch()
  found = status(epath.Path(tmp_path), {"run": {"total_images": 100}}, read_metrics(tmp_path), read_events(tmp_path))
  assert found.state == state and found.total_images == 100
  if name in ("diverged", "interrupted"):
    assert found.reason == dict(lines[1:])[64].get("reason", STOPPED["reason"])
  if name == "rolled back":
    assert found.images_seen == 32


def test_facts_and_training_time(tmp_path):
  """Lost parts do not count: 100 images at 2 images/s, the last 40 of them at 4, and 3 s of snapshots."""
  lines = [(0, START), (60, RATE), (60, {"progress/snapshot_seconds": 3.0}), (90, RATE)]
  lines += [(60, START | {"event": "resumed", "devices": "1 x CPU"}), (60, {"event": "rolled back"})]
  lines += [(100, {"progress/images_per_second": 4.0}), (100, {"progress/snapshot_seconds": float("nan")})]
  for images_seen, values in lines:
    append_line(epath.Path(tmp_path / "metrics.jsonl"), images_seen, values)
  metrics = read_metrics(tmp_path)
  assert training_seconds(metrics) == 30 + 3 + 10
  shown = facts(metrics, read_events(tmp_path), changes=0)
  assert shown["training time"] == "43 s" and shown["hardware"] == "8 x TPU v4; 1 x CPU"
  assert shown["started"] == "2026-01-02 03:04:05 UTC, resumed 1 time" and shown["versions"] == "jax 1"
  assert shown["rollbacks"].startswith("1,") and shown["changed settings"] == "none"
  assert facts({}, [], changes=2)["hardware"] == "not recorded"


@pytest.mark.parametrize(
  ("seconds", "text"),
  [(0, "0 s"), (59.4, "59 s"), (60, "1 min"), (3599, "1 h 0 min"), (3660, "1 h 1 min"), (90_000, "1 d 1 h")],
)
def test_duration(seconds, text):
  assert duration(seconds) == text
