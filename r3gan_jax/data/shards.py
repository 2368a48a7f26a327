"""Writes a prepared data set: ArrayRecord shards in a self-describing directory, as TFDS writes them.

All files are written to `NAME/VERSION.unfinished`, which is renamed to `NAME/VERSION` when complete, so readers never
see part of a data set. A shard, too, gets its name when it is complete, so an interrupted preparation can continue.
"""

import json
import math
import os
import shutil
import signal
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from ctypes import c_bool
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple, Protocol

from absl import logging
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from r3gan_jax.data.images import CorruptImage
from r3gan_jax.data.tfds import open_directory
from r3gan_jax.errors import UserError
from r3gan_jax.locks import locked
from r3gan_jax.progress_bar import progress_bar
from r3gan_jax.storage import failing_as, write_whole

_WRITING = "writing-"

RECIPE = "prepare.json"
"""The file that records what the data set is made from."""


class Records(Protocol):
  """The examples of one split, by index; picklable."""

  def __len__(self) -> int: ...

  def example(self, index: int) -> dict[str, Any]:
    """Returns feature name -> value (a PIL image, a class number); raises a CorruptImage."""

  def digest(self) -> str:
    """Returns a hash of everything that the examples depend on."""


@dataclass(frozen=True)
class Prepared:
  """A finished data set: its directory, its number of images, and how many corrupt ones were left out."""

  directory: Path
  images: int
  left_out: int


class _Shard(NamedTuple):
  split: str
  path: Path
  start: int
  stop: int


def write_data_set(
  info: Any,
  data_dir: Path,
  splits: Mapping[str, Records],
  images_per_shard: int,
  processes: int = 1,
  skip_corrupt: bool = False,
) -> Prepared:
  """Writes, or finishes writing, `data_dir`/NAME/VERSION.

  Args:
    info: the tfds.core.DatasetInfo: name, version and features.
    data_dir: the directory of prepared data sets.
    splits: split name -> examples; shard i starts at example i * `images_per_shard`.
    images_per_shard: examples in each shard but the last.
    processes: how many processes write shards in parallel.
    skip_corrupt: leaves out images that cannot be read, and logs each.

  Raises:
    CorruptImage: an image cannot be read, and `skip_corrupt` is off.
    UserError: the directory has another data set, there is a higher version, which readers would prefer, the directory
      cannot be written, or another process is writing it.
  """
  directory = data_dir / info.full_name
  _check_versions(directory)
  recipe = {
    "features": json.loads(json.dumps(info.features.to_json())),
    "splits": {split: {"images": len(records), "digest": records.digest()} for split, records in splits.items()},
    "images_per_shard": images_per_shard,
  }
  with failing_as(f"cannot write {directory}", directory, "the same command continues from there"):
    directory.parent.mkdir(parents=True, exist_ok=True)
    with locked(directory.with_name(f"{directory.name}.lock"), str(directory)):
      if directory.exists():
        _check_finished(directory, recipe)
        logging.info("%s is already prepared", directory)
      else:
        _write_directory(directory, recipe, info, splits, processes, skip_corrupt)
  images = _count(directory)
  return Prepared(directory, images, sum(map(len, splits.values())) - images)


def _write_directory(
  directory: Path,
  recipe: Mapping[str, Any],
  info: Any,
  splits: Mapping[str, Records],
  processes: int,
  skip_corrupt: bool,
) -> None:
  """Continues an interrupted preparation of the same data set, or starts one."""
  unfinished = directory.with_name(f"{directory.name}.unfinished")
  if unfinished.exists() and (change := _difference(unfinished, recipe)):
    logging.warning("starting over in %s: %s", unfinished, change)
    shutil.rmtree(unfinished)
  unfinished.mkdir(exist_ok=True)
  write_whole(unfinished / RECIPE, json.dumps(recipe, indent=2) + "\n")
  for left_by_a_killed_run in unfinished.glob(f"{_WRITING}*"):
    left_by_a_killed_run.unlink()
  shards = _shards(info.name, unfinished, splits, recipe["images_per_shard"])
  _write(shards, splits, info.features, processes, skip_corrupt)
  _describe(info, unfinished, shards)
  unfinished.rename(directory)


