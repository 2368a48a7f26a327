"""Work directories: each belongs to one configuration, and config.json's "history" says how it was changed on purpose.

A converted snapshot (cli/convert.py) has only the settings that the snapshot fixes; the first recipe that agrees with
them adds its own.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from absl import logging
from etils import epath

from r3gan_jax.errors import UserError
from r3gan_jax.storage import as_path, failing_as, make_directory, write_whole

CONFIG_FILE = "config.json"
DATA_FILE = "data.json"
LOCK_FILE = "lock"
HISTORY = "history"
RUN_SECTION = "run"
"""The settings that may change when a run resumes: how it is carried out, not what is trained."""


def claim_workdir(
  workdir: epath.PathLike,
  config: Mapping[str, Any],
  complete: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict,
  images_seen: int | None = None,
) -> None:
  """Creates `workdir` for `config`, or checks that its configuration is the same or leaves settings open.

  Args:
    complete: adds the settings that did not exist when the work directory was made, and drops those that no longer do.
    images_seen: other settings are allowed, and recorded in the history at this count; None: they are an error.

  Raises:
    UserError: it cannot be written, has other contents, or was made by another configuration (the message names the
      first setting that differs). Nothing has been changed then.
  """
  path = as_path(workdir)
  config = _as_json(config)
  with failing_as(f"cannot write to the work directory {path}", path, "choose another --workdir"):
    make_directory(path)
    history = []
    if (path / CONFIG_FILE).exists():
      changes = changed_settings(complete(read_config(path)), config)
      history = read_history(path)
      if changes and images_seen is None:
        name, (old, new) = next(iter(changes.items()))
        raise UserError(
          f"{path} was made with config.{name} = {old!r}, but now it is {new!r}: keep the old value, choose another "
          "--workdir, or continue with the new one by --change_settings"
        )
      if changes:
        history.append({"images_seen": images_seen, "changes": changes})
    elif path.exists() and any(file.name != LOCK_FILE for file in path.iterdir()):
      raise UserError(f"{path} is not empty and is not a work directory of r3gan_jax: choose another --workdir")
    write_whole(path / CONFIG_FILE, json.dumps(config | ({HISTORY: history} if history else {}), indent=2) + "\n")


def changed_settings(before: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
  """Returns name -> (before, now) for settings outside `run` that `before` has and that differ now."""
  then, now = flatten(_as_json(before)), flatten(_as_json(config))
  return {
    name: (value, now.get(name))
    for name, value in then.items()
    if value != now.get(name) and not name.startswith(f"{RUN_SECTION}.")
  }


def _as_json(config: Mapping[str, Any]) -> dict[str, Any]:
  return json.loads(json.dumps(config))  # tuples become lists, as when it is read


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
    before = read_data(workdir)
    if before is None:  # a new run, or one older than this file
      write_whole(path, json.dumps({"images": images, "classes": [*classes]}, indent=2) + "\n")
      return
  images_before, classes_before = before
  if classes_before != [*classes]:
    pairs = enumerate(zip_longest(classes_before, classes))
    number, (then, now) = next((number, pair) for number, pair in pairs if pair[0] != pair[1])
    raise UserError(
      f"{path}: class {number} was {then!r} when the run started and is {now!r} now: restore the names of the classes, "
      "or choose another --workdir"
    )
  if images_before != images:
    logging.warning("the data have %s images; they had %s when the run started", f"{images:,}", f"{images_before:,}")


def read_data(workdir: epath.PathLike) -> tuple[int, list[str]] | None:
  """Returns what `check_data` recorded: the number of images, and the names of the classes; None without a record."""
  try:
    kept = json.loads((as_path(workdir) / DATA_FILE).read_text())
    return int(kept["images"]), [str(name) for name in kept["classes"]]
  except (FileNotFoundError, ValueError, KeyError, TypeError):
    return None


def read_history(workdir: epath.PathLike) -> list[dict[str, Any]]:
  """Returns the changes of a run's settings: [{"images_seen": ..., "changes": {name: [before, after]}}, ...]."""
  history = _read(workdir).get(HISTORY, [])
  return history if isinstance(history, list) else []


def read_config(workdir: epath.PathLike) -> dict[str, Any]:
  """Returns the configuration of a work directory, with today's names and without its history."""
  config = _read(workdir)
  return _with_gan({name: value for name, value in config.items() if name != HISTORY})


def _read(workdir: epath.PathLike) -> dict[str, Any]:
  path = as_path(workdir) / CONFIG_FILE
  cure = "restore it, or choose another work directory"
  with failing_as(f"{path} cannot be read", path, cure):
    try:
      config = json.loads(path.read_text())
    except FileNotFoundError:
      raise UserError(f"{path} not found: {workdir} is not a work directory of r3gan_jax") from None
    except ValueError as error:  # no JSON, or no UTF-8
      raise UserError(f"{path} cannot be read: {error}: {cure}") from None
  if not isinstance(config, dict):
    raise UserError(f"{path} is not a JSON object: {cure}")
  return config


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
  network = config.get("network", {})
  if "gan" in config or str(config.get("algorithm")) not in _BEFORE_GAN or not isinstance(network, dict):
    return config
  top, below_network = _BEFORE_GAN[config["algorithm"]]
  gan = {name: config[name] for name in top if name in config}
  gan |= {"network" if name == "name" else name: network[name] for name in below_network if name in network}
  rest = {name: value for name, value in config.items() if name != "network" and name not in _BEFORE_GAN["r3gan"][0]}
  return rest | {"gan": gan}


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  """Flattens {"data": {"name": "x"}} to {"data.name": "x"}."""
  flat: dict[str, Any] = {}
  for name, value in tree.items():
    flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
  return flat
