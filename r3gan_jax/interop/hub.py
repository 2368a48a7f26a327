"""Fetches folders from the Hugging Face Hub and uploads them, by huggingface_hub: setup.py's extra "hub".

Its settings hold: the user's login or HF_TOKEN, HF_HOME for the cache, HF_HUB_OFFLINE, HF_ENDPOINT.
"""

import os
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from etils import epath

from r3gan_jax.errors import UserError

SCHEME = "hf://"
_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def is_address(path: epath.PathLike) -> bool:
  """Returns whether the path is on the Hub: hf://OWNER/NAME or hf://OWNER/NAME@REVISION."""
  return os.fspath(path).startswith(SCHEME)


def fetch(address: epath.PathLike, files: Sequence[str]) -> Path:
  """Downloads files of one revision, unless they are in the cache; returns the local folder that has them.

  Args:
    address: see `is_address`; without a revision it is the newest, or the last one seen if the Hub cannot be reached.
    files: the names of the files; those that the Hub does not have are left out.

  Raises:
    UserError: huggingface_hub is not installed, the name is not one of the Hub, or the Hub does not give the files.
  """
  name, _, revision = os.fspath(address).removeprefix(SCHEME).partition("@")
  if not _NAME.fullmatch(name):
    raise UserError(
      f"{address} does not name a repository of the Hub: write hf://OWNER/NAME or hf://OWNER/NAME@REVISION"
    )
  hub = _library(f"{address} needs it")
  try:
    return Path(hub.snapshot_download(name, revision=revision or None, allow_patterns=[*files]))
  except Exception as error:  # the layers below can raise anything
    raise UserError(
      f"{address} cannot be fetched ({_why(error)}): check the name and the connection; if it is private, run "
      "`hf auth login` or set HF_TOKEN"
    ) from None


def check_upload(name: str) -> None:
  """Raises a UserError if `upload` is bound to fail: without huggingface_hub, a user or a name OWNER/NAME."""
  if not _NAME.fullmatch(name):
    raise UserError(f"--push={name} does not name a repository of the Hub: write OWNER/NAME")
  hub = _library(f"--push={name} needs it")
  if not hub.get_token():
    raise UserError(f"--push={name}: the Hub needs to know who you are: run `hf auth login`, or set HF_TOKEN")


def upload(folder: Path, name: str, private: bool) -> str:
  """Uploads the files of a folder in one commit, so that readers see all or none; returns the address of the page.

  Args:
    folder: has files only.
    name: OWNER/NAME of the repository, which is created if it does not exist.
    private: creates it as a private one; otherwise the owner's default holds.

  Raises:
    UserError: the Hub refuses, or the repository exists and is public though it should be private.
  """
  hub = _library(f"--push={name} needs it")
  retry = f"{folder} is complete: upload it by `hf upload {name} {folder}`"
  try:
    page = hub.create_repo(name, private=private or None, exist_ok=True)
    if private and not hub.model_info(name).private:
      raise UserError(f"--private: {page} exists and is public: make it private there, or choose another name; {retry}")
    files = [hub.CommitOperationAdd(path.name, path) for path in sorted(folder.iterdir())]
    hub.create_commit(name, files, commit_message="Upload by r3gan_jax")
  except UserError:
    raise
  except Exception as error:  # the layers below can raise anything
    raise UserError(f"--push={name} failed ({_why(error)}): {retry}") from None
  return str(page)


def _library(need: str) -> ModuleType:
  try:
    import huggingface_hub
  except ImportError:
    raise UserError(f"huggingface_hub is not installed, and {need}: pip install -e '.[hub]'") from None
  return huggingface_hub


def _why(error: Exception) -> str:
  return textwrap.shorten(str(error) or type(error).__name__, 200, placeholder=" ...")
