"""Downloads files and checks their checksums."""

import hashlib
import os
import urllib.request
from http.client import HTTPException
from pathlib import Path

from tqdm import tqdm

from r3gan_jax.errors import UserError

_BLOCK = 2**20


def fetch(url: str, path: Path, sha256: str, otherwise: str) -> None:
  """Downloads a file, which appears at `path` when it is complete and has the right checksum.

  Args:
    url: the source.
    path: the local file.
    sha256: the first hex digits of its SHA-256; "": not checked.
    otherwise: for the error, what to do with a file that is downloaded by other means.

  Raises:
    UserError: it cannot be downloaded, or has another checksum. No file is left then.
  """
  partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with urllib.request.urlopen(url, timeout=60) as response, partial.open("wb") as file:
      total = int(response.headers.get("Content-Length") or 0) or None
      with tqdm(total=total, unit="B", unit_scale=True, desc=path.name, disable=None) as progress:
        while block := response.read(_BLOCK):
          progress.update(file.write(block))
    if total and partial.stat().st_size != total:
      raise OSError(f"it ended after {partial.stat().st_size:,} of {total:,} bytes")
    check_sum(partial, sha256, url)
    partial.replace(path)
  except (OSError, HTTPException, ValueError) as error:
    raise UserError(f"{url} could not be downloaded ({error}): download it by other means and {otherwise}") from None
  finally:
    partial.unlink(missing_ok=True)


def check_sum(path: Path, sha256: str, title: str = "") -> None:
  """Raises a UserError unless the file's SHA-256 begins with these hex digits; `title` names it in the error."""
  with path.open("rb") as file:
    digest = hashlib.file_digest(file, "sha256").hexdigest()
  if not digest.startswith(sha256):
    begins = digest[: len(sha256)]
    raise UserError(f"{title or path} is damaged: its SHA-256 begins with {begins}, not {sha256}: download it again")
