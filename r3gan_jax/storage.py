"""Paths of work directories and data: on a disk, or in an object store (gs://...) of those that epath knows.

An object store has no directories, cannot append, and renames by copying; but a file appears in it whole or not at all.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from etils import epath

from r3gan_jax.errors import UserError

# With TensorFlow installed, epath would else go through it, which has other credentials, settings and errors.
os.environ.setdefault("EPATH_USE_TF", "false")


def is_remote(path: epath.PathLike) -> bool:
  """Whether it lies in an object store."""
  return "://" in os.fspath(path)


def as_path(path: epath.PathLike) -> epath.Path:
  """What the user calls `path`, with ~ expanded; a UserError where it is of a kind that epath does not know."""
  try:
    return epath.Path(path).expanduser()
  except KeyError:
    raise UserError(f"{path}: of remote paths, gs://, s3://, az:// and hf:// are known") from None


def absolute(path: epath.PathLike) -> epath.Path:
  """The same, whatever the current directory; remote paths are absolute."""
  path = epath.Path(path)
  return path if is_remote(path) else path.resolve()


@contextmanager
def failing_as(message: str, path: epath.PathLike, cure: str = "") -> Iterator[None]:
  """A UserError, `message`: why: `cure`, where `path` cannot be read or written; OSErrors alone if it is local."""
  try:
    yield
  except UserError:
    raise
  except Exception as error:  # whatever the many layers below raise for a remote path
    if not is_remote(path):
      if not isinstance(error, OSError):
        raise
      why = error.strerror or str(error)
    elif isinstance(error, ImportError) and os.fspath(path).startswith("gs://"):
      why = "install gcsfs: pip install -e '.[gcs]'"
    elif isinstance(error, FileNotFoundError):
      why = "no such bucket or file"
    else:
      why = " ".join(str(error).split())[:300]
    raise UserError(f"{message}: {why}" + (f": {cure}" if cure else "")) from None


def make_directory(path: epath.Path) -> None:
  """With its parents, if it is not there; in an object store nothing, where gcsfs would make a misspelt bucket."""
  if not is_remote(path):
    path.mkdir(parents=True, exist_ok=True)


def read(path: epath.Path, start: int | None = None, stop: int | None = None) -> bytes:
  """The bytes of a file, or those of them in [start, stop); for threads, too."""
  if is_remote(path):
    files, name = _filesystem(path)
    return files.cat_file(name, start, stop)
  with open(path, "rb", buffering=0) as file:
    file.seek(start or 0)
    return file.read() if stop is None else file.read(stop - file.tell())


def append(path: epath.Path, text: str) -> None:
  """To a file, or to nothing; in an object store the file is read and written whole."""
  if is_remote(path):
    path.write_text((path.read_text() if path.exists() else "") + text)
  else:
    with path.open("a") as file:
      file.write(text)


def list_files(directory: epath.Path) -> list[str]:
  """Names of all files below `directory`, relative to it, with forward slashes."""
  if is_remote(directory):
    return list(_remote_sizes(directory))
  below = os.walk(directory, followlinks=True)
  return [os.path.relpath(os.path.join(root, name), directory) for root, _, names in below for name in names]


def file_sizes(directory: epath.Path, names: Sequence[str]) -> list[int]:
  """Bytes of each of some files below `directory`."""
  if is_remote(directory):
    sizes = _remote_sizes(directory)
    return [sizes[name] for name in names]
  return [os.stat(directory / name).st_size for name in names]


def _remote_sizes(directory: epath.Path) -> dict[str, int]:
  files, root = _filesystem(directory)
  return {name.removeprefix(f"{root}/"): found["size"] for name, found in files.find(root, detail=True).items()}


def _filesystem(path: epath.Path) -> tuple[Any, str]:
  """fsspec's, which lists and reads parts in one request where epath takes many; and its name for `path`."""
  import fsspec

  return fsspec.core.url_to_fs(str(path))
