"""The status line of a run, and the means of its metrics."""

import contextlib
import resource
import sys
import time
from collections.abc import Iterator

import jax
import numpy as np
from absl import logging

from r3gan_jax.errors import UserError
from r3gan_jax.training.step import Metrics


class Diverged(UserError):
  """Raised when a loss or gradient is not finite, at `images_seen` images."""

  def __init__(self, message: str, images_seen: int):
    super().__init__(message)
    self.images_seen = images_seen


class Progress:
  """Measures training speed from `images_seen` on, and logs the status line."""

  def __init__(self, images_seen: int, total_images: int):
    self._total_images = total_images
    self._last_images, self._last_time = images_seen, time.perf_counter()

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Excludes the time spent inside from training time."""
    began = time.perf_counter()
    yield
    self._last_time += time.perf_counter() - began

  def report(self, images_seen: int) -> dict[str, float]:
    """Logs the status line and returns its numbers: images/s since the last report, and peak memory in bytes."""
    now = time.perf_counter()
    rate = (images_seen - self._last_images) / (now - self._last_time)
    self._last_images, self._last_time = images_seen, now
    memory = _peak_memory_bytes()
    logging.info(
      "%s of %s images | %.2f s/kimg | %.0f images/s | ETA %s | %.1f GiB",
      f"{images_seen:,}",
      f"{self._total_images:,}",
      1000 / rate,
      rate,
      _duration((self._total_images - images_seen) / rate),
      memory / 2**30,
    )
    return {"progress/images_per_second": rate, "progress/peak_memory_bytes": memory}


class MetricWindow:
  """Collects the metrics of every step, one step late so that the loop never waits, and checks that they are finite."""

  def __init__(self, cure: str):
    self._cure = cure
    self._pending: tuple[int, Metrics] | None = None
    self._collected: list[Metrics] = []

  def add(self, images_seen: int, metrics: Metrics) -> None:
    """Adds the metrics, still being computed, of the step ending at `images_seen`, after checking the step before."""
    self.check_pending()
    self._pending = images_seen, metrics

  def check_pending(self) -> None:
    """Waits for the metrics added last and checks them.

    Raises:
      Diverged: one of them is not finite.
    """
    if self._pending is None:
      return
    images_seen, metrics = self._pending
    self._pending = None
    metrics = jax.device_get(metrics)
    if not_finite := metrics.not_finite():
      message = f"training diverged at {images_seen:,} images: {', '.join(not_finite)} not finite. {self._cure}"
      raise Diverged(message, images_seen)
    self._collected.append(metrics)

  def means(self) -> dict[str, float]:
    """Returns each metric's mean over the steps since the last call that measured it."""
    collected, self._collected = self._collected, []
    measured = {
      name: [metrics.values[name] for metrics in collected if metrics.ran.get(name, True)]
      for name in collected[0].values
    }
    return {name: float(np.mean(values)) for name, values in measured.items() if values}


def _peak_memory_bytes() -> int:
  """Returns the peak memory of this process's devices, or on CPUs of the process."""
  statistics = [device.memory_stats() for device in jax.local_devices()]
  if all(statistics):
    return max(s["peak_bytes_in_use"] for s in statistics if s)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == "darwin" else peak * 1024


def _duration(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  days, hours = divmod(hours, 24)
  return (f"{days}d " if days else "") + f"{hours}:{minutes:02}:{seconds:02}"
