"""Finds and reads the image files under a directory or in a zip.

Other files are skipped and counted by kind: hidden files and what operating systems leave behind, other suffixes,
broken and circular links, pipes, unreadable directories.
"""

import hashlib
import os
import stat
import struct
import zipfile
import zlib
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from etils import epath

from r3gan_jax import storage
from r3gan_jax.data.images import SUFFIXES, CorruptImage
from r3gan_jax.errors import UserError
from r3gan_jax.progress_bar import progress_bar

LISTS = "dataset.json"
"""The name of files with labels: see data/labels.py."""

_SYSTEM_DIRECTORIES = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information")
_THREADS = 16
_LONG_HEADER = 512
"""Bytes of a zip member's header that are read along with its data: a second read is slow from an object store."""

T = TypeVar("T")
Members = dict[str, zipfile.ZipInfo | None]
"""Name of a file -> its member of the zip, or None in a directory."""


class ImageFiles:
  """The image files under a directory or in a zip, sorted by name; thread-safe and picklable.

  Both may be in an object store.

  Attributes:
    path: the directory or zip.
    names: the images, relative to `path`, with forward slashes.
    lists: names of the files with labels.
    passed_over: counts of skipped files, by kind.
    lost: names of skipped files, except hidden ones; a class may have nothing else.

  Raises:
    UserError: `path` is neither, is damaged, cannot be read, or has no images; or a name is not UTF-8.
  """

  def __init__(self, path: epath.PathLike, suffixes: Collection[str] = SUFFIXES):
    self.path = storage.as_path(path)
    with storage.failing_as(f"cannot read {self.path}", self.path):
      if self.path.is_dir():
        self._is_zip = False
        found = _remote(self.path) if storage.is_remote(self.path) else _walked(Path(self.path))
      elif storage.is_file(self.path):
        self._is_zip = True
        found = _zipped(self.path)
      else:
        raise UserError(f"{self.path} is neither a directory nor a zip: give the folder or zip of images")
    self.names: list[str] = []
    self.lists: list[str] = []
    for name in sorted(found.files):
      base = name.rpartition("/")[2]
      suffix = os.path.splitext(base)[1].lower()
      if suffix in suffixes:
        self.names.append(name)
      elif base == LISTS:
        self.lists.append(name)
      else:
        found.pass_over(f"*{suffix}" if suffix else "without suffix", name)
    self.passed_over, self.lost = found.passed_over, found.lost
    if not self.names:
      over = f" (passed over: {counted(self.passed_over)})" if self.passed_over else ""
      wanted = "*.png, *.jpg, *.webp or the like" if suffixes is SUFFIXES else f"*{' or *'.join(suffixes)}"
      raise UserError(f"{self.path} has no images{over}: put files named {wanted} there")
    self._files = {name: found.files[name] for name in (*self.names, *self.lists)}
    for name, member in self._files.items():
      _check(name, member, self.path)

  def __len__(self) -> int:
    return len(self.names)

  def title(self, index: int) -> str:
    """Returns the name of an image for messages."""
    return f"{self.names[index]} in {self.path}"

  def read(self, index: int) -> bytes:
    """Returns the encoded bytes of one image; errors are those of `read_file`."""
    return self.read_file(self.names[index])

  def read_file(self, name: str) -> bytes:
    """Returns the bytes of one of `names` or `lists`.

    Raises:
      CorruptImage: they do not have the checksum that the zip records.
      UserError: the file cannot be read.
    """
    member = self._files[name]
    with storage.failing_as(f"cannot read {name} in {self.path}", self.path):
      if member is None:
        return storage.read(self.path / name)
      # Without zipfile, whose readers share one file position, so threads would wait for each other.
      start, stop = member.header_offset, member.header_offset + member.compress_size
      data = storage.read(self.path, start, stop + _LONG_HEADER)
      try:
        header = 30 + sum(struct.unpack_from("<HH", data, 26))  # with the name and the extra field
        if header > _LONG_HEADER:
          data = storage.read(self.path, start, stop + header)
        data = data[header : header + member.compress_size]
        if member.compress_type == zipfile.ZIP_DEFLATED:
          data = zlib.decompress(data, -zlib.MAX_WBITS)
        sound = zlib.crc32(data) == member.CRC
      except (struct.error, zlib.error):
        sound = False
    if not sound:
      raise CorruptImage(f"{name} in {self.path} is damaged (its checksum is wrong): replace or remove it")
    return data

  def fingerprints(self) -> list[str]:
    """Returns a fingerprint of the bytes of each image: checksum and length.

    A zip records them; files in a directory are read; an object store reports versions of its own.
    """
    if storage.is_remote(self.path) and not self._is_zip:
      versions = storage.remote_versions(self.path)
      return [versions[name] for name in self.names]

    def fingerprint(index: int) -> str:
      if member := self._files[self.names[index]]:
        return f"{member.CRC:08x} {member.file_size}"
      data = self.read(index)
      return f"{zlib.crc32(data):08x} {len(data)}"

    with progress_bar(in_threads(fingerprint, range(len(self))), total=len(self), title="checksums") as found:
      return list(found)

  def digest(self) -> str:
    """Returns a hash of the bytes of all images in their order, whatever their names and place."""
    return hashlib.sha256("\n".join(self.fingerprints()).encode()).hexdigest()


