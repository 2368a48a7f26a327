"""Reads and writes files on a local disk or, through epath, in an object store (gs://...).

Object stores have no directories, cannot append, and rename by copying, but every object appears whole or not at all.
"""

import errno
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
from etils import epath

from r3gan_jax.errors import UserError, one_line

# With TensorFlow installed, epath would use it, with other credentials, settings and errors.
os.environ.setdefault("EPATH_USE_TF", "false")


def is_remote(path: epath.PathLike) -> bool:
  """Returns whether the path is in an object store."""
  return "://" in os.fspath(path)


def as_path(path: epath.PathLike) -> epath.Path:
  """Converts a user's path and expands ~; raises a UserError if it is empty or of a kind that epath does not know."""
  if not os.fspath(path):
    raise UserError("the path of a file or directory is empty: give one")
  try:
    return epath.Path(path).expanduser()
  except KeyError:
    raise UserError(f"{path} is of an unknown kind: use a local path, gs://, s3://, az:// or hf://") from None


def absolute(path: epath.PathLike) -> epath.Path:
  """Returns the absolute path; remote paths are absolute."""
  path = epath.Path(path)
  return path if is_remote(path) else path.resolve()


@contextmanager
def failing_as(message: str, path: epath.PathLike, cure: str = "") -> Iterator[None]:
  """Turns errors in using `path` into a UserError "message: reason: cure"; only OSErrors if it is local."""
  try:
    yield
  except UserError:
    raise
  except Exception as error:  # a remote path can raise anything in the layers below
    if not is_remote(path):
      if not isinstance(error, OSError):
        raise
      why = error.strerror or str(error)
    elif isinstance(error, ImportError) and os.fspath(path).startswith("gs://"):
      why = "install gcsfs: pip install -e '.[gcs]'"
    elif isinstance(error, FileNotFoundError):
      why = "no such bucket or file"
    else:
      why = one_line(error)[:300]
    raise UserError(f"{message}: {why}" + (f": {cure}" if cure else "")) from None


def is_file(path: epath.Path) -> bool:
  """Returns whether the path is a file; not, unlike epath's test, a pipe, which may block forever."""
  return path.exists() and not path.is_dir() if is_remote(path) else os.path.isfile(path)


def make_directory(path: epath.Path) -> None:
  """Creates a directory and its parents; not in an object store, where gcsfs would create a misspelt bucket."""
  if not is_remote(path):
    path.mkdir(parents=True, exist_ok=True)


def read(path: epath.Path, start: int | None = None, stop: int | None = None) -> bytes:
  """Reads a file, or its bytes in [start, stop); thread-safe."""
  if is_remote(path):
    files, name = _filesystem(path)
    return files.cat_file(name, start, stop)
  with open(path, "rb", buffering=0) as file:
    file.seek(start or 0)
    return file.read() if stop is None else file.read(stop - file.tell())


def append(path: epath.PathLike, data: bytes) -> None:
  """Appends to a file on a disk, all of `data` or, if this fails, nothing. Creates file and directory if needed."""
  os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
  with open(path, "ab", buffering=0) as file:
    end = file.seek(0, os.SEEK_END)
    try:
      if file.write(data) < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
      file.truncate(end)
      raise


def append_lines(path: epath.Path, text: str) -> None:
  """Appends lines to a file, which is created if needed; in an object store it is read and rewritten.

  After a line that was cut off by a crash they begin a line of their own.
  """
  before = b""
  if path.exists():
    before = path.read_bytes() if is_remote(path) else read(path, max(0, path.stat().length - 1))
  data = (b"" if before[-1:] in (b"", b"\n") else b"\n") + text.encode()
  if is_remote(path):
    path.write_bytes(before + data)
  else:
    append(path, data)


@contextmanager
def whole_file(path: epath.PathLike) -> Iterator[IO[bytes]]:
  """Opens a file for writing; readers find the old content until the block ends, then the new, never a part.

  Creates the directory if needed. A block that fails or is interrupted leaves the old file.
  """
  if is_remote(path):
    buffer = BytesIO()
    yield buffer
    epath.Path(path).write_bytes(buffer.getbuffer())
    return
  target = Path(os.path.realpath(path))  # a link stays
  target.parent.mkdir(parents=True, exist_ok=True)
  if target.exists() and not target.is_file():  # such as /dev/stdout, which a file must not replace
    with target.open("wb") as file:
      yield file
    return
  temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
  try:
    with temporary.open("wb") as file:
      yield file
    temporary.replace(target)
  finally:
    temporary.unlink(missing_ok=True)


def write_whole(path: epath.PathLike, data: str | bytes) -> None:
  """Writes a file by `whole_file`; text as UTF-8."""
  with whole_file(path) as file:
    file.write(data.encode() if isinstance(data, str) else data)


def write_npz(path: epath.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes arrays by name as an .npz, by `whole_file`."""
  with whole_file(path) as file:
    np.savez(file, allow_pickle=False, **arrays)


def read_npz(path: epath.PathLike, cure: str) -> dict[str, np.ndarray]:
  """Reads all arrays of an .npz by name; raises a UserError with `cure` if it cannot be read, or has Python objects."""
  file = as_path(path)
  try:  # a large file on a disk is in memory once
    with BytesIO(read(file)) if is_remote(path) else file.open("rb") as opened:
      return dict(np.load(opened, allow_pickle=False))
  except Exception as error:  # a broken file can raise anything
    raise UserError(f"{path} cannot be read ({one_line(error)[:200]}): {cure}") from None


def remote_versions(directory: epath.Path) -> dict[str, str]:
  """Returns name -> version of all objects below `directory`; a version changes with the content."""
  files, root = _filesystem(directory)
  found = files.find(root, detail=True)
  # Checksums or, in a store without them, the time of writing.
  marks = ("md5Hash", "crc32c", "ETag", "etag", "mtime", "LastModified")
  return {
    name.removeprefix(f"{root}/"): " ".join(str(info.get(key)) for key in ("size", *marks) if info.get(key) is not None)
    for name, info in found.items()
  }


def _filesystem(path: epath.Path) -> tuple[Any, str]:
  """Returns fsspec's file system, which needs fewer requests than epath, and its name for `path`."""
  import fsspec

  return fsspec.core.url_to_fs(str(path))
