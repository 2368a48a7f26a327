"""Several processes, one a host or one a GPU: starting them together, agreeing, and noticing that one is gone."""

import faulthandler
import hashlib
import json
import os
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
from absl import logging
from jax.experimental import multihost_utils

from r3gan_jax.errors import INTERRUPTED, UserError

_LONGEST_MESSAGE = 4096


def initialize(
  coordinator: str | None, num_processes: int | None, process_id: int | None, peer_timeout_seconds: int
) -> None:
  """Joins this process with its peers, before anything else asks JAX for devices.

  With no arguments but the last, the environment decides: a TPU pod, SLURM, Open MPI, or a process of its own, which
  `num_processes` = 1 makes it in any case.
  Only the first process logs below warnings from here on.

  Args:
    coordinator: host:port of process 0.
    peer_timeout_seconds: a process that has not been heard of for so long ends all.

  Raises:
    UserError: only some of the first three are given, or the peers do not come.
  """
  given = [value is not None for value in (coordinator, num_processes, process_id)]
  if num_processes == 1:
    return
  if any(given) and not all(given):
    raise UserError("--coordinator, --num_processes and --process_id go together: name all three, or none")
  try:
    jax.distributed.initialize(
      coordinator,
      num_processes,
      process_id,
      heartbeat_timeout_seconds=peer_timeout_seconds,
      shutdown_timeout_seconds=peer_timeout_seconds,
    )
  except Exception as error:  # whatever asking the environment raises
    if any(given) or "coordinator_address should be defined" not in str(error):
      cure = "for this machine alone: --num_processes=1"
      raise UserError(f"the processes could not be joined ({str(error).splitlines()[0]}): {cure}") from None
  if jax.process_index() > 0:
    logging.set_verbosity(logging.WARNING)
  if jax.process_count() > 1:
    faulthandler.disable()  # it would print a stack after the runtime's last message, that a peer is gone


def is_first_process() -> bool:
  """Whether this is the process that writes logs, grids and reports."""
  return jax.process_index() == 0


def on_first_process(action: Callable[[], None]) -> None:
  """Runs `action` on the first process while the others wait. Its UserError is raised on all of them."""
  message = ""
  if is_first_process():
    try:
      action()
    except UserError as error:
      message = str(error)
  buffer = np.zeros(_LONGEST_MESSAGE, np.uint8)
  encoded = np.frombuffer(message.encode()[:_LONGEST_MESSAGE], np.uint8)
  buffer[: len(encoded)] = encoded
  message = bytes(_of_first_process(buffer)).rstrip(b"\0").decode(errors="replace")
  if message:
    raise UserError(message)


def agreed(value: bool) -> bool:
  """What the first process says."""
  return bool(_of_first_process(np.array(value)))


def gathered(rows: np.ndarray, share: int) -> np.ndarray:
  """[n, ...] of each process, n of at most `share`, less only on the last ones -> [share * processes, ...] on all."""
  padded = np.zeros((share, *rows.shape[1:]), rows.dtype)
  padded[: len(rows)] = rows
  return multihost_utils.process_allgather(padded).reshape(-1, *rows.shape[1:])


def check_same_everywhere(what: str, value: Any) -> None:
  """Raises a UserError on every process where `value`, as JSON, is not the same on all."""
  digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()
  digests = multihost_utils.process_allgather(np.frombuffer(digest, np.uint8)).reshape(-1, len(digest))
  differing = np.flatnonzero((digests != digests[0]).any(axis=1))
  if len(differing):
    raise UserError(f"{what} of process {differing[0]} is not that of process 0: start all with the same command")


def _of_first_process(value: np.ndarray) -> np.ndarray:
  return value if jax.process_count() == 1 else np.asarray(multihost_utils.broadcast_one_to_all(value))


class Preemption:
  """Notices SIGTERM, which comes before a maintenance event, the end of a SLURM job, or another's turn.

  Of several processes one that got it is enough, and all learn of it at the same iteration.
  """

  def __init__(self) -> None:
    self._signalled = False

  def requested(self, iteration: int) -> bool:
    """To be asked once after every iteration, counted without a gap."""
    # JAX's runtime handles the signal itself where it joins processes.
    return multihost_utils.reached_preemption_sync_point(iteration) or self._signalled

  @contextmanager
  def watched(self) -> Iterator["Preemption"]:
    """Inside, the signal does no more than to be noticed."""
    if jax.distributed.is_initialized() or threading.current_thread() is not threading.main_thread():
      yield self
      return

    def notice(signum: int, frame: FrameType | None) -> None:
      self._signalled = True

    before = signal.signal(signal.SIGTERM, notice)
    try:
      yield self
    finally:
      signal.signal(signal.SIGTERM, before)


class Watchdog:
  """Ends the process, with status `INTERRUPTED`, when `beat` has not been called for `seconds`.

  That a peer is gone JAX's runtime notices by itself. This is for one that lives but does not go on: collectives wait
  for it for ever, and nothing that waits inside the accelerator's runtime can be interrupted.
  """

  def __init__(self, seconds: float):
    self._seconds = seconds
    self._last_beat: float | None = None
    self._closed = threading.Event()
    threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

  def beat(self) -> None:
    """Something has been done."""
    self._last_beat = time.monotonic()

  def rest(self) -> None:
    """Do not watch until the next beat."""
    self._last_beat = None

  def close(self) -> None:
    """Ends the watch."""
    self._closed.set()

  def _watch(self) -> None:
    while not self._closed.wait(min(1.0, self._seconds / 4)):
      last_beat = self._last_beat
      if last_beat is not None and time.monotonic() - last_beat > self._seconds:
        print(
          f"error: no iteration has ended for {self._seconds:g} seconds (config.run.stall_seconds): this process or "
          "another one hangs. The same command resumes from the last checkpoint",
          file=sys.stderr,
          flush=True,
        )
        os._exit(INTERRUPTED)
