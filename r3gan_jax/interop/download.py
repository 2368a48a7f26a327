"""Files from the network, and their checksums."""

import hashlib
import os
import urllib.request
from http.client import HTTPException
from pathlib import Path

from tqdm import tqdm

from r3gan_jax.errors import UserError

_BLOCK = 2**20


def fetch(url: str, path: Path, sha256: str, otherwise: str) -> None:
  """Downloads to a file beside `path`, which takes its place once it is whole and has the right checksum.

  Args:
    sha256: its first hex digits; none: not checked.
    otherwise: what to do with the file that was fetched elsewhere, for the error.

  Raises:
    UserError: it could not be downloaded, or has another checksum. No file is left then.
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
    raise UserError(f"{url} could not be downloaded ({error}): fetch it elsewhere and {otherwise}") from None
  finally:
    partial.unlink(missing_ok=True)


def check_sum(path: Path, sha256: str, title: str = "") -> None:
  """A UserError, which calls the file `title`, where its SHA-256 does not begin with these hex digits."""
  with path.open("rb") as file:
    digest = hashlib.file_digest(file, "sha256").hexdigest()
  if not digest.startswith(sha256):
    begins = digest[: len(sha256)]
    raise UserError(f"{title or path} is damaged: its SHA-256 begins with {begins}, not {sha256}: fetch it anew")
