"""Writes metrics to the log, metrics.jsonl and TensorBoard files, through clu's writers, without TensorFlow."""

import importlib.util
import json
import re
import shutil
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import tensorboardX
from etils import epath

from r3gan_jax.storage import append, is_remote, write_whole

if importlib.util.find_spec("tensorflow") is None:
  # clu imports this module for its TensorFlow writer, which is not used here.
  _stub = types.ModuleType("clu.metric_writers.summary_writer")
  _stub.SummaryWriter = None  # type: ignore[attr-defined]
  sys.modules.setdefault("clu.metric_writers.summary_writer", _stub)

from clu import metric_writers
from clu.metric_writers import MetricWriter as MetricWriter

from r3gan_jax.training.distributed import is_first_process

METRICS_FILE = "metrics.jsonl"


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

  A resumed run repeats the images since its last checkpoint: for equal images seen, the last line counts. In an object
  store, lines are written at `flush`.
  """

  def __init__(self, path: epath.Path):
    self._path = path
    self._waiting = ""

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    self._waiting += _line(step, {name: float(value) for name, value in scalars.items()})
    if not is_remote(self._path):
      self.flush()

  def flush(self) -> None:
    if self._waiting:
      append(self._path, self._waiting)
      self._waiting = ""


class TensorBoardWriter(_ScalarsAndImagesWriter):
  """TensorBoard event files by tensorboardX; the step axis is images seen."""

  def __init__(self, directory: epath.Path):
    self._writer = tensorboardX.SummaryWriter(str(directory))

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    for name, value in scalars.items():
      self._writer.add_scalar(name, float(value), step)

  def write_images(self, step: int, images: Mapping[str, Any]) -> None:
    for name, batch in images.items():
      self._writer.add_images(name, np.asarray(batch), step, dataformats="NHWC")

  def flush(self) -> None:
    self._writer.flush()

  def close(self) -> None:
    self._writer.close()


class RemoteTensorBoardWriter(_ScalarsAndImagesWriter):
  """TensorBoard event files in an object store, a new one after each `flush`; TensorBoard reads them in order."""

  def __init__(self, directory: epath.Path):
    self._directory = directory
    self._flushed = 0
    self._local: tuple[Path, TensorBoardWriter] | None = None

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    self._writer().write_scalars(step, scalars)

  def write_images(self, step: int, images: Mapping[str, Any]) -> None:
    self._writer().write_images(step, images)

  def _writer(self) -> TensorBoardWriter:
    if not self._local:
      directory = Path(mkdtemp(prefix="r3gan_jax-"))
      self._local = directory, TensorBoardWriter(epath.Path(directory))
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


def make_writer(workdir: epath.Path) -> MetricWriter:
  """Returns the writer of a run: log, metrics.jsonl and tensorboard/ on process 0, nothing on the others."""
  if not is_first_process():
    return metric_writers.MultiWriter([])
  tensorboard = RemoteTensorBoardWriter if is_remote(workdir) else TensorBoardWriter
  return metric_writers.MultiWriter(
    [
      metric_writers.LoggingWriter(),
      JsonLinesWriter(workdir / METRICS_FILE),
      tensorboard(workdir / "tensorboard"),
    ]
  )


def append_line(path: epath.Path, images_seen: int, values: Mapping[str, float | str]) -> None:
  """Appends one line to a metrics.jsonl."""
  append(path, _line(images_seen, values))


def _line(images_seen: int, values: Mapping[str, float | str]) -> str:
  return json.dumps({"images_seen": images_seen} | dict(values)) + "\n"


def read_metrics(workdir: epath.PathLike) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Reads metrics.jsonl: name -> (images seen int64 [n], values float64 [n]), sorted, without repetitions.

  Empty before the first log line, when the file does not exist.
  """
  series: dict[str, dict[int, float]] = {}
  path = epath.Path(workdir) / METRICS_FILE
  for line in path.read_text().splitlines() if path.exists() else []:
    try:
      scalars = json.loads(line)
    except json.JSONDecodeError:  # a line cut off by a crash
      continue
    images_seen = scalars.pop("images_seen")
    for name, value in scalars.items():
      if not isinstance(value, str):
        name = re.sub("^knobs/", "hyperparameters/", name)  # the prefix in older runs
        series.setdefault(name, {})[images_seen] = value
  return {
    name: (np.array(sorted(values), np.int64), np.array([values[n] for n in sorted(values)]))
    for name, values in series.items()
  }
