"""A cache of the statistics of real images on disk."""

import hashlib
import json
import zipfile
import zlib

import numpy as np
from absl import logging
from etils import epath

from r3gan_jax.storage import write_npz

Key = dict[str, str | int]
"""Everything that the statistics depend on, by name."""


class StatisticsCache:
  """Arrays by name, in one .npz per key under `directory`."""

  def __init__(self, directory: epath.PathLike):
    self._directory = epath.Path(directory)

  def load(self, key: Key) -> dict[str, np.ndarray] | None:
    """Returns the arrays of `key`; None if their file is missing or damaged."""
    path = self._path(key)
    try:
      with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)
    except FileNotFoundError:
      return None
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
      logging.warning("%s is damaged (%s): computing its statistics again", path, error)
      return None

  def save(self, key: Key, arrays: dict[str, np.ndarray]) -> None:
    """Saves arrays under `key`; safe to call concurrently. One that cannot be saved is logged."""
    try:
      write_npz(self._path(key), arrays)
    except OSError as error:
      logging.warning("the statistics of real images cannot be kept in %s (%s)", self._directory, error)

  def _path(self, key: Key) -> epath.Path:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return self._directory / f"{digest[:32]}.npz"
