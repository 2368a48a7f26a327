"""Finds recipes: a file of the user's, or one of configs/, which come along with the package."""

import sys
from collections.abc import Iterator
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags

from r3gan_jax.errors import UserError

flags.disclaim_key_flags()  # flags belong to the command that calls `define_recipe`

_PACKAGE = Path(__file__).parents[2]
_ROOT = next(root for root in (_PACKAGE / "share", _PACKAGE.parent) if root.is_dir())
"""The directory of configs/: setup.py puts it into the package, so that an installation has no top-level `configs`."""


def define_recipe(flag: str, help: str) -> flags.FlagHolder[ConfigDict]:
  """Defines a flag whose value is a recipe, FILE.py or FILE.py:VARIANT, and --FLAG.NAME=VALUE, which change it.

  The file may import from `configs`, which is that of the package, wherever the command is run.
  """
  holder = config_flags.DEFINE_config_file(flag, None, help)
  flags.FLAGS[flag].parser = _Parser(flag)
  return holder


class _Parser(config_flags.ConfigFileFlagParser):
  def parse(self, path: str) -> ConfigDict:
    name, colon, variant = path.partition(":")
    sys.path.insert(0, str(_ROOT))  # in front of the user's own directories of that name
    return super().parse(f"{find_recipe(self.name, name)}{colon}{variant}")


def find_recipe(flag: str, name: str) -> Path:
  """Returns the file `name`, or, if there is none, the one that comes along under this name.

  Raises:
    UserError: there is neither.
  """
  if Path(name).is_file():
    return Path(name)
  if name in recipes():
    return _ROOT / name
  raise UserError(f"--{flag}={name}: there is no such recipe: give a .py file, or one that `r3gan recipes` lists")


def recipes() -> Iterator[str]:
  """Yields the names of the recipes that come along: configs/cifar10.py, ..."""
  for path in sorted((_ROOT / "configs").rglob("*.py")):
    if path.name not in ("__init__.py", "common.py"):
      yield path.relative_to(_ROOT).as_posix()
