"""Writes metrics to the log, metrics.jsonl and TensorBoard files, through clu's writers, without TensorFlow."""

import contextlib
import importlib.util
import json
import os
import platform
import re
import shutil
import sys
import time
import types
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from r3gan_jax.errors import one_line
from r3gan_jax.storage import append_lines, is_remote, write_whole

if importlib.util.find_spec("tensorflow") is None:
  # clu imports this module for its TensorFlow writer, which is not used here.
  _stub = types.ModuleType("clu.metric_writers.summary_writer")
  _stub.SummaryWriter = None  # type: ignore[attr-defined]
  sys.modules.setdefault("clu.metric_writers.summary_writer", _stub)

from clu import metric_writers
from clu.metric_writers import MetricWriter as MetricWriter

from r3gan_jax.training.distributed import is_first_process

METRICS_FILE = "metrics.jsonl"
STARTED, RESUMED, ROLLED_BACK, ENDED = "started", "resumed", "rolled back", "ended"
"""What the 'event' of a line may be. At the first three a run continues from the line's images seen: lines before it,
of more images seen, are of a part that was lost."""
FINISHED = "finished"
"""The 'reason' of `ENDED` for a run that has seen all its images; other reasons are error messages."""


class _ScalarsAndImagesWriter(MetricWriter):
  """clu's interface, reduced to scalars and images."""

  def write_summaries(self, step: int, values: Any, metadata: Any = None) -> None:
    pass

  def write_images(self, step: int, images: Mapping[str, Any]) -> None:
    pass

  def write_videos(self, step: int, videos: Any) -> None:
    pass

  def write_audios(self, step: int, audios: Any, *, sample_rate: int) -> None:
    pass

  def write_texts(self, step: int, texts: Any) -> None:
    pass

  def write_histograms(self, step: int, arrays: Any, num_buckets: Any = None) -> None:
    pass

  def write_hparams(self, hparams: Any) -> None:
    pass

  def flush(self) -> None:
    pass

  def close(self) -> None:
    pass


class JsonLinesWriter(_ScalarsAndImagesWriter):
  """Appends one line per call, {"images_seen": ..., name: value, ...}, to a file.

  Before its first line is one of the start: when, on what, with which versions. A resumed run repeats the images since
  its last checkpoint, and what was logged after that checkpoint no longer counts. Events are lines, too, of texts. In
  an object store, lines are written at `flush`. Lines that cannot be written wait.
  """

  def __init__(self, path: epath.Path, resumed_from: int | None = None):
    self._path = path
    event = STARTED if resumed_from is None else RESUMED
    self._start, self._waiting = _line(resumed_from or 0, {"event": event} | _circumstances()), ""

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    self._write(step, {name: float(value) for name, value in scalars.items()})

  def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
    self._write(step, texts)

  def _write(self, step: int, values: Mapping[str, float | str]) -> None:
    self._waiting += self._start + _line(step, values)
    self._start = ""
    if not is_remote(self._path):
      self.flush()

  def flush(self) -> None:
    if self._waiting:
      append_lines(self._path, self._waiting)
      self._waiting = ""


def _circumstances() -> dict[str, str]:
  """Returns what a report says of a start of a run: time, devices and versions."""
  kind, processes = jax.devices()[0].device_kind, jax.process_count()
  if kind == "cpu":
    kind = f"CPU ({platform.machine()}, {os.cpu_count()} cores)"
  versions = [f"Python {platform.python_version()}"]
  for package in ("jax", "jaxlib", "flax", "r3gan_jax"):
    with contextlib.suppress(PackageNotFoundError):  # ours, in a checkout that is not installed
      versions.append(f"{package} {version(package)}")
  return {
    "time": datetime.now(UTC).isoformat(timespec="seconds"),
    "devices": f"{jax.device_count()} x {kind}" + (f" in {processes} processes" if processes > 1 else ""),
    "versions": ", ".join(versions),
  }


class TensorBoardWriter(_ScalarsAndImagesWriter):
  """TensorBoard event files; the step axis is images seen.

  Written in the caller's thread, which gets the errors: tensorboardX's own writer would hang on a full disk.

  Args:
    directory: created if needed.
    resumed_from: images seen; TensorBoard hides what an interrupted run wrote after that.
  """

  def __init__(self, directory: epath.Path, resumed_from: int | None = None):
    directory.mkdir(parents=True, exist_ok=True)
    self._events = EventsWriter(str(directory / "events"))
    if resumed_from is not None:
      start = SessionLog(status=SessionLog.START)
      self._events.write_event(Event(wall_time=time.time(), step=resumed_from + 1, session_log=start))

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    for name, value in scalars.items():
      self._write(step, summary.scalar(name, float(value)))

  def write_images(self, step: int, images: Mapping[str, Any]) -> None:
    for name, batch in images.items():
      self._write(step, summary.image(name, np.asarray(batch), dataformats="NHWC"))

  def _write(self, step: int, value: Any) -> None:
    self._events.write_event(Event(wall_time=time.time(), step=step, summary=value))

  def flush(self) -> None:
    self._events.flush()

  def close(self) -> None:
    self._events.close()