def _count(directory: Path) -> int:
  """Counts the images of a finished data set; raises a UserError if a shard has more or fewer than recorded."""
  splits = open_directory(directory).info.splits.values()
  for split in splits:
    for path, length in zip(split.filepaths, split.shard_lengths, strict=True):
      if _record_count(Path(path)) != length:
        raise UserError(f"{path} is damaged or missing: remove {directory} and prepare it again")
  return sum(split.num_examples for split in splits)


def _shards(name: str, directory: Path, splits: Mapping[str, Records], size: int) -> list[_Shard]:
  """Returns the shards of all splits, with TFDS's file names."""
  shards = []
  for split, records in splits.items():
    count = math.ceil(len(records) / size)
    for index in range(count):
      path = directory / f"{name}-{split}.array_record-{index:05}-of-{count:05}"
      shards.append(_Shard(split, path, index * size, min((index + 1) * size, len(records))))
  return shards


def _check_versions(directory: Path) -> None:
  """Raises a UserError if there is a higher version, which readers would prefer."""

  def version(name: str) -> tuple[int, ...]:
    parts = name.split(".")
    return tuple(map(int, parts)) if len(parts) == 3 and all(map(str.isdecimal, parts)) else ()

  higher = [path for path in directory.parent.glob("*.*.*") if version(path.name) > version(directory.name)]
  if higher:
    raise UserError(
      f"{max(higher)} exists and would be read instead of {directory.name}: choose another --name or --data_dir, or "
      "remove it"
    )


def _check_finished(directory: Path, recipe: Mapping[str, Any]) -> None:
  if change := _difference(directory, recipe):
    raise UserError(f"{directory} has another data set ({change}): choose another --name or --data_dir, or remove it")


def _difference(directory: Path, recipe: Mapping[str, Any]) -> str:
  """Describes how `recipe` differs from that of `directory`; "" if it does not."""
  try:
    before = json.loads((directory / RECIPE).read_text())
    splits = {name: before["splits"][name] for name in recipe["splits"]}
    if before["features"] != recipe["features"]:
      return "another resolution, other channels or classes"
    for name, now in recipe["splits"].items():
      if splits[name]["images"] != now["images"]:
        return f"{splits[name]['images']:,} images in split {name}, now {now['images']:,}"
      if splits[name]["digest"] != now["digest"]:
        return f"the images or labels of split {name} have changed"
    return "" if before == recipe else "other shard sizes"
  except (ValueError, KeyError, TypeError, OSError):
    return f"{RECIPE} is missing or damaged"


def _write(
  shards: list[_Shard], splits: Mapping[str, Records], features: Any, processes: int, skip_corrupt: bool
) -> None:
  missing = [shard for shard in shards if not shard.path.exists()]
  total, left = (sum(shard.stop - shard.start for shard in some) for some in (shards, missing))
  with progress_bar(total=total, title="prepared", initial=total - left) as bar:
    for shard, corrupt in _written(missing, splits, features, processes, skip_corrupt):
      bar.update(shard.stop - shard.start)
      for message in corrupt:
        logging.warning("left out: %s", message)


