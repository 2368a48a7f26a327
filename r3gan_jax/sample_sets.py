"""Sets of sample images, a PNG each: a directory, which a later call continues, or a zip.

`sampling.json` in it says what drew the images: only the same weights and settings add to it. With classes,
`dataset.json` lists labels as StyleGAN's tools do, so the set can be prepared for training (data/labels.py).
"""

import hashlib
import json
import re
import zipfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from etils import epath

from r3gan_jax.data.files import LISTS
from r3gan_jax.errors import UserError
from r3gan_jax.sampling import encoded_png
from r3gan_jax.storage import make_directory, whole_file, write_whole

SETTINGS_FILE = "sampling.json"
_NAME = re.compile(r"(?:class(\d+)_)?seed(\d+)\.png")


def name_of(seed: int, label: int | None) -> str:
  """Returns the file name of a sample."""
  return ("" if label is None else f"class{label:04}_") + f"seed{seed:08}.png"


def seed_and_label(name: str) -> tuple[int, int | None] | None:
  """Returns what `name_of` was given; None for other names."""
  match = _NAME.fullmatch(name)
  return match and (int(match[2]), int(match[1]) if match[1] else None)


def settings_of(title: str, networks: Any, truncation: float, quantised_in: str) -> dict[str, Any]:
  """Returns what samples depend on besides seeds and labels; `title` is for people and may change with the place."""
  digest = hashlib.sha256()
  for path, leaf in jax.tree.leaves_with_path(networks):
    digest.update(jax.tree_util.keystr(path).encode() + np.asarray(leaf).tobytes())
  return {"of": title, "weights": digest.hexdigest(), "truncation": truncation, "quantised_in": quantised_in}


def claim_directory(path: epath.Path, settings: Mapping[str, Any]) -> None:
  """Creates a directory for samples by `settings_of`, or checks that those in it were drawn by the same.

  Raises:
    UserError: it has other images. Nothing has been changed then.
  """
  make_directory(path)
  if (path / SETTINGS_FILE).exists():
    _check(path, (path / SETTINGS_FILE).read_bytes(), settings)
    return
  if (path / LISTS).exists() or any(path.glob("*.png")):
    raise UserError(f"{path} has images but no {SETTINGS_FILE}, so they may not be this run's: choose another --out")
  write_whole(path / SETTINGS_FILE, _as_json(settings))


def present(path: epath.Path) -> set[str]:
  """Returns the names of the images in a directory; each is complete."""
  return {file.name for file in path.glob("*.png")}


def write_labels(path: epath.Path) -> None:
  """Writes the labels of all samples in a directory, if they have any."""
  if labels := _labels(present(path)):
    write_whole(path / LISTS, labels)


def check_zip(path: epath.Path, settings: Mapping[str, Any]) -> None:
  """Raises a UserError if `path` is anything else than a zip of samples by the same settings, which may be replaced."""
  if not path.exists():
    return
  try:
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
      before = archive.read(SETTINGS_FILE)
  except (zipfile.BadZipFile, KeyError):
    raise UserError(f"{path} exists and was not written by this command: choose another --out") from None
  _check(path, before, settings)


def write_zip(
  path: epath.Path, names: Iterable[str], batches: Iterable[np.ndarray], settings: Mapping[str, Any]
) -> None:
  """Writes the images of uint8 [., H, W, C] `batches` with the next of `names`; the zip appears when it is complete."""
  upcoming, written = iter(names), []
  with whole_file(path) as file, zipfile.ZipFile(file, "w") as archive, ThreadPoolExecutor() as threads:
    # Not by name alone, which would add the time.
    archive.writestr(zipfile.ZipInfo(SETTINGS_FILE), _as_json(settings))
    for batch in batches:
      for data in threads.map(encoded_png, batch):
        written.append(next(upcoming))
        archive.writestr(zipfile.ZipInfo(written[-1]), data)
    if labels := _labels(written):
      archive.writestr(zipfile.ZipInfo(LISTS), labels)


def _check(path: epath.Path, before: bytes, settings: Mapping[str, Any]) -> None:
  try:
    kept = dict(json.loads(before))
  except (ValueError, TypeError):
    raise UserError(f"{SETTINGS_FILE} in {path} cannot be read: choose another --out") from None
  if kept.get("weights") != settings["weights"]:
    raise UserError(f"{path} has images of {kept.get('of')}, not of {settings['of']}: choose another --out")
  for name in ("truncation", "quantised_in"):
    if kept.get(name) != settings[name]:
      raise UserError(
        f"{path} has images drawn with {name} = {kept.get(name)!r}, not {settings[name]!r}: choose another --out"
      )


def _as_json(settings: Mapping[str, Any]) -> str:
  return json.dumps(settings, indent=2) + "\n"


def _labels(names: Iterable[str]) -> str:
  """Returns the contents of a dataset.json; "" without labels."""
  found = [(name, seed_and_label(name)) for name in sorted(names)]
  labels = [[name, of[1]] for name, of in found if of and of[1] is not None]
  return json.dumps({"labels": labels}) + "\n" if labels else ""