class RemoteTensorBoardWriter(_ScalarsAndImagesWriter):
  """TensorBoard event files in an object store, a new one after each `flush`; TensorBoard reads them in order."""

  def __init__(self, directory: epath.Path, resumed_from: int | None = None):
    self._directory, self._resumed_from = directory, resumed_from
    self._flushed = 0
    self._local: tuple[Path, TensorBoardWriter] | None = None

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    self._writer().write_scalars(step, scalars)

  def write_images(self, step: int, images: Mapping[str, Any]) -> None:
    self._writer().write_images(step, images)

  def _writer(self) -> TensorBoardWriter:
    if not self._local:
      directory = Path(mkdtemp(prefix="r3gan_jax-"))
      resumed_from = None if self._flushed else self._resumed_from
      self._local = directory, TensorBoardWriter(epath.Path(directory), resumed_from)
    return self._local[1]

  def flush(self) -> None:
    if self._local:
      directory, writer = self._local
      writer.close()
      (events,) = directory.iterdir()
      write_whole(self._directory / f"{events.name}.{self._flushed:05}", events.read_bytes())
      shutil.rmtree(directory)
      self._flushed += 1
      self._local = None

  def close(self) -> None:
    self.flush()


class _PatientWriter(_ScalarsAndImagesWriter):
  """Another writer that may fail, as training must not end for its log: failures are logged, once in a row.

  Args:
    make: makes the other writer; called again after a failure.
    errors: what counts as a failure.
  """

  def __init__(self, make: Callable[[], MetricWriter], errors: type[Exception]):
    self._make, self._errors = make, errors
    self._writer: MetricWriter | None = None
    self._failing = False

  def _try(self, act: Callable[[MetricWriter], None]) -> bool:
    try:
      self._writer = self._writer or self._make()
      act(self._writer)
      return True
    except self._errors as error:
      if not self._failing:
        logging.error("metrics cannot be written (%s): training continues", one_line(error))
      self._writer, self._failing = None, True
      return False

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    self._try(lambda writer: writer.write_scalars(step, scalars))

  def write_images(self, step: int, images: Mapping[str, Any]) -> None:
    self._try(lambda writer: writer.write_images(step, images))

  def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
    self._try(lambda writer: writer.write_texts(step, texts))

  def flush(self) -> None:
    if self._try(lambda writer: writer.flush()):
      self._failing = False  # other calls may have written to a buffer only

  def close(self) -> None:
    self._try(lambda writer: writer.close())


class _LogWriter(metric_writers.LoggingWriter):
  """clu's writer to the log, without events, which the log has as messages."""

  def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
    pass


def make_writer(workdir: epath.Path, resumed_from: int | None = None) -> MetricWriter:
  """Returns the writer of a run: log, metrics.jsonl and tensorboard/ on process 0, nothing on the others.

  Args:
    resumed_from: images seen of the checkpoint that the run resumes, if it does.
  """
  if not is_first_process():
    return metric_writers.MultiWriter([])
  lines = JsonLinesWriter(workdir / METRICS_FILE, resumed_from)
  tensorboard = RemoteTensorBoardWriter if is_remote(workdir) else TensorBoardWriter
  errors = Exception if is_remote(workdir) else OSError
  return metric_writers.MultiWriter(
    [
      _LogWriter(),
      _PatientWriter(lambda: lines, errors),  # the same again: it has the lines that are not written yet
      _PatientWriter(lambda: tensorboard(workdir / "tensorboard", resumed_from), errors),
    ]
  )


def append_line(path: epath.Path, images_seen: int, values: Mapping[str, float | str]) -> None:
  """Appends one line to a metrics.jsonl."""
  append_lines(path, _line(images_seen, values))


def _line(images_seen: int, values: Mapping[str, float | str]) -> str:
  return json.dumps({"images_seen": images_seen} | dict(values)) + "\n"


def read_metrics(workdir: epath.PathLike) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Reads metrics.jsonl: name -> (images seen int64 [n], values float64 [n]), sorted, without repetitions.

  Empty before the first log line, when the file does not exist.
  """
  series: dict[str, dict[int, float]] = {}
  for images_seen, values in _records(epath.Path(workdir) / METRICS_FILE):
    if values.get("event") in (STARTED, RESUMED, ROLLED_BACK):
      series = {name: {n: value for n, value in kept.items() if n <= images_seen} for name, kept in series.items()}
    for name, value in values.items():
      if isinstance(value, int | float):
        name = re.sub("^knobs/", "hyperparameters/", name)  # the prefix in older runs
        series.setdefault(name, {})[images_seen] = float(value)
  return {
    name: (np.array(sorted(values), np.int64), np.array([values[n] for n in sorted(values)]))
    for name, values in series.items()
    if values
  }


def read_events(workdir: epath.PathLike) -> list[tuple[int, dict[str, str]]]:
  """Reads the events of metrics.jsonl in order: (images seen, texts); runs before there were events have none."""
  return [
    (images_seen, {name: text for name, text in values.items() if isinstance(text, str)})
    for images_seen, values in _records(epath.Path(workdir) / METRICS_FILE)
    if isinstance(values.get("event"), str)
  ]


def _records(path: epath.Path) -> list[tuple[int, dict[str, Any]]]:
  """Returns (images seen, values) of every line; passes over what is no record, and logs how many there are."""
  lines = [line for line in (path.read_bytes().splitlines() if path.exists() else []) if line.strip()]
  records = [record for record in map(_record, lines) if record]
  if foreign := len(lines) - len(records):
    logging.warning("%d lines of %s are no records of a run, e.g. cut off by a crash: passed over", foreign, path)
  return records


def _record(line: bytes) -> tuple[int, dict[str, Any]] | None:
  """Returns (images seen, values) of a line; None if it is no record."""
  try:
    values = json.loads(line)
  except ValueError:  # no JSON, or no UTF-8
    return None
  if not isinstance(values, dict) or type(values.get("images_seen")) is not int:
    return None
  return values.pop("images_seen"), values
