"""Compares recipes under one budget, over several seeds:

    python -m r3gan_jax.cli.compare --comparison=configs/comparisons/losses.py:stacked_digits --out=runs/losses

trains every entry of a comparison with every seed, --jobs at a time, each in a process of its own on its own cores,
and scores what no GAN has drawn as well. Then a page is written, with a table, a figure and samples:
RESULTS/NAME/README.md, by default in OUT/results. The same command continues after an interruption, and leaves alone
what has a result, also if its work directory is gone; other entries and seeds join the comparison:

    python -m r3gan_jax.cli.compare --comparison=configs/comparisons/zoo.py:fashion_mnist --seeds=0-2 --jobs=2 \
      --out=runs/zoo --results=docs/results/zoo
    python -m r3gan_jax.cli.compare --comparison=configs/comparisons/zoo.py:fashion_mnist --seeds=0 --rates=0.5,2 \
      --out=runs/zoo --results=docs/results/zoo

Each run is an ordinary work directory, OUT/NAME/ENTRY/seed_N, with its log beside it. A run with a non-finite loss or
gradient has diverged, and has no scores. One that fails does not end the others.
"""

from r3gan_jax.memory import keep_memory

if __name__ == "__main__":
  keep_memory()

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from absl import flags, logging
from etils import epath
from ml_collections import ConfigDict

from r3gan_jax import trials
from r3gan_jax.cli.shared.numbers import parse_numbers
from r3gan_jax.cli.shared.outputs import output_path
from r3gan_jax.cli.shared.recipes import define_recipe
from r3gan_jax.cli.shared.runner import run
from r3gan_jax.errors import Interrupted, UserError
from r3gan_jax.reporting.comparison_page import write_page
from r3gan_jax.reporting.results import BOUNDS, Entry, read_results, table
from r3gan_jax.storage import failing_as, is_remote
from r3gan_jax.training.distributed import Preemption
from r3gan_jax.trials import Trial

_COMPARISON = define_recipe("comparison", "The comparison, e.g. configs/comparisons/losses.py:stacked_digits.")
_ONLY = flags.DEFINE_list(
  "only", None, f"Names of entries; '{BOUNDS}': the floors and ceilings. Default: all entries, and {BOUNDS}."
)
_SEEDS = flags.DEFINE_string("seeds", "0-2", "Seeds, e.g. 0-2 or 1,5.")
_RATES = flags.DEFINE_list("rates", ["1"], "What learning rates are multiplied by, e.g. 0.5,2.")
_JOBS = flags.DEFINE_integer("jobs", 1, "How many runs to train at a time.", lower_bound=1)
_OUT = flags.DEFINE_string("out", None, "The directory of the work directories, OUT/NAME/ENTRY/seed_N.", required=True)
_RESULTS = flags.DEFINE_string("results", None, "The directory of results, RESULTS/NAME; default: OUT/results.")

_POLL_SECONDS = 0.1


@dataclass
class _Job:
  """A trial, or the bounds (None), and the process that makes it."""

  trial: Trial | None
  log: Path
  process: subprocess.Popen[bytes] = field(init=False)

  @property
  def name(self) -> str:
    return f"{self.trial.entry}, {self.trial.name}" if self.trial else BOUNDS

  def start(self, cores: Sequence[int]) -> None:
    """Starts this command for this run alone; a session of its own keeps Ctrl-C for the process that waits for it."""
    chosen = [f"--only={self.trial.entry if self.trial else BOUNDS}"]
    if self.trial:
      chosen += [f"--seeds={self.trial.seed}", f"--rates={self.trial.rate!r}"]
    command = [sys.executable, "-m", "r3gan_jax.cli.compare", *sys.argv[1:], *chosen]
    self.log.parent.mkdir(parents=True, exist_ok=True)
    with self.log.open("ab") as log:
      self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    if cores:  # before it has other threads, which would keep theirs
      os.sched_setaffinity(self.process.pid, cores)

  def last_line(self) -> str:
    """Returns the last line of the log."""
    return self.log.read_text(errors="replace").rstrip().rpartition("\n")[2]