def _written(
  shards: list[_Shard], splits: Mapping[str, Records], features: Any, processes: int, skip_corrupt: bool
) -> Iterator[tuple[_Shard, list[str]]]:
  """Yields each shard when it is written, with an error message for every image left out."""
  if processes == 1:
    for shard in shards:
      yield shard, _write_shard(shard, splits[shard.split], features, skip_corrupt)
    return
  spawn = get_context("spawn")  # a fork of a process with threads may hang
  stop = spawn.RawValue(c_bool, False)  # not an Event: a worker killed while it reads one leaves it locked
  with ProcessPoolExecutor(processes, spawn, initializer=_start_worker, initargs=(splits, features, stop)) as pool:
    futures = {pool.submit(_work, shard, skip_corrupt): shard for shard in shards}
    try:
      for future in as_completed(futures):
        yield futures[future], future.result()
    except BrokenProcessPool:
      raise UserError(
        "a worker process was killed, perhaps for lack of memory: run the command again with fewer --processes to "
        "continue"
      ) from None
    finally:
      stop.value = True
      pool.shutdown(cancel_futures=True)


_WORKER: dict[str, Any] = {}
"""The arguments that all shards of a worker process share, sent to it once."""


def _start_worker(splits: Mapping[str, Records], features: Any, stop: c_bool) -> None:
  _WORKER.update(splits=splits, features=features, stop=stop)
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
  Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
  """Exits when the parent process is killed, which a pool's workers would survive."""
  parent = parent_process()
  assert parent
  parent.join()
  os._exit(1)


def _work(shard: _Shard, skip_corrupt: bool) -> list[str]:
  return _write_shard(shard, _WORKER["splits"][shard.split], _WORKER["features"], skip_corrupt, _WORKER["stop"])


def _write_shard(
  shard: _Shard, records: Records, features: Any, skip_corrupt: bool, stop: c_bool | None = None
) -> list[str]:
  """Writes a shard, whole or not at all; returns an error message for every image left out. `stop` interrupts it."""
  corrupt: list[str] = []
  # Not storage.whole_file: ArrayRecord opens files itself, and a later run finds by name what a killed one left.
  temporary = shard.path.with_name(f"{_WRITING}{os.getpid()}-{shard.path.name}")
  try:
    writer = ArrayRecordWriter(str(temporary), "group_size:1")
    try:
      for index in range(shard.start, shard.stop):
        if stop is not None and stop.value:
          return corrupt
        try:
          example = records.example(index)
        except CorruptImage as error:
          if not skip_corrupt:
            raise CorruptImage(f"{error}, or leave out such images with --skip_corrupt") from None
          corrupt.append(str(error))
        else:
          with _as_os_errors():
            writer.write(features.serialize_example(example))
    finally:
      with _as_os_errors():
        writer.close()
    temporary.rename(shard.path)
  finally:
    temporary.unlink(missing_ok=True)
  return corrupt


@contextmanager
def _as_os_errors() -> Iterator[None]:
  """Turns ArrayRecord's RuntimeErrors, e.g. of a full disk, into OSErrors."""
  try:
    yield
  except RuntimeError as error:
    raise OSError(str(error).partition(";")[0]) from None


def _describe(info: Any, directory: Path, shards: list[_Shard]) -> None:
  """Writes dataset_info.json and features.json."""
  import tensorflow_datasets as tfds

  def split_info(split: str) -> Any:
    paths = [shard.path for shard in shards if shard.split == split]
    return tfds.core.SplitInfo(
      name=split,
      shard_lengths=[_record_count(path) for path in paths],
      num_bytes=sum(path.stat().st_size for path in paths),
      filename_template=tfds.core.ShardedFileTemplate(
        data_dir=directory, dataset_name=info.name, split=split, filetype_suffix="array_record"
      ),
    )

  info.set_file_format("array_record")
  info.set_splits(tfds.core.splits.SplitDict([split_info(split) for split in dict.fromkeys(s.split for s in shards)]))
  if not info.splits.total_num_examples:
    raise UserError(f"{directory} would have no images: all are corrupt")
  info.write_to_directory(directory)


def _record_count(path: Path) -> int:
  """Returns the number of records of a shard; 0 if it cannot be read."""
  try:
    reader = ArrayRecordReader(str(path))
    try:
      return reader.num_records()
    finally:
      reader.close()
  except RuntimeError:
    return 0
