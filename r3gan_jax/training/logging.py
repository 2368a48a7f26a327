"""Writes metrics to the log, metrics.jsonl and TensorBoard files, through clu's writers, without TensorFlow."""

import contextlib
import importlib.util
import json
import os
import platform
import re
import struct
import sys
import time
import types
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from r3gan_jax.errors import one_line
from r3gan_jax.storage import append, append_lines, is_remote, write_whole

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
"""The values of 'event' in a line."""
STARTS = (STARTED, RESUMED, ROLLED_BACK)
"""Here a run continues from the line's images seen: earlier lines, of more images seen, are of a part that was lost."""
FINISHED = "finished"
"""The 'reason' of `ENDED` for a run that has seen all its images; other reasons are error messages."""


class ScalarsAndImagesWriter(MetricWriter):
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


class JsonLinesWriter(ScalarsAndImagesWriter):
  """Appends one line per call, {"images_seen": ..., name: number or text, ...}, to a file.

  In an object store, lines are written at `flush`. Lines that cannot be written wait.
  """

  def __init__(self, path: epath.Path):
    self._path = path
    self._waiting = ""

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    self._write(step, {name: float(value) for name, value in scalars.items()})

  def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
    self._write(step, texts)

  def _write(self, step: int, values: Mapping[str, float | str]) -> None:
    self._waiting += _line(step, values)
    if not is_remote(self._path):
      self.flush()

  def flush(self) -> None:
    if self._waiting:
      append_lines(self._path, self._waiting)
      self._waiting = ""


class TensorBoardWriter(ScalarsAndImagesWriter):
  """TensorBoard event files; the step axis is images seen. Events that cannot be written wait.

  tensorboardX's own writer writes in a thread of its own, which a full disk ends. In an object store, every `flush`
  writes a new file; TensorBoard reads them in order.
  """

  def __init__(self, directory: epath.Path):
    self._path = directory / f"events.out.tfevents.{time.time_ns()}"
    self._files = 0
    self._waiting: list[Event] = []

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    for name, value in scalars.items():
      self._add(step, summary=summary.scalar(name, float(value)))
    if not is_remote(self._path):
      self.flush()

  def write_images(self, step: int, images: Mapping[str, Any]) -> None:
    for name, batch in images.items():
      self._add(step, summary=summary.image(name, np.asarray(batch), dataformats="NHWC"))

  def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
    if texts.get("event") in STARTS:  # TensorBoard hides what was written after this step
      self._add(step + 1, session_log=SessionLog(status=SessionLog.START))

  def _add(self, step: int, **content: Any) -> None:
    self._waiting.append(Event(wall_time=time.time(), step=step, **content))

  def flush(self) -> None:
    if not self._waiting:
      return
    is_new = is_remote(self._path) or not self._path.exists()
    first = [Event(wall_time=time.time(), file_version="brain.Event:2")] if is_new else []
    data = b"".join(map(_record_of, first + self._waiting))
    if is_remote(self._path):
      write_whole(self._path.with_name(f"{self._path.name}.{self._files:06}"), data)
      self._files += 1
    else:
      append(self._path, data)
    self._waiting = []


def _record_of(event: Event) -> bytes:
  """Returns an event in the format of TensorBoard's files, TFRecord."""
  data = event.SerializeToString()
  size = struct.pack("<Q", len(data))
  return size + struct.pack("<I", masked_crc32c(size)) + data + struct.pack("<I", masked_crc32c(data))


class _PatientWriter(ScalarsAndImagesWriter):
  """Another writer, whose failures are logged, once in a row: training must not end for its log."""

  def __init__(self, writer: MetricWriter, errors: type[Exception]):
    self._writer, self._errors = writer, errors
    self._failing = False

  def _try(self, act: Callable[..., None], *arguments: Any) -> None:
    try:
      act(*arguments)
      self._failing = False
    except self._errors as error:
      if not self._failing:
        logging.error("metrics cannot be written (%s): training continues and will retry", one_line(error))
      self._failing = True

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    self._try(self._writer.write_scalars, step, scalars)

  def write_images(self, step: int, images: Mapping[str, Any]) -> None:
    self._writer.write_images(step, images)

  def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
    self._try(self._writer.write_texts, step, texts)

  def flush(self) -> None:
    self._try(self._writer.flush)


class _LogWriter(metric_writers.LoggingWriter):
  """clu's writer to the log, without events, which the log has as messages."""

  def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
    pass


def make_writer(workdir: epath.Path, *services: MetricWriter) -> MetricWriter:
  """Returns a run's writer: to the log, metrics.jsonl, tensorboard/ and `services` on process 0, to none on others."""
  if not is_first_process():
    return metric_writers.MultiWriter([])
  errors = Exception if is_remote(workdir) else OSError
  files = (JsonLinesWriter(workdir / METRICS_FILE), TensorBoardWriter(workdir / "tensorboard"))
  return metric_writers.MultiWriter([_LogWriter(), *(_PatientWriter(writer, errors) for writer in files), *services])


def started(event: str) -> dict[str, str]:
  """Returns the texts of an event of `STARTS`: with time, devices and versions, for the report."""
  kind, processes = jax.devices()[0].device_kind, jax.process_count()
  if kind == "cpu":
    kind = f"CPU ({platform.machine()}, {os.cpu_count()} cores)"
  versions = [f"Python {platform.python_version()}"]
  for package in ("jax", "jaxlib", "flax", "r3gan_jax"):
    with contextlib.suppress(PackageNotFoundError):  # ours, in a checkout that is not installed
      versions.append(f"{package} {version(package)}")
  return {
    "event": event,
    "time": datetime.now(UTC).isoformat(timespec="seconds"),
    "devices": f"{jax.device_count()} x {kind}" + (f" in {processes} processes" if processes > 1 else ""),
    "versions": ", ".join(versions),
  }


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
    if values.get("event") in STARTS:
      series = {name: {n: value for n, value in kept.items() if n <= images_seen} for name, kept in series.items()}
    for name, value in values.items():
      if isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63):
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
  except (ValueError, RecursionError):  # no JSON, or no UTF-8
    return None
  if not isinstance(values, dict) or type(values.get("images_seen")) is not int:
    return None
  if not 0 <= values["images_seen"] < 2**63:
    return None
  return values.pop("images_seen"), {name.encode(errors="replace").decode(): value for name, value in values.items()}
