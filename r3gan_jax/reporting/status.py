"""The state of a run, and what it was trained on and with, from its work directory."""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from r3gan_jax.reporting.series import Metrics
from r3gan_jax.training.logging import ENDED, FINISHED, METRICS_FILE, ROLLED_BACK
from r3gan_jax.training.workdir import LOCK_FILE, read_history

Events = Sequence[tuple[int, Mapping[str, str]]]
"""See `training.logging.read_events`."""

_PATIENCE_SECONDS = 300.0
"""A run without a log line for this long, and for three times as long as one should take, runs no more."""


class Status(NamedTuple):
  state: str  # "finished", "running", "stopped", "diverged" or "not started"
  reason: str  # more about it; ""
  images_seen: int
  total_images: int  # 0: unknown


def status(workdir: epath.Path, config: Mapping[str, Any], metrics: Metrics, events: Events) -> Status:
  """Returns the state of a run; if nothing says so, the age of the last line tells whether it still runs."""
  ends = [int(images_seen[-1]) for images_seen, _ in metrics.values()] + [at for at, _ in events[-1:]]
  images_seen = max(ends, default=0)
  run = config.get("run")
  total = run.get("total_images") if isinstance(run, dict) else None
  total = total if type(total) is int and total > 0 else 0
  last = events[-1][1] if events else {}
  if last.get("event") == ENDED:
    reason = last.get("reason", "")
    if reason == FINISHED:
      return Status("finished", "", images_seen, total)
    return Status("diverged" if "training diverged" in reason else "stopped", reason, images_seen, total)
  if total and images_seen >= total:
    return Status("finished", "", images_seen, total)
  path = workdir / METRICS_FILE
  if not ends or not path.exists():
    return Status("not started", "", images_seen, total)
  age = max(0.0, time.time() - path.stat().mtime)
  is_left = bool(events) and not (workdir / LOCK_FILE).exists()
  if not is_left and age < max(_PATIENCE_SECONDS, 3 * np.max(_seconds(metrics), initial=0.0)):
    return Status("running", f"last line {duration(age)} ago", images_seen, total)
  reason = f"without a word, as when it is killed; last line {duration(age)} ago"
  return Status("stopped", reason, images_seen, total)


def facts(metrics: Metrics, events: Events, changes: int) -> dict[str, str]:
  """Returns what a reader first asks of a run, by name; `changes`: of settings."""
  starts = [texts for _, texts in events if "devices" in texts]
  rollbacks = [at for at, texts in events if texts["event"] == ROLLED_BACK]
  seconds = training_seconds(metrics)
  began = starts[0].get("time", "").replace("T", " ").replace("+00:00", " UTC") if starts else "not recorded"
  resumed = len(starts) - 1
  return {
    "training time": duration(seconds) if seconds else "unknown",
    "started": began + (f", resumed {resumed} time{'s' * (resumed > 1)}" if resumed > 0 else ""),
    "hardware": "; ".join(dict.fromkeys(texts["devices"] for texts in starts)) or "not recorded",
    "versions": "; ".join(dict.fromkeys(texts.get("versions", "") for texts in starts)) or "not recorded",
    "rollbacks": f"{len(rollbacks)}, the last to {rollbacks[-1]:,} images" if rollbacks else "none",
    "changed settings": f"{changes}, listed below" if changes else "none",
  }


def changed_settings(workdir: epath.Path) -> list[tuple[str, str, str, str]]:
  """Returns (images seen, setting, before, after) of every change that config.json's history records."""
  rows = []
  for entry in read_history(workdir):
    changes = entry.get("changes") if isinstance(entry, dict) else None
    at = entry.get("images_seen") if isinstance(entry, dict) else None
    for name, pair in changes.items() if isinstance(changes, dict) else ():
      before, after = pair if isinstance(pair, list) and len(pair) == 2 else ("?", pair)
      rows.append((f"{at:,}" if isinstance(at, int) else "?", name, json.dumps(before), json.dumps(after)))
  return rows


def training_seconds(metrics: Metrics) -> float:
  """Returns the time that what is kept of the run took: by the logged images/s, and snapshots."""
  return float(np.sum(_seconds(metrics)))


def _seconds(metrics: Metrics) -> np.ndarray:
  """Returns the times between log lines, by the logged images/s, and of snapshots."""
  nothing = (np.zeros(0, np.int64), np.zeros(0))
  images_seen, rates = metrics.get("progress/images_per_second", nothing)
  known = np.isfinite(rates) & (rates > 0)
  snapshots = metrics.get("progress/snapshot_seconds", nothing)[1]
  return np.concatenate([np.diff(images_seen, prepend=0)[known] / rates[known], snapshots[np.isfinite(snapshots)]])


def duration(seconds: float) -> str:
  """Returns e.g. "2 d 3 h", "4 h 5 min", "6 min" or "7 s"."""
  minutes, hours = round(seconds / 60), round(seconds / 3600)
  if seconds < 59.5:
    return f"{seconds:.0f} s"
  if minutes < 60:
    return f"{minutes} min"
  if minutes < 24 * 60:
    return f"{minutes // 60} h {minutes % 60} min"
  return f"{hours // 24} d {hours % 24} h"
