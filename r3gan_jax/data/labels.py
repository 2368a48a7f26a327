"""Reads the labels of image files, from a `dataset.json` or from the names of directories.

`dataset.json` has the format of StyleGAN's and EDM's tools, `{"labels": [[name, label], ...]}`, or the same as an
object, `{"labels": {name: label, ...}}`; names are relative to its own directory.
"""

import json
from typing import Any

import numpy as np

from r3gan_jax.data.files import LISTS, ImageFiles, counted
from r3gan_jax.errors import UserError

_FORM = '{"labels": [[name, class number], ...]}'
_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}


def list_above_all(files: ImageFiles) -> str | None:
  """Returns the name of the highest `dataset.json` above all images; None without one."""
  fitting = [name for name in files.lists if all(image.startswith(_directory(name)) for image in files.names)]
  return min(fitting, key=len, default=None)


def listed_labels(files: ImageFiles, or_directories: bool = False) -> np.ndarray | None:
  """Returns labels int32 [n] from the `dataset.json` above all images; None without one, or if it has no labels.

  Args:
    or_directories: directories may be the classes instead, so lists of only some of the images are passed over.

  Raises:
    UserError: it has another format, does not list an image, or is not above all images.
  """
  path = list_above_all(files)
  if path is None and files.lists:
    if not or_directories:
      raise UserError(
        f"{files.lists[0]} in {files.path} is not above all images: give its directory, move it up, or remove it"
      )
    files.passed_over[f"{LISTS} of some of the images"] = len(files.lists)
  if path is None:
    return None
  where = f"{path} in {files.path}"
  labels = _parse(files.read_file(path), where)
  if labels is None:
    return None
  names = [image.removeprefix(_directory(path)).replace("\\", "/") for image in files.names]
  for name in names:
    if name not in labels:
      example = f" (it lists {next(iter(labels))} and others)" if labels else ""
      raise UserError(f"{where} does not list {name}{example}: list it, or remove the image")
  if absent := len(labels) - len(names):
    files.passed_over[f"listed in {path} but missing"] = absent
  return np.array([labels[name] for name in names], np.int32)


def directory_labels(files: ImageFiles) -> tuple[np.ndarray, list[str]]:
  """Returns labels int32 [n] and sorted class names: the directories below the deepest one that all images share.

  Raises:
    UserError: an image is in no such directory; one contains no images, or only directories; or the names are those of
      splits, or cannot be stored.
  """
  parts = [name.split("/") for name in files.names]
  first, last = parts[0][:-1], parts[-1][:-1]  # names are sorted, so all share what these two share
  depth = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
  for name, part in zip(files.names, parts, strict=True):
    if len(part) < depth + 2:
      raise UserError(
        f"{name} in {files.path} has no label: list it in {LISTS}, or sort the images into one directory per class"
      )
  classes, labels = np.unique([part[depth] for part in parts], return_inverse=True)
  names = classes.tolist()
  shared = first[:depth]
  above = "/".join([str(files.path), *shared])
  if nested := {*names} - {part[depth] for part in parts if len(part) == depth + 2}:
    name = min(nested)
    raise UserError(
      f"{name} in {above} would be a class, but has directories instead of images: give (or zip) the directory whose "
      f"subdirectories are the classes, such as {name}, or list the labels in {LISTS}"
    )
  if {name.lower() for name in names} <= _SPLITS:
    raise UserError(
      f"{', '.join(names)} in {above} would be the classes, but have the names of splits: give (or zip) one of them, "
      f"or list the labels in {LISTS}"
    )
  for name in names:
    if name != name.strip() or not name.isprintable():
      raise UserError(
        f"{name!r} in {above} cannot be the name of a class: remove surrounding spaces and unprintable characters"
      )
  lost = [name.split("/") for name in files.lost]
  if without := {part[depth] for part in lost if part[:depth] == shared and len(part) > depth + 1} - {*names}:
    raise UserError(
      f"{min(without)} in {above} would be a class, but has no readable image (passed over: "
      f"{counted(files.passed_over)}): rename or convert its files, or remove it"
    )
  return labels.astype(np.int32), names


def _directory(name: str) -> str:
  """Returns the directory of a file name, with the slash: "a/b.png" -> "a/"."""
  return name[: name.rfind("/") + 1]


def _parse(data: bytes, where: str) -> dict[str, int] | None:
  """Parses a `dataset.json`: name -> label; None if its labels are null."""
  try:
    content = json.loads(data)
  except json.JSONDecodeError as error:
    hint = ", in which \\ is written \\\\" if "escape" in error.msg else ""
    raise UserError(
      f"{where} is not valid JSON{hint}: line {error.lineno}, column {error.colno}: {error.msg}"
    ) from None
  except UnicodeDecodeError:
    raise UserError(f"{where} is not UTF-8: save it in that encoding") from None
  if not isinstance(content, dict) or "labels" not in content:
    raise UserError(f"{where} has no 'labels': write {_FORM}")
  entries = content["labels"]
  if entries is None:
    return None
  if isinstance(entries, dict):
    entries = list(entries.items())
  if not isinstance(entries, list):
    raise UserError(f"{where} has labels that are neither a list nor an object: write {_FORM}")
  labels: dict[str, int] = {}
  for index, entry in enumerate(entries):
    if not (isinstance(entry, list | tuple) and len(entry) == 2 and isinstance(entry[0], str)):
      raise UserError(f"{where}: entry {index} is {_short(entry)}, not [name, class number]: write {_FORM}")
    name, label = entry[0].replace("\\", "/"), entry[1]
    if type(label) is not int or not 0 <= label < 2**31:
      raise UserError(f"{where} labels {name} {_short(label)}: give each image a class number from 0")
    if labels.setdefault(name, label) != label:
      raise UserError(f"{where} labels {name} both {labels[name]} and {label}: list it once")
  return labels


def _short(value: Any) -> str:
  text = json.dumps(value)
  return text if len(text) <= 40 else f"{text[:40]}..."