def main() -> None:
  comparison = _COMPARISON.value
  chosen = _chosen(comparison)
  out, results = _directories(comparison)
  for trial in filter(None, chosen):  # reports errors in any of them before training
    trial.check()
  left = [trial for trial in chosen if not _is_finished(comparison, trial, results)]
  if len(chosen) == 1 and left:
    _make(comparison, left[0], out, results)
  failed = _run_all(left, out) if len(chosen) > 1 else []
  entries = [
    Entry(name, *(str(comparison.entries[name][part]) for part in ("group", "control", "given")))
    for name in comparison.order
  ]
  rows, bounds = read_results(results, entries)
  if rows:
    with failing_as(f"cannot write to {results}", results, "choose another --results"):
      write_page(results, comparison.title, rows, bounds)
    print(table(rows, bounds), end="")
  if failed:
    raise UserError(f"{len(failed)} runs have failed, see {failed[0].log}: the same command tries them again")


def _chosen(comparison: ConfigDict) -> list[Trial | None]:
  """Returns the runs that the flags name; None is that of the bounds."""
  only = [*comparison.order, BOUNDS] if _ONLY.value is None else list(dict.fromkeys(_ONLY.value))
  for name in only:
    if name not in (*comparison.order, BOUNDS):
      raise UserError(f"--only={name} is unknown: choose from {', '.join(comparison.order)}, {BOUNDS}")
  try:
    rates = list(dict.fromkeys(map(float, _RATES.value)))
  except ValueError:
    rates = [0.0]
  if min(rates, default=0.0) <= 0:
    raise UserError(f"--rates={','.join(_RATES.value)}: give positive numbers, e.g. 0.5,2")
  seeds = parse_numbers("seeds", _SEEDS.value, 2**31).distinct()
  entries = [name for name in only if name != BOUNDS]
  bounds: list[Trial | None] = [None] * (BOUNDS in only)
  return bounds + trials.chosen_trials(comparison, entries, seeds, rates)


def _directories(comparison: ConfigDict) -> tuple[Path, epath.Path]:
  """Returns those of the work directories and of the results."""
  if is_remote(_OUT.value):
    raise UserError(f"--out={_OUT.value}: runs are processes of this machine: give a local directory")
  out, _ = output_path("out", _OUT.value, directory=True)
  results = output_path("results", _RESULTS.value, directory=True)[0] if _RESULTS.value else out / "results"
  return Path(out) / comparison.name, results / comparison.name


def _is_finished(comparison: ConfigDict, trial: Trial | None, results: epath.Path) -> bool:
  return trial.is_finished(results) if trial else trials.has_bounds(comparison, results)


def _make(comparison: ConfigDict, trial: Trial | None, out: Path, results: epath.Path) -> None:
  """Makes one run in this process."""
  if trial:
    trials.train(trial, epath.Path(out), results)
  else:
    trials.measure_bounds(comparison, results)


def _run_all(left: Sequence[Trial | None], out: Path) -> list[_Job]:
  """Makes runs in processes of their own, --jobs at a time; returns those that failed.

  Raises:
    Interrupted: after a signal; all runs have been told to save, and have ended.
  """
  waiting = [_Job(trial, _log_of(trial, out)) for trial in left]
  running: dict[int, _Job] = {}
  failed: list[_Job] = []
  told_to_save = False
  with Preemption().watched() as preemption:
    try:
      while running or (waiting and not preemption.signalled):
        for slot in set(range(_JOBS.value)) - running.keys():
          if waiting and not preemption.signalled:
            running[slot] = waiting.pop(0)
            running[slot].start(_cores(slot))
        if preemption.signalled and not told_to_save:
          told_to_save = True
          for job in running.values():
            job.process.terminate()
        time.sleep(_POLL_SECONDS)
        for slot, job in [*running.items()]:
          status = job.process.poll()
          if status is None:
            continue
          del running[slot]
          if status and not told_to_save:
            failed.append(job)
            logging.error("%s has failed with status %d: %s", job.name, status, job.last_line())
          else:
            logging.info("%s has ended; %d of %d are left", job.name, len(waiting) + len(running), len(left))
    finally:  # after a second Ctrl-C
      for job in running.values():
        job.process.kill()
  if preemption.signalled:
    raise Interrupted(f"stopped by {preemption.signal}: the same command continues")
  return failed


def _log_of(trial: Trial | None, out: Path) -> Path:
  return out / trial.entry / f"{trial.name}.log" if trial else out / f"{BOUNDS}.log"


def _cores(slot: int) -> list[int]:
  """Returns the cores of one of --jobs runs at a time; [] where processes cannot be pinned."""
  if not hasattr(os, "sched_getaffinity"):
    return []
  cores = sorted(os.sched_getaffinity(0))
  return cores[slot :: _JOBS.value] or cores


if __name__ == "__main__":
  flags.mark_flag_as_required("comparison")
  run(main)
