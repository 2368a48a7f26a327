"""Statistics of real data on disk, so that they are computed once."""

import hashlib
import json
import uuid
import zipfile
import zlib

import numpy as np
from absl import logging
from etils import epath

Key = dict[str, str | int]
"""All that decides the numbers, by name."""


class StatisticsCache:
  """Named arrays in one .npz for each key, under `directory`."""

  def __init__(self, directory: epath.PathLike):
    self._directory = epath.Path(directory)

  def load(self, key: Key) -> dict[str, np.ndarray] | None:
    """The arrays saved under `key`; None where there are none, or where their file is damaged."""
    path = self._path(key)
    try:
      with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)
    except FileNotFoundError:
      return None
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
      logging.warning("%s is damaged (%s): its statistics are computed anew", path, error)
      return None

  def save(self, key: Key, arrays: dict[str, np.ndarray]) -> None:
    """Saves all or nothing: an interrupted or a concurrent save leaves a whole file or none."""
    self._directory.mkdir(parents=True, exist_ok=True)
    temporary = self._directory / f".{uuid.uuid4().hex}.tmp"
    try:
      with temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
      temporary.replace(self._path(key))
    finally:
      temporary.unlink(missing_ok=True)

  def _path(self, key: Key) -> epath.Path:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return self._directory / f"{digest[:32]}.npz"
