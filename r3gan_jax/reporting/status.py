"""The state of a run, and what it was trained on and with, from its work directory."""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from r3gan_jax.reporting.series import Metrics
from r3gan_jax.training.logging import ENDED, FINISHED, METRICS_FILE, ROLLED_BACK
from r3gan_jax.training.workdir import read_history

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
  """Returns the state of a run; without an event that says so, the age of the last line tells whether it still runs."""
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
  if age < max(_PATIENCE_SECONDS, 3 * _seconds_per_line(metrics)):
    return Status("running", f"last line {duration(age)} ago", images_seen, total)
  reason = f"without a word, as when it is killed; last line {duration(age)} ago"
  return Status("stopped", reason, images_seen, total)


def facts(metrics: Metrics, events: Events, changes: int) -> dict[str, str]:
  """Returns what a reader first asks of a run, by name."""
  starts = [texts for _, texts in events if "devices" in texts]
  rollbacks = [at for at, texts in events if texts.get("event") == ROLLED_BACK]
  seconds = training_seconds(metrics)
  return {
    "training time": duration(seconds) if seconds else "unknown",
    "started": (starts[0].get("time", "?") + (f", resumed {len(starts) - 1} times" * (len(starts) > 1)))
    if starts
    else "",
    "hardware": " / ".join(dict.fromkeys(texts["devices"] for texts in starts)),
    "versions": starts[-1].get("versions", "") if starts else "not recorded",
    "rollbacks": f"{len(rollbacks)}, to {', '.join(f'{at:,}' for at in rollbacks[-5:])} images"
    if rollbacks
    else "none",
    "changed settings": f"{changes}, see below" if changes else "",
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
  images_seen, rates = metrics.get("progress/images_per_second", (np.zeros(0, np.int64), np.zeros(0)))
  known = np.isfinite(rates) & (rates > 0)
  snapshots = metrics.get("progress/snapshot_seconds", ((), np.zeros(0)))[1]
  trained = np.diff(images_seen, prepend=0)[known] / rates[known]
  return float(np.sum(trained) + np.sum(snapshots[np.isfinite(snapshots)]))


def _seconds_per_line(metrics: Metrics) -> float:
  """Returns the longest time that a line has taken."""
  images_seen, rates = metrics.get("progress/images_per_second", (np.zeros(0, np.int64), np.zeros(0)))
  steps = np.diff(images_seen, prepend=0)[rates > 0] / rates[rates > 0]
  snapshots = metrics.get("progress/snapshot_seconds", ((), np.zeros(0)))[1]
  return max([0.0, *steps[np.isfinite(steps)], *snapshots[np.isfinite(snapshots)]])


def duration(seconds: float) -> str:
  """Returns e.g. "2 d 3 h", "4 h 5 min", "6 min" or "7 s"."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  days, hours = divmod(hours, 24)
  units = [(days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s")]
  first = next((i for i, (count, _) in enumerate(units) if count), 3)
  shown = units[first : first + 2] if first < 2 else units[first : first + 1]
  return " ".join(f"{count} {unit}" for count, unit in shown if count) if first < 3 else f"{seconds} s"
