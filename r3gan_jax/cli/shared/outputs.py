"""Flags that name what a command writes: a file of a known type, or a directory."""

import importlib.util
import os
import re
from collections.abc import Sequence
from pathlib import Path

from etils import epath

from r3gan_jax.errors import UserError
from r3gan_jax.storage import absolute, as_path, failing_as, is_remote

_FILE_TYPE = re.compile(r"\.[a-z]{2,}\d?", re.IGNORECASE)
"""A suffix such as .jpg or .mp4; not the end of a name such as run_1.5 or run.v2."""


def output_path(flag: str, value: str, suffixes: Sequence[str] = (), directory: bool = False) -> tuple[epath.Path, str]:
  """Returns the path in a flag, where a command writes, and its suffix in lower case; "" for a directory.

  A directory is what is one already, ends with a slash, or has no suffix of a file type; a command that writes no
  directories writes a file of that name.

  Args:
    flag: its name, without dashes.
    value: the path.
    suffixes: of the files that the command writes, in lower case.
    directory: whether it also, or only, writes directories.

  Raises:
    UserError: the command writes nothing of that type, or something of the other kind is in the way.
  """
  path = as_path(value)
  with failing_as(f"cannot write --{flag}={value}", path):
    exists = path.exists()
    is_directory = path.is_dir()
    if not is_remote(path):
      above = next(parent for parent in Path(absolute(path)).parents if parent.exists())
      if not above.is_dir():
        raise UserError(f"cannot write --{flag}={value}: {above} is a file, not a directory")
      if not exists and not os.access(above, os.W_OK):
        raise UserError(f"cannot write --{flag}={value}: there is no permission to write in {above}")
  has_type = bool(_FILE_TYPE.fullmatch(path.suffix))
  if directory and (is_directory or value.endswith("/") or not has_type):
    if exists and not is_directory:
      raise UserError(f"cannot write --{flag}={value}: it is a file, not a directory: choose another name")
    return path, ""
  if is_directory or value.endswith("/"):
    raise UserError(f"--{flag}={value} is a directory: give a file in it, such as {path / f'NAME{suffixes[0]}'}")
  if path.suffix.lower() in suffixes or (not directory and not has_type):
    return path, path.suffix.lower()
  choices = [*suffixes, *(["a directory (its name ends with / if it has such a suffix)"] * directory)]
  raise UserError(f"cannot write --{flag}={value}: choose {' or '.join(choices)}")


def check_mp4(flag: str, value: str) -> None:
  """Raises a UserError if the package that writes .mp4 is missing."""
  if importlib.util.find_spec("av") is None:
    raise UserError(f"--{flag}={value} needs PyAV: pip install -e '.[video]', or write a .gif")
