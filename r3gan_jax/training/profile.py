"""Traces some iterations, for TensorBoard's profile page or ui.perfetto.dev."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from absl import logging
from etils import epath

from r3gan_jax.storage import write_whole
from r3gan_jax.training.distributed import is_first_process


class Profile:
  """Traces the devices of the first process during some iterations.

  Args:
    directory: where the trace is written.
    iterations: (first, last), counted from the start of the process; (): none.
  """

  def __init__(self, directory: epath.Path, iterations: Sequence[int]):
    self._directory = directory
    self._first, self._last = iterations if iterations and is_first_process() else (-1, -1)
    self._trace: tempfile.TemporaryDirectory[str] | None = None

  def before(self, iteration: int) -> None:
    """Starts the trace if `iteration` is the first."""
    if iteration == self._first:
      self._trace = tempfile.TemporaryDirectory()
      jax.profiler.start_trace(self._trace.name, create_perfetto_trace=True)

  def after(self, iteration: int, result: Any) -> None:
    """Ends the trace if `iteration` is the last, once its `result` has been computed."""
    if iteration == self._last and self._trace:
      jax.block_until_ready(result)
      self.close()

  def close(self) -> None:
    """Ends a running trace and writes it to the directory."""
    if self._trace is None:
      return
    jax.profiler.stop_trace()
    # The profiler writes to local disks only.
    for path in Path(self._trace.name).rglob("*"):
      if path.is_file():
        write_whole(self._directory / str(path.relative_to(self._trace.name)), path.read_bytes())
    self._trace.cleanup()
    self._trace = None
    logging.info("the trace of iterations %d to %d is in %s", self._first, self._last, self._directory)
