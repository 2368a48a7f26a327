"""A run's directory belongs to one configuration.

One made from a snapshot of another implementation (cli/convert.py) holds only the settings that the snapshot fixes; the
first recipe that agrees with them makes it its own.
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
"""The part of a configuration that may change when a run is resumed: how it is carried out, not what is trained."""


def claim_workdir(workdir: epath.PathLike, config: dict[str, Any]) -> None:
  """Creates `workdir` for `config`, or checks that it was made by an equal one, or one that left settings open.

  Raises:
    UserError: where it cannot be written, holds something else, or was made by another configuration (the message
      names the first setting that differs). Nothing is changed then.
  """
  path = as_path(workdir)
  config = json.loads(json.dumps(config))  # as read back: tuples become lists
  with failing_as(f"cannot write to the work directory {path}", path, "name another --workdir"):
    make_directory(path)
    if (path / CONFIG_FILE).exists():
      _check_same(path, read_config(path), config)
    elif path.exists() and any(path.iterdir()):
      raise UserError(f"{path} is not empty and was not made by r3gan_jax: name another --workdir")
    write_whole(path / CONFIG_FILE, json.dumps(config, indent=2) + "\n")


def check_data(workdir: epath.PathLike, images: int, classes: Sequence[str]) -> None:
  """Keeps what the data of a run are as it begins; later compares, and logs another number of images.

  Args:
    workdir: claimed already.
    images: how many there are.
    classes: their names, by number; empty where there are none.

  Raises:
    UserError: the classes have other names or another order, so labels would mean something else.
  """
  path = as_path(workdir) / DATA_FILE
  with failing_as(f"cannot keep what the data are in {path}", path):
    try:
      before = json.loads(path.read_text())
      images_before, classes_before = int(before["images"]), [str(name) for name in before["classes"]]
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # it begins, is of before there was this file, ...
      write_whole(path, json.dumps({"images": images, "classes": [*classes]}, indent=2) + "\n")
      return
  if classes_before != [*classes]:
    pairs = enumerate(zip_longest(classes_before, classes))
    number, (then, now) = next((number, pair) for number, pair in pairs if pair[0] != pair[1])
    raise UserError(
      f"{path}: when the run began, class {number} was {then!r}, and it is {now!r} now: restore the classes' names, or "
      "name another --workdir"
    )
  if images_before != images:
    logging.warning("the data are %s images, %s when the run began", f"{images:,}", f"{images_before:,}")


def read_config(workdir: epath.PathLike) -> dict[str, Any]:
  """The configuration that a work directory was made by."""
  path = as_path(workdir) / CONFIG_FILE
  cure = "restore it, or name another work directory"
  with failing_as(f"{path} cannot be read", path, cure):
    try:
      config = json.loads(path.read_text())
    except FileNotFoundError:
      raise UserError(f"{path} not found: {workdir} is not a work directory of r3gan_jax") from None
    except json.JSONDecodeError as error:
      raise UserError(f"{path} cannot be read: {error}: {cure}") from None
  if not isinstance(config, dict):
    raise UserError(f"{path} holds no settings by name: {cure}")
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
"""Algorithm -> its settings where there was no `gan`: at the top, and below `network`."""


def _with_gan(config: dict[str, Any]) -> dict[str, Any]:
  """A configuration of before `gan` as one of today; others as they are."""
  if "gan" in config or config.get("algorithm") not in _BEFORE_GAN:
    return config
  top, below_network = _BEFORE_GAN[config["algorithm"]]
  network = config.get("network", {})
  gan = {name: config[name] for name in top if name in config}
  gan |= {"network" if name == "name" else name: network[name] for name in below_network if name in network}
  rest = {name: value for name, value in config.items() if name != "network" and name not in _BEFORE_GAN["r3gan"][0]}
  return rest | {"gan": gan}


def _with_labels(config: dict[str, Any]) -> dict[str, Any]:
  """A run's configuration of before labels could be noisy or missing as one of today; others as they are."""
  data = config.get("data", {})
  if "source" not in data:
    return config
  return config | {"data": {"labelled_images": 0, "label_noise": 0.0, "label_noise_pairs": []} | data}


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  """{"data": {"name": "x"}} -> {"data.name": "x"}."""
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
        f"{path} was made with config.{name} = {before!r}, but now it is {now!r}: "
        "go on with the old value, or name another --workdir"
      )
