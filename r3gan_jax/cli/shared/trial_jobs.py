"""Makes the runs of a comparison in processes of their own, and then its page; for cli.compare and cli.sweep."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from absl import flags, logging
from etils import epath
from ml_collections import ConfigDict

from r3gan_jax import trials
from r3gan_jax.cli.shared.devices import cores, gpus, share
from r3gan_jax.cli.shared.numbers import parse_numbers
from r3gan_jax.cli.shared.outputs import output_path
from r3gan_jax.errors import Interrupted, UserError
from r3gan_jax.reporting.results import BOUNDS, Bounds, Entry, Row, read_results, table
from r3gan_jax.storage import failing_as, is_remote
from r3gan_jax.training.distributed import Preemption
from r3gan_jax.trials import Trial

_ONLY = flags.DEFINE_list(
  "only", None, f"Names of entries; '{BOUNDS}': the floors and ceilings. Default: all entries, and {BOUNDS}."
)
_SEEDS = flags.DEFINE_string("seeds", "0-2", "Seeds, e.g. 0-2 or 1,5.")
_JOBS = flags.DEFINE_integer(
  "jobs", 1, "How many runs to train at a time; they share out the cores, and the GPUs.", lower_bound=1
)
_OUT = flags.DEFINE_string("out", None, "The directory of the work directories, OUT/NAME/ENTRY/seed_N.", required=True)
_RESULTS = flags.DEFINE_string("results", None, "The directory of results, RESULTS/NAME; default: OUT/results.")

_POLL_SECONDS = 0.1


@dataclass
class _Job:
  """A trial, or the bounds (None), of a command of r3gan_jax.cli, and the process that makes it."""

  command: str
  trial: Trial | None
  log: Path
  process: subprocess.Popen[bytes] = field(init=False)

  @property
  def name(self) -> str:
    return f"{self.trial.entry}, {self.trial.name}" if self.trial else BOUNDS

  def start(self, slot: int) -> None:
    """Starts this command for this run alone; a session of its own keeps Ctrl-C for the process that waits for it."""
    chosen = [f"--only={self.trial.entry if self.trial else BOUNDS}"]
    if self.trial:
      chosen += [f"--seeds={self.trial.seed}"] + [f"--rates={self.trial.rate!r}"] * ("rates" in flags.FLAGS)
    command = [sys.executable, "-m", f"r3gan_jax.cli.{self.command}", *sys.argv[1:], *chosen]
    cards, own_cores = share(gpus(), slot, _JOBS.value), share(cores(), slot, _JOBS.value)
    environment = os.environ | ({"CUDA_VISIBLE_DEVICES": ",".join(cards)} if cards else {})
    self.log.parent.mkdir(parents=True, exist_ok=True)
    with self.log.open("ab") as log:
      self.process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=environment
      )
    if own_cores:  # before it has other threads, which would keep theirs
      os.sched_setaffinity(self.process.pid, own_cores)

  def last_line(self) -> str:
    """Returns the last line of the log."""
    return self.log.read_text(errors="replace").rstrip().rpartition("\n")[2]


def make_results(
  command: str,
  comparison: ConfigDict,
  write_page: Callable[[epath.Path, Sequence[Row], Bounds], None],
  rates: Sequence[float] = (1.0,),
) -> None:
  """Makes the runs of a comparison that the flags name and that have no result, and prints and writes what all show.

  Args:
    command: the module of r3gan_jax.cli whose process this is; the runs are made by it with --only and --seeds.
    comparison: see `trials.default_comparison`.
    write_page: (directory, rows, bounds) -> files beside the results.
    rates: what learning rates are multiplied by.

  Raises:
    UserError: a flag, an entry or a result cannot be used, or runs have failed.
    Interrupted: after a signal; all runs have been told to save, and have ended.
  """
  chosen = _chosen(comparison, rates)
  out, results = _directories(comparison)
  for trial in filter(None, chosen):  # reports errors in any of them before training
    trial.check()
  left = [trial for trial in chosen if not _is_finished(comparison, trial, results)]
  if len(chosen) == 1 and left:
    _make(comparison, left[0], out, results)
  failed = _run_all(command, left, out) if len(chosen) > 1 else []
  entries = [
    Entry(name, *(str(comparison.entries[name][part]) for part in ("group", "control", "given")))
    for name in comparison.order
  ]
  rows, bounds = read_results(results, entries)
  if rows:
    with failing_as(f"cannot write to {results}", results, "choose another --results"):
      write_page(results, rows, bounds)
    print(table(rows, bounds), end="")
  if failed:
    raise UserError(f"{len(failed)} runs have failed, see {failed[0].log}: the same command tries them again")


def _chosen(comparison: ConfigDict, rates: Sequence[float]) -> list[Trial | None]:
  """Returns the runs that the flags name; None is that of the bounds."""
  only = [*comparison.order, BOUNDS] if _ONLY.value is None else list(dict.fromkeys(_ONLY.value))
  for name in only:
    if name not in (*comparison.order, BOUNDS):
      raise UserError(f"--only={name} is unknown: choose from {', '.join(comparison.order)}, {BOUNDS}")
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


def _run_all(command: str, left: Sequence[Trial | None], out: Path) -> list[_Job]:
  """Makes runs in processes of their own, --jobs at a time; returns those that failed. Errors: `make_results`."""
  if 0 < len(gpus()) < _JOBS.value:
    raise UserError(
      f"--jobs={_JOBS.value}: a run takes all memory of a GPU, and there are {len(gpus())}: choose fewer, or set "
      "JAX_PLATFORMS=cpu"
    )
  waiting = [_Job(command, trial, _log_of(trial, out)) for trial in left]
  running: dict[int, _Job] = {}
  failed: list[_Job] = []
  told_to_save = False
  with Preemption().watched() as preemption:
    try:
      while running or (waiting and not preemption.signalled):
        for slot in set(range(_JOBS.value)) - running.keys():
          if waiting and not preemption.signalled:
            running[slot] = waiting.pop(0)
            running[slot].start(slot)
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
