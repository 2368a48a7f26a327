"""A trace of some iterations, for TensorBoard's profile page or ui.perfetto.dev."""

import tempfile
from pathlib import Path
from typing import Any

import jax
from absl import logging
from etils import epath

from r3gan_jax.storage import make_directory
from r3gan_jax.training.distributed import is_first_process


class Profile:
  """Traces the iterations `first` to `last`, counted from the start of the process, of the first process's devices.

  Args:
    directory: where the trace goes.
    iterations: (first, last); None: no trace.
  """

  def __init__(self, directory: epath.Path, iterations: tuple[int, int] | None):
    self._directory = directory
    self._first, self._last = iterations if iterations and is_first_process() else (-1, -1)
    self._trace: tempfile.TemporaryDirectory[str] | None = None

  def before(self, iteration: int) -> None:
    """Starts the trace when it is time."""
    if iteration == self._first:
      self._trace = tempfile.TemporaryDirectory()
      jax.profiler.start_trace(self._trace.name, create_perfetto_trace=True)

  def after(self, iteration: int, result: Any) -> None:
    """Ends the trace when it is time, once `result` of the iteration is there."""
    if iteration == self._last and self._trace:
      jax.block_until_ready(result)
      self.close()

  def close(self) -> None:
    """Ends the trace where one is running."""
    if self._trace is None:
      return
    jax.profiler.stop_trace()
    # Traced into a directory of this machine, since the profiler knows no other.
    for path in Path(self._trace.name).rglob("*"):
      if path.is_file():
        target = self._directory / str(path.relative_to(self._trace.name))
        make_directory(target.parent)
        target.write_bytes(path.read_bytes())
    self._trace.cleanup()
    self._trace = None
    logging.info("the trace of iterations %d to %d is in %s", self._first, self._last, self._directory)
