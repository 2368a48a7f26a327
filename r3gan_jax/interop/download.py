"""Downloads files and verifies their checksums."""

import hashlib
import urllib.request
from http.client import HTTPException
from pathlib import Path

from r3gan_jax.errors import UserError
from r3gan_jax.progress_bar import progress_bar
from r3gan_jax.storage import whole_file

_BLOCK = 2**20


def fetch(url: str, path: Path, sha256: str, otherwise: str) -> None:
  """Downloads a file, which appears at `path` when it is complete and has the right checksum.

  Args:
    url: the source.
    path: the local file.
    sha256: the first hex digits of its SHA-256; "": not verified.
    otherwise: for the error, what to do with a file that was downloaded by other means.

  Raises:
    UserError: it cannot be downloaded, or its checksum is wrong; then no file is left.
  """
  digest = hashlib.sha256()
  try:
    with urllib.request.urlopen(url, timeout=60) as response, whole_file(path) as file:
      total = int(response.headers.get("Content-Length") or 0) or None
      with progress_bar(total=total, title=path.name, unit="B") as progress:
        while block := response.read(_BLOCK):
          digest.update(block)
          progress.update(file.write(block))
      if total and file.tell() != total:
        raise OSError(f"it ended after {file.tell():,} of {total:,} bytes")
      _check(digest.hexdigest(), sha256, url)
  except (OSError, HTTPException, ValueError) as error:
    raise UserError(f"{url} could not be downloaded ({error}): download it by other means and {otherwise}") from None


def check_sum(path: Path, sha256: str) -> None:
  """Raises a UserError unless the SHA-256 of a file begins with these hex digits."""
  with path.open("rb") as file:
    _check(hashlib.file_digest(file, "sha256").hexdigest(), sha256, str(path))


def _check(digest: str, sha256: str, title: str) -> None:
  if not digest.startswith(sha256):
    begins = digest[: len(sha256)]
    raise UserError(f"{title} is damaged: its SHA-256 begins with {begins}, not {sha256}: download it again")
