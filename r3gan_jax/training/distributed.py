"""Training in several processes, one per host or GPU: start-up, agreement, preemption and hangs."""

import faulthandler
import hashlib
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import jax
import numpy as np
import numpy.typing as npt
from absl import logging
from jax.experimental import multihost_utils

from r3gan_jax.errors import INTERRUPTED, UserError, one_line

_LONGEST_MESSAGE = 4096


def initialize(
  coordinator: str | None, num_processes: int | None, process_id: int | None, peer_timeout_seconds: int
) -> None:
  """Joins this process with its peers; call it before JAX looks for devices.

  If the first three arguments are None the environment decides: a TPU pod, SLURM, Open MPI, or a single process.
  Afterwards, processes other than 0 log only warnings and errors. If the peers do not come, the process exits with
  status `INTERRUPTED`.

  Args:
    coordinator: host:port of process 0.
    num_processes: their number; 1: a single process, whatever the environment.
    process_id: the index of this process.
    peer_timeout_seconds: seconds to wait for the others, and seconds without a heartbeat from one before all exit.

  Raises:
    UserError: the first three do not fit together, or the environment cannot be understood.
  """
  given = [value is not None for value in (coordinator, num_processes, process_id)]
  if num_processes == 1:
    return
  if any(given) and not all(given):
    raise UserError("--coordinator, --num_processes and --process_id go together: give all three, or none")
  if coordinator and num_processes and process_id is not None:
    if not re.fullmatch(r".+:\d+", coordinator):
      raise UserError(f"--coordinator={coordinator} has no port: give host:port of process 0, e.g. {coordinator}:1234")
    if not 0 <= process_id < num_processes:
      raise UserError(f"--process_id={process_id} of {num_processes} processes: choose 0 to {num_processes - 1}")
    logging.info("process %d waits for all %d at %s", process_id, num_processes, coordinator)
  # JAX's own timeout, which is longer, would end the process with a stack trace.
  watchdog = Watchdog(
    peer_timeout_seconds,
    f"not all processes have come within {peer_timeout_seconds} seconds: start all, with the same --coordinator "
    "(for a single process, --num_processes=1)",
  )
  watchdog.reset()
  try:
    jax.distributed.initialize(
      coordinator,
      num_processes,
      process_id,
      initialization_timeout=2 * peer_timeout_seconds + 60,
      heartbeat_timeout_seconds=peer_timeout_seconds,
      shutdown_timeout_seconds=peer_timeout_seconds,
    )
  except Exception as error:  # detecting the environment can raise anything
    if any(given) or "coordinator_address should be defined" not in str(error):
      cure = "for a single process, --num_processes=1"
      raise UserError(f"the processes could not be joined ({one_line(error)}): {cure}") from None
  finally:
    watchdog.close()
  if jax.process_index() > 0:
    logging.set_verbosity(logging.WARNING)
  if jax.process_count() > 1:
    faulthandler.disable()  # it would print a stack after the runtime's message that a peer has ended


def is_first_process() -> bool:
  """Returns whether this is process 0, which writes logs, grids and reports."""
  return jax.process_index() == 0


def on_first_process(action: Callable[[], None]) -> None:
  """Runs `action` on process 0 while the others wait; all processes raise its UserError."""
  message = ""
  if is_first_process():
    try:
      action()
    except UserError as error:
      message = str(error)
  buffer = np.zeros(_LONGEST_MESSAGE, np.uint8)
  encoded = np.frombuffer(message.encode()[:_LONGEST_MESSAGE], np.uint8)
  buffer[: len(encoded)] = encoded
  message = bytes(_broadcast(buffer)).rstrip(b"\0").decode(errors="replace")
  if message:
    raise UserError(message)


def from_first_process(value: npt.ArrayLike) -> np.ndarray:
  """Returns the value of process 0, of the same shape on all."""
  return _broadcast(np.asarray(value))


def on_any_process(value: bool) -> bool:
  """Returns whether `value` is true on any process."""
  return bool(np.any(multihost_utils.process_allgather(np.array(value)))) if jax.process_count() > 1 else value


def gathered(rows: np.ndarray, share: int) -> np.ndarray:
  """Gathers the rows [n, ...] of all processes, each padded to `share`: returns [share * processes, ...]."""
  padded = np.zeros((share, *rows.shape[1:]), rows.dtype)
  padded[: len(rows)] = rows
  return multihost_utils.process_allgather(padded).reshape(-1, *rows.shape[1:])


def check_same_everywhere(what: str, value: Any, cure: str = "start all with the same command") -> None:
  """Raises a UserError on all processes unless `value`, as JSON, is the same on all."""
  digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()
  digests = multihost_utils.process_allgather(np.frombuffer(digest, np.uint8)).reshape(-1, len(digest))
  differing = np.flatnonzero((digests != digests[0]).any(axis=1))
  if len(differing):
    raise UserError(f"{what} of process {differing[0]} differs from that of process 0: {cure}")


def _broadcast(value: np.ndarray) -> np.ndarray:
  return value if jax.process_count() == 1 else np.asarray(multihost_utils.broadcast_one_to_all(value))


class Preemption:
  """Notices SIGTERM, sent before maintenance, at the end of a SLURM job or on preemption; and Ctrl-C and SIGHUP.

  If one process receives SIGTERM, all learn of it at the same iteration. A second Ctrl-C ends the process at once.

  Attributes:
    signal: the name of the signal.
    signalled: whether this process has received one; `requested` also knows of the other processes.
  """

  def __init__(self) -> None:
    self.signal = "SIGTERM"
    self.signalled = False

  def requested(self, iteration: int) -> bool:
    """Returns whether to stop; call it after every iteration, with consecutive numbers."""
    # With several processes JAX's runtime handles SIGTERM itself.
    return multihost_utils.reached_preemption_sync_point(iteration) or self.signalled

  @contextmanager
  def watched(self) -> Iterator["Preemption"]:
    """Catches the signals within the context, so that only `requested` reports them."""
    if jax.distributed.is_initialized() or threading.current_thread() is not threading.main_thread():
      yield self
      return

    def notice(signum: int, frame: FrameType | None) -> None:
      self.signalled, self.signal = True, signal.Signals(signum).name
      if signum == signal.SIGINT:
        logging.warning("Ctrl-C: saving after this iteration; a second one ends at once, without saving")
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {}
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
      if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
        before[number] = signal.signal(number, notice)
    try:
      yield self
    finally:
      for number, handler in before.items():
        signal.signal(number, handler)


class Watchdog:
  """Prints a message and exits the process with status `INTERRUPTED` if `reset` is not called for `seconds`.

  JAX's runtime notices peers that have ended, but not a peer that hangs: collectives wait for it forever, and a thread
  that waits inside the accelerator's runtime cannot be interrupted.
  """

  def __init__(self, seconds: float, message: str):
    self._seconds, self._message = seconds, message
    self._last_reset: float | None = None
    self._closed = threading.Event()
    threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

  def reset(self) -> None:
    """Restarts the timer."""
    self._last_reset = time.monotonic()

  def pause(self) -> None:
    """Stops the timer until the next reset."""
    self._last_reset = None

  def close(self) -> None:
    """Ends the watchdog's thread."""
    self._closed.set()

  def _watch(self) -> None:
    while not self._closed.wait(min(1.0, self._seconds / 4)):
      last_reset = self._last_reset
      if last_reset is not None and time.monotonic() - last_reset > self._seconds:
        print(f"error: {self._message}", file=sys.stderr, flush=True)
        os._exit(INTERRUPTED)
