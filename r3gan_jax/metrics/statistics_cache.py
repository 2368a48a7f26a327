"""Statistics of real data on disk, so that they are computed once."""

import hashlib
import json
import zipfile
import zlib

import numpy as np
from absl import logging
from etils import epath

from r3gan_jax.storage import write_npz

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
    """Saves arrays under `key`; concurrent saves do not disturb each other."""
    write_npz(self._path(key), arrays)

  def _path(self, key: Key) -> epath.Path:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return self._directory / f"{digest[:32]}.npz"
