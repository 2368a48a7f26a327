"""Locks on what one process at a time may write, such as a work directory, on a disk or in an object store."""

import errno
import fcntl
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime

from absl import logging
from etils import epath

from r3gan_jax.errors import USER_ERROR, UserError
from r3gan_jax.storage import as_path, is_remote

BEAT_SECONDS = 20.0
"""In an object store the holder of a lock rewrites it this often; one that stays the same for three beats is stale."""
_SETTLING_SECONDS = 2.0
"""After this, of two processes that have written a lock at the same moment, both see whose is left."""


@contextmanager
def locked(path: epath.PathLike, what: str) -> Iterator[None]:
  """Holds a lock file, which names its holder by process, host and time.

  On a disk the system releases the lock when the process ends in any way. In an object store the holder gives a sign of
  life, and a lock without one is taken over after three beats; a holder that finds its lock taken over ends at once, as
  it must not write any more.

  Args:
    path: of the lock file; its directory is created if needed. The file is removed at the end.
    what: the lock protects, for the message.

  Raises:
    UserError: another process holds the lock.
  """
  with _locked_in_store(as_path(path), what) if is_remote(path) else _locked_on_disk(path, what):
    yield


def holder(path: epath.Path) -> str:
  """Returns the process, host and time of a lock, with an identifier that no other lock has; "" without a lock."""
  return _identity_in(_content(path))


def _content(path: epath.Path) -> str:
  try:
    return path.read_text()
  except (FileNotFoundError, ValueError):  # no lock, or nothing that was written as one
    return ""


def _identity_in(content: str) -> str:
  return content.partition("\n")[0]


def _identity() -> str:
  since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
  return json.dumps({"process": os.getpid(), "host": socket.gethostname(), "since": since, "id": uuid.uuid4().hex})


def _in_use(what: str, identity: str) -> str:
  try:
    holding = json.loads(identity)
    return f"{what} is in use by process {holding['process']} on {holding['host']} since {holding['since']}"
  except (ValueError, TypeError, KeyError):  # it has been created but not written
    return f"{what} is in use by another process"


def _refusal(what: str, identity: str) -> UserError:
  return UserError(f"{_in_use(what, identity)}: wait until it ends, or stop it")


@contextmanager
def _locked_on_disk(path: epath.PathLike, what: str) -> Iterator[None]:
  os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
  while True:
    file = os.open(path, os.O_CREAT | os.O_RDWR)
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      os.close(file)
      raise _refusal(what, holder(as_path(path))) from None
    except OSError as error:
      if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
        raise
      logging.warning("%s: its file system has no locks; do not let two processes use it", what)
    if os.path.exists(path) and os.path.samestat(os.fstat(file), os.stat(path)):
      break
    os.close(file)  # its holder has just removed it
  try:
    os.truncate(file, 0)
    os.write(file, f"{_identity()}\n".encode())
    yield
  finally:
    with suppress(FileNotFoundError):  # somebody has removed it by hand
      os.unlink(path)
    os.close(file)


@contextmanager
def _locked_in_store(path: epath.Path, what: str) -> Iterator[None]:
  _wait_until_stale(path, what)
  identity = _identity()
  path.write_text(f"{identity}\n0\n")
  time.sleep(_SETTLING_SECONDS)
  if holder(path) != identity:
    raise _refusal(what, holder(path))
  released = threading.Event()
  beating = threading.Thread(target=_beat, args=(path, what, identity, released), name="lock", daemon=True)
  beating.start()
  try:
    yield
  finally:
    released.set()
    beating.join()
    with suppress(Exception):  # an object store can raise anything, and a lock that stays is found stale
      if holder(path) == identity:
        path.unlink(missing_ok=True)


def _wait_until_stale(path: epath.Path, what: str) -> None:
  """Returns if there is no lock, or after three beats without a sign of life."""
  if not (first := _content(path)):
    return
  logging.warning("%s: waiting %g seconds for a sign of life", _in_use(what, _identity_in(first)), 3 * BEAT_SECONDS)
  deadline = time.monotonic() + 3 * BEAT_SECONDS
  while time.monotonic() < deadline:
    time.sleep(BEAT_SECONDS / 10)
    now = _content(path)
    if not now:
      return
    if now != first:
      raise _refusal(what, _identity_in(now))
  logging.warning("%s has given no sign of life: taking over", path)


def _beat(path: epath.Path, what: str, identity: str, released: threading.Event) -> None:
  beats = 0
  while not released.wait(BEAT_SECONDS):
    beats += 1
    try:
      now = holder(path)
      if now in (identity, ""):
        path.write_text(f"{identity}\n{beats}\n")
        continue
    except Exception as error:  # an object store can raise anything, and the next beat may succeed
      logging.warning("the lock of %s could not be renewed (%s)", what, error)
      continue
    message = f"{_in_use(what, now)}, as this process had given no sign of life: it ends without saving"
    print(f"error: {message}", file=sys.stderr, flush=True)
    os._exit(USER_ERROR)  # a normal end would save