def counted(counts: Counter[str]) -> str:
  """Formats the six largest counts: '3 hidden, 2 *.txt'."""
  shown = [f"{count:,} {kind}" for kind, count in counts.most_common(6)]
  text = ", ".join([*shown, "..."] if len(counts) > 6 else shown)
  return text.encode(errors="backslashreplace").decode()


def in_threads(function: Callable[[int], T], indices: Iterable[int]) -> Iterator[T]:
  """Yields `function(index)` in order, computed in threads; an error cancels calls not yet started."""
  with ThreadPoolExecutor(_THREADS) as threads:
    try:
      yield from threads.map(function, indices)
    finally:
      threads.shutdown(cancel_futures=True)


@dataclass
class _Found:
  """A listing of files; `passed_over` and `lost` are those of `ImageFiles`."""

  files: Members = field(default_factory=dict)
  passed_over: Counter[str] = field(default_factory=Counter)
  lost: list[str] = field(default_factory=list)

  def pass_over(self, kind: str, name: str) -> None:
    """Counts a skipped file, or a skipped directory, whose name ends with a slash."""
    self.passed_over[kind] += 1
    self.lost.append(name)


def _walked(top: Path) -> _Found:
  """Lists a local directory; follows links, but enters each directory once, by its own name rather than a link's."""
  found = _Found()
  entered = {_identity(directory) for directory in top.resolve().parents}
  pending, linked = [""], deque[str]()
  while pending or linked:
    below = pending.pop() if pending else linked.popleft()
    directory = top / below
    try:
      identity = _identity(directory)
      entries = [] if identity in entered else sorted(os.scandir(directory), key=lambda entry: entry.name)
    except OSError:
      if not below:
        raise
      found.pass_over("unreadable (directory)", below)
      continue
    if identity in entered:
      if directory.parent.resolve().is_relative_to(directory.resolve()):
        found.passed_over["linked back"] += 1
      else:
        found.pass_over("linked a second time", below)
      continue
    entered.add(identity)
    seen = [entry for entry in entries if not _is_hidden(entry.name)]
    if len(seen) < len(entries):
      found.passed_over["hidden"] += len(entries) - len(seen)
    if below and not seen:
      found.pass_over("empty (directory)", below)
    for entry in seen:
      name = below + entry.name
      try:
        mode = entry.stat().st_mode
      except OSError:  # a broken or circular link
        mode = 0
      if stat.S_ISDIR(mode):
        (linked if entry.is_symlink() else pending).append(f"{name}/")
      elif stat.S_ISREG(mode):
        found.files[name] = None
      else:
        found.pass_over("not a regular file" if mode else "linked to nothing", name)
  return found


def _identity(directory: Path) -> tuple[int, int]:
  status = directory.stat()
  return status.st_dev, status.st_ino


def _remote(top: epath.Path) -> _Found:
  found = _Found()
  for name in storage.remote_versions(top):
    _take(found, name, None)
  return found


def _zipped(path: epath.Path) -> _Found:
  try:
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
      members = archive.infolist()
  except zipfile.BadZipFile:
    raise UserError(f"{path} is not a zip or is cut short: download or make it again") from None
  found = _Found()
  directories: set[str] = set()
  holding: set[str] = set()
  for member in members:
    # Some programs write Windows' separators or a leading ./
    name = "/".join(part for part in member.filename.replace("\\", "/").split("/") if part != ".")
    if name.endswith("/"):
      directories.add(name)
      continue
    holding.update(name[: place + 1] for place, letter in enumerate(name) if letter == "/")
    if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
      found.pass_over("not a regular file", name)
      continue
    if name in found.files:
      found.passed_over["older of the same name"] += 1
    _take(found, name, member)
  for name in sorted(directories - holding):
    if not any(map(_is_hidden, name.split("/"))):
      found.pass_over("empty (directory)", name)
  return found


def _take(found: _Found, name: str, member: zipfile.ZipInfo | None) -> None:
  if any(map(_is_hidden, name.split("/"))):
    found.passed_over["hidden"] += 1
  else:
    found.files[name] = member


def _is_hidden(part: str) -> bool:
  return part.startswith(".") or part in _SYSTEM_DIRECTORIES


def _check(name: str, member: zipfile.ZipInfo | None, path: epath.Path) -> None:
  try:
    name.encode()
  except UnicodeEncodeError:
    readable = name.encode(errors="backslashreplace").decode()
    raise UserError(f"{readable} in {path} has a name that is not UTF-8: rename it") from None
  if member and (member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.flag_bits & 1):
    raise UserError(f"{name} in {path} is encrypted, or compressed by an unsupported method: pack it again with `zip`")
