"""Reads what wandb wrote offline: LevelDB's log format, each record a message of its own protocol."""

import json
import struct
import time
from pathlib import Path

from wandb.proto.wandb_internal_pb2 import Record

_BLOCK, _HEADER = 32768, struct.Struct("<IHB")  # of a piece: checksum, length, kind
_FILE_HEADER = b":W&B\xe1\xbe\x00"
_WHOLE, _LAST = 1, 4


def offline_runs(directory):
  """Returns the directories of the runs below `directory`/wandb, in order of their start."""
  return sorted(Path(directory, "wandb").glob("offline-run-*"))


def records(run):
  """Returns the records of the directory of a finished run; W&B's own process may write the last ones late."""
  (path,) = run.glob("run-*.wandb")
  for _ in range(300):
    found = _read(path.read_bytes())
    if any(record.HasField("exit") for record in found):
      return found
    time.sleep(0.1)
  raise AssertionError(f"{path} has no end")


def _read(data):
  at, record, found = len(_FILE_HEADER), b"", []
  while at < len(data):
    if (left := _BLOCK - at % _BLOCK) < _HEADER.size:
      at += left
      continue
    _, length, kind = _HEADER.unpack(data[at : at + _HEADER.size].ljust(_HEADER.size, b"\0"))
    at += _HEADER.size + length
    if at > len(data):
      break
    record += data[at - length : at]
    if kind in (_WHOLE, _LAST):
      found.append(Record.FromString(record))
      record = b""
  return found


def history(run):
  """Returns the calls of `log`, in order: name -> value; those within a value are joined with a dot."""
  rows = [record.history for record in records(run) if record.HasField("history")]
  return [{".".join(item.nested_key): json.loads(item.value_json) for item in row.item} for row in rows]


def settings(run):
  """Returns the run's configuration as W&B keeps it."""
  (opened,) = (record.run for record in records(run) if record.HasField("run"))
  return {item.key: json.loads(item.value_json) for item in opened.config.update}
