"""Work directories: each belongs to one configuration.

A converted snapshot (cli/convert.py) has only the settings that the snapshot fixes; the first recipe that agrees with
them adds its own.
"""

import json
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from absl import logging
from etils import epath

from r3gan_jax.errors import UserError
from r3gan_jax.storage import as_path, failing_as, make_directory, write_whole

CONFIG_FILE = "config.json"
DATA_FILE = "data.json"
RUN_SECTION = "run"
"""The settings that may change when a run resumes: how it is carried out, not what is trained."""


def claim_workdir(workdir: epath.PathLike, config: dict[str, Any]) -> None:
  """Creates `workdir` for `config`, or checks that its configuration is the same or leaves settings open.

  Raises:
    UserError: it cannot be written, has other contents, or was made by another configuration (the message names the
      first setting that differs). Nothing has been changed then.
  """
  path = as_path(workdir)
  config = json.loads(json.dumps(config))  # tuples become lists, as when it is read
  with failing_as(f"cannot write to the work directory {path}", path, "choose another --workdir"):
    make_directory(path)
    if (path / CONFIG_FILE).exists():
      _check_same(path, read_config(path), config)
    elif path.exists() and any(path.iterdir()):
      raise UserError(f"{path} is not empty and is not a work directory of r3gan_jax: choose another --workdir")
    write_whole(path / CONFIG_FILE, json.dumps(config, indent=2) + "\n")


def check_data(workdir: epath.PathLike, images: int, classes: Sequence[str]) -> None:
  """Records the data of a new run; compares them when it resumes, and logs a different number of images.

  Args:
    workdir: already claimed.
    images: the number of images.
    classes: names by class number; empty without classes.

  Raises:
    UserError: the classes have other names or another order, so labels would change their meaning.
  """
  path = as_path(workdir) / DATA_FILE
  with failing_as(f"cannot record the data in {path}", path):
    try:
      before = json.loads(path.read_text())
      images_before, classes_before = int(before["images"]), [str(name) for name in before["classes"]]
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # a new run, or one older than this file
      write_whole(path, json.dumps({"images": images, "classes": [*classes]}, indent=2) + "\n")
      return
  if classes_before != [*classes]:
    pairs = enumerate(zip_longest(classes_before, classes))
    number, (then, now) = next((number, pair) for number, pair in pairs if pair[0] != pair[1])
    raise UserError(
      f"{path}: class {number} was {then!r} when the run started and is {now!r} now: restore the names of the classes, "
      "or choose another --workdir"
    )
  if images_before != images:
    logging.warning("the data have %s images; they had %s when the run started", f"{images:,}", f"{images_before:,}")


def read_config(workdir: epath.PathLike) -> dict[str, Any]:
  """Returns the configuration of a work directory, with today's names."""
  path = as_path(workdir) / CONFIG_FILE
  cure = "restore it, or choose another work directory"
  with failing_as(f"{path} cannot be read", path, cure):
    try:
      config = json.loads(path.read_text())
    except FileNotFoundError:
      raise UserError(f"{path} not found: {workdir} is not a work directory of r3gan_jax") from None
    except json.JSONDecodeError as error:
      raise UserError(f"{path} cannot be read: {error}: {cure}") from None
  if not isinstance(config, dict):
    raise UserError(f"{path} is not a JSON object: {cure}")
  return _with_labels(_with_gan(config))


_SCHEDULES = ("burn_in_images", "learning_rate", "beta2", "gamma", "ema_half_life")
_NETWORK = ("widths", "noise_dim", "bfloat16_stages", "bfloat16")
_BEFORE_GAN = {
  "r3gan": (
    ("loss", "penalties", "penalised_gradient", "augment_p", "augment", *_SCHEDULES),
    ("name", "cardinalities", "blocks", "expansion", "grouped_conv", *_NETWORK),
  ),
  "stylegan2": (_SCHEDULES, _NETWORK),
}
"""Algorithm -> its settings before there was `gan`: at the top level, and below `network`."""


def _with_gan(config: dict[str, Any]) -> dict[str, Any]:
  """Converts a configuration from before `gan` existed; returns others unchanged."""
  if "gan" in config or config.get("algorithm") not in _BEFORE_GAN:
    return config
  top, below_network = _BEFORE_GAN[config["algorithm"]]
  network = config.get("network", {})
  gan = {name: config[name] for name in top if name in config}
  gan |= {"network" if name == "name" else name: network[name] for name in below_network if name in network}
  rest = {name: value for name, value in config.items() if name != "network" and name not in _BEFORE_GAN["r3gan"][0]}
  return rest | {"gan": gan}


def _with_labels(config: dict[str, Any]) -> dict[str, Any]:
  """Adds label settings to a configuration from before they existed; returns others unchanged."""
  data = config.get("data", {})
  if "source" not in data:
    return config
  return config | {"data": {"labelled_images": 0, "label_noise": 0.0, "label_noise_pairs": []} | data}


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  """Flattens {"data": {"name": "x"}} to {"data.name": "x"}."""
  flat: dict[str, Any] = {}
  for name, value in tree.items():
    flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
  return flat


def _check_same(path: epath.Path, old: dict[str, Any], new: dict[str, Any]) -> None:
  old_settings, new_settings = flatten(old), flatten(new)
  for name, before in old_settings.items():
    now = new_settings.get(name, "(absent)")
    if before != now and not name.startswith(f"{RUN_SECTION}."):
      raise UserError(
        f"{path} was made with config.{name} = {before!r}, but now it is {now!r}: keep the old value, or choose "
        "another --workdir"
      )
