"""Finds the best values of settings by short runs, for example of gamma:

    python -m r3gan_jax.cli.sweep --config=configs/stacked_digits.py --set=gan.gamma=0.02,0.1,0.5,2 --images=20000 \
      --out=runs/gamma

trains the recipe with every value and every seed, --jobs at a time, each in a process of its own on its own cores or
GPUs, and scores all by config.run.metrics. Then a page is written, OUT/results/NAME/README.md, with a plot, a table,
samples, and the command that trains with the best values. The same command continues after an interruption, and other
values and seeds join the sweep.

Several --set try all combinations: --set=gan.gamma=0.1,1 --set=batch_size=64,128. A number for a setting that is
scheduled, such as gamma, is a constant; "x0.5" multiplies the recipe's schedule, and "(2.0,0.2)" is another one:
--set=gan.gamma=x0.25,x1,x4.

What a recipe counts in images, such as the burn-in, is changed in proportion to --images.
"""

from r3gan_jax.memory import keep_memory

if __name__ == "__main__":
  keep_memory()

import ast
import re
import shlex
from collections.abc import Sequence
from itertools import product
from typing import Any

from absl import flags, logging
from etils import epath
from ml_collections import ConfigDict, config_flags

from r3gan_jax import automatic, factory
from r3gan_jax.cli.shared.recipes import define_recipe
from r3gan_jax.cli.shared.runner import run
from r3gan_jax.cli.shared.trial_jobs import make_results
from r3gan_jax.errors import UserError
from r3gan_jax.reporting.results import Bounds, Row
from r3gan_jax.reporting.sweep_page import Point, best, write_sweep_page
from r3gan_jax.trials import default_comparison, entry, of_length, times

_CONFIG = define_recipe("config", "The recipe, e.g. configs/stacked_digits.py.")
_SET = flags.DEFINE_multi_string(
  "set", None, "A setting and its values, NAME=A,B,C, e.g. gan.gamma=0.1,1.", required=True
)
_IMAGES = flags.DEFINE_integer(
  "images", None, "How many images each run sees; default: config.run.total_images.", lower_bound=1
)


def main() -> None:
  config = automatic.completed(_CONFIG.value)
  settings = dict(map(_parsed, _SET.value))
  if len(settings) < len(_SET.value):
    raise UserError("--set names a setting twice: give all its values in one --set")
  if not config.run.metrics:
    raise UserError(
      "config.run.metrics is empty, and a sweep compares scores: name some, e.g. --config.run.metrics=\"('fid',)\""
    )
  points, entries = {}, {}
  for values in product(*settings.values()):
    texts = dict(zip(settings, values, strict=True))
    name = "_".join(f"{setting.rpartition('.')[2]}_{_in_a_file_name(text)}" for setting, text in texts.items())
    if name in entries:
      raise UserError(f"--set has {', '.join(values)} twice: give each value once")
    chosen = config.copy_and_resolve_references()
    changes = [_change(chosen, setting, text) for setting, text in texts.items()]
    entries[name] = entry(of_length(chosen, _IMAGES.value or config.run.total_images), group="")
    points[name] = Point(texts, _command(changes))
  comparison = default_comparison(config.name, f"{config.name}: {', '.join(settings)}", entries)
  comparison.metrics, comparison.samples = config.run.metrics, config.run.metric_samples

  def write_page(results: epath.Path, rows: Sequence[Row], bounds: Bounds) -> None:
    write_sweep_page(results, comparison.title, points, rows, bounds)
    logging.info("%s", best(points, rows))

  make_results("sweep", comparison, write_page)


def _parsed(flag: str) -> tuple[str, list[str]]:
  """Returns the setting of one --set, and its values as text."""
  setting, _, listed = flag.partition("=")
  values = [text.strip() for text in re.split(r",(?![^(\[]*[)\]])", listed)]
  if not all(values):
    raise UserError(f"--set={flag}: give a setting and its values, e.g. gan.gamma=0.1,1")
  if setting == "seed" or setting.startswith("run."):
    raise UserError(f"--set={flag}: give seeds by --seeds; settings below config.run do not change what is trained")
  return setting, values


def _change(config: ConfigDict, setting: str, text: str) -> tuple[str, Any]:
  """Changes a setting to what the text says; returns its name and the value."""
  now: Any = factory.checked(config.to_dict())  # with numbers of the right type
  for part in setting.split("."):
    if not isinstance(now, dict) or part not in now:
      raise UserError(f"--set={setting}: there is no setting config.{setting}")
    now = now[part]
  if multiple := re.fullmatch(r"x([\d.]+(?:e[+-]?\d+)?)", text):
    if not all(type(number) in (int, float) for number in (now if isinstance(now, tuple) else (now,))):
      raise UserError(f"--set={setting}={text}: config.{setting} = {now!r} cannot be multiplied")
    value = times(now, float(multiple[1]))
  else:
    try:
      value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
      value = text
  config.update_from_flattened_dict({setting: value})
  return setting, value


def _in_a_file_name(text: str) -> str:
  return re.sub(r"[^\w.+-]+", "-", re.sub(r"[()\[\]'\" ]", "", text))


def _command(changes: Sequence[tuple[str, Any]]) -> str:
  """Returns the command that trains the recipe at full length, with the flags' changes and these."""
  given = config_flags.get_override_values(flags.FLAGS["config"])
  settings = [f"--config.{name}={value}" for name, value in (given | dict(changes)).items()]
  recipe = config_flags.get_config_filename(flags.FLAGS["config"])
  return shlex.join(["python", "main.py", f"--config={recipe}", *settings])


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  run(main)
