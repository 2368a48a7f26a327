"""Compares adversarial losses under one budget, over several seeds ([P] Table 1):

    python -m r3gan_jax.cli.ablate --config=configs/stacked_digits.py --seeds=0-2 --out=runs/ablation

trains the recipe with every loss of {GAN, RpGAN} x {none, R1, R2, R1 + R2}, or those of --losses, and every seed.
Finished runs are kept: the same command continues, and other recipes, losses and seeds join the comparison. It is
printed, and written to OUT/table.md and OUT/curves.png. `--losses=recipe` keeps the recipe's own loss, to compare
recipes:

    python -m r3gan_jax.cli.ablate --config=configs/roadmap.py:b_fashion32 --losses=recipe --out=runs/roadmap
    python -m r3gan_jax.cli.ablate --config=configs/roadmap.py:e2_fashion32 --losses=recipe --out=runs/roadmap

Scores are config.run.metrics at the end of each run, as mean and standard deviation over seeds. A run with a non-finite
loss or gradient has diverged, and has no scores. Each run is an ordinary work directory, OUT/RECIPE/LOSS/seed_N.
"""

from r3gan_jax.memory import keep_memory

if __name__ == "__main__":
  keep_memory()

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO

import jax
import matplotlib
import numpy as np
from absl import flags, logging
from etils import epath
from ml_collections import ConfigDict, config_flags

from r3gan_jax import factory, runs
from r3gan_jax.cli.shared.numbers import parse_numbers
from r3gan_jax.cli.shared.outputs import output_path
from r3gan_jax.cli.shared.processes import join_processes
from r3gan_jax.cli.shared.runner import run
from r3gan_jax.errors import UserError
from r3gan_jax.storage import failing_as, write_whole
from r3gan_jax.training.distributed import is_first_process, on_first_process
from r3gan_jax.training.logging import read_metrics
from r3gan_jax.training.progress import Diverged
from r3gan_jax.training.workdir import claim_workdir

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_ADVERSARIAL = {"gan": "non_saturating", "rpgan": "relativistic"}
_PENALTIES = {"": (), "_r1": ("r1",), "_r2": ("r2",), "_r1_r2": ("r1", "r2")}
LOSSES = {
  name + suffix: (loss, penalties) for name, loss in _ADVERSARIAL.items() for suffix, penalties in _PENALTIES.items()
}
"""Name -> config.gan.loss, config.gan.penalties."""

_CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe, e.g. configs/stacked_digits.py.")
_LOSSES = flags.DEFINE_list(
  "losses", list(LOSSES), f"The losses, of {', '.join(LOSSES)}; or 'recipe': the recipe's own."
)
_SEEDS = flags.DEFINE_string("seeds", "0-2", "Seeds, e.g. 0-2 or 1,5.")
_OUT = flags.DEFINE_string("out", None, "The directory of the comparison; runs are in OUT/RECIPE/LOSS/seed_N.")

RESULT = "result.json"
_TITLES = {"fid": "FID", "kid": "KID", "modes_kl": "KL"}


@dataclass(frozen=True)
class Result:
  """The end of a run of `images`: `scores` by name, or the images seen when it diverged."""

  recipe: str
  loss: str
  seed: int
  images: int
  diverged_at: int | None
  scores: Mapping[str, float]


def main() -> None:
  config = _CONFIG.value
  join_processes(config.run.peer_timeout_seconds)
  seeds = parse_numbers("seeds", _SEEDS.value, 2**31)
  out, _ = output_path("out", _OUT.value or "", directory=True)
  if not config.run.metrics:
    raise UserError("config.run.metrics is empty: choose what to compare, e.g. --config.run.metrics=\"('fid',)\"")
  for loss in _LOSSES.value:  # reports errors in any of them before training
    factory.build_experiment(_configured(config, loss, next(iter(seeds))), jax.device_count())
  for one in (_configured(config, loss, seed) for loss in _LOSSES.value for seed in seeds):
    _train(one, out / one.name / loss_name(one) / f"seed_{one.seed}")
    results = _results(out)
    if is_first_process():
      with failing_as(f"cannot write to --out={out}", out):
        write_whole(out / "table.md", table(results))
        write_whole(out / "curves.png", _curves(out, results))
  print(table(results), end="")


def loss_name(config: ConfigDict) -> str:
  """Returns the key of `LOSSES` for a configuration, or the name of a GAN whose loss is no setting."""
  if "loss" not in config.gan:
    return str(config.algorithm)
  chosen = config.gan.loss, tuple(sorted(config.gan.penalties))
  return next(name for name, loss in LOSSES.items() if loss == chosen)


def _configured(config: ConfigDict, loss: str, seed: int) -> ConfigDict:
  if loss != "recipe" and loss not in LOSSES:
    raise UserError(f"--losses={loss} is unknown: choose from {', '.join(LOSSES)}, recipe")
  config = config.copy_and_resolve_references()
  config.seed = seed
  if loss != "recipe":
    if "loss" not in config.gan:
      raise UserError(f"--losses={loss}: {config.algorithm} has its own loss: use --losses=recipe")
    config.gan.loss, config.gan.penalties = LOSSES[loss]
  return config


def _train(config: ConfigDict, workdir: epath.Path) -> None:
  """Trains a run and writes its result, unless it is finished."""
  total = config.run.total_images
  finished = 0
  if (workdir / RESULT).exists():
    finished = _read(workdir / RESULT).images
    on_first_process(
      lambda: claim_workdir(workdir, factory.checked(config.to_dict()), factory.completed)
    )  # raises an error if settings differ
  if finished == total:
    return
  images_seen = max((seen[-1] for seen, _ in read_metrics(workdir).values()), default=0)
  # The last iteration may exceed the total, by less than one iteration.
  surplus = factory.build_experiment(config, jax.device_count()).images_per_iteration - 1
  if max(finished, images_seen - surplus) > total:
    raise UserError(
      f"{workdir} was trained on more images than config.run.total_images = {total:,}: choose another --out"
    )
  diverged_at = None
  try:
    runs.train_run(config, workdir)
  except Diverged as error:
    logging.warning("%s", error)
    diverged_at = error.images_seen
  jax.clear_caches()  # the next run compiles other programs
  scores: dict[str, float] = {}
  if diverged_at is None:
    prefix = "metrics/"
    for name, (images_seen, values) in read_metrics(workdir).items():
      if name.startswith(prefix) and images_seen[-1] >= total:
        scores[name.removeprefix(prefix)] = float(values[-1])
  result = Result(config.name, loss_name(config), config.seed, total, diverged_at, scores)
  if is_first_process():
    write_whole(workdir / RESULT, json.dumps(asdict(result), indent=2) + "\n")


def _results(out: epath.Path) -> list[Result]:
  """Returns all results, sorted by recipe, `LOSSES` and seed."""
  results = [_read(path) for path in out.glob(f"*/*/seed_*/{RESULT}")]
  order = list(LOSSES)
  return sorted(results, key=lambda result: (result.recipe, order.index(result.loss), result.images, result.seed))


def _read(path: epath.Path) -> Result:
  try:
    return Result(**json.loads(path.read_text()))
  except (OSError, ValueError, TypeError):
    raise UserError(f"{path} cannot be read: delete it, and run the same command again") from None


def table(results: Sequence[Result]) -> str:
  """Returns a Markdown table: a row per recipe and loss, and one for real images if they were scored."""
  names = [name for name in factory.BEST_METRICS if any(name in result.scores for result in results)]
  head = ["recipe", "loss", "images", "seeds", *(_TITLES.get(name, name) for name in names), "diverged"]
  rows = [head, ["---"] * len(head)]
  for (recipe, loss, images), group in _groups(results).items():
    scores = [_mean_and_std([result.scores[name] for result in group if name in result.scores]) for name in names]
    ends = [result.diverged_at for result in group if result.diverged_at is not None]
    at = f"{len(ends)} of {len(group)}, at {' and '.join(f'{end:,}' for end in ends)} images" if ends else "none"
    rows.append([recipe, _title(loss), f"{images:,}", str(len(group)), *scores, at])
  scored = next((result.scores for result in results if any(f"real_{name}" in result.scores for name in names)), {})
  if scored:
    of_real = [_mean_and_std([scored[f"real_{name}"]] if f"real_{name}" in scored else []) for name in names]
    rows.append(["real images", "", "", "", *of_real, ""])
  return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def _groups(results: Sequence[Result]) -> dict[tuple[str, str, int], list[Result]]:
  groups: dict[tuple[str, str, int], list[Result]] = {}
  for result in results:
    groups.setdefault((result.recipe, result.loss, result.images), []).append(result)
  return groups


def _mean_and_std(values: Sequence[float]) -> str:
  if not values:
    return "-"
  numbers = [(np.mean(values), 4)] + ([(np.std(values, ddof=1), 2)] if len(values) > 1 else [])
  return " ± ".join(
    np.format_float_positional(number, precision=digits, fractional=False, trim="-") for number, digits in numbers
  )


def _title(loss: str) -> str:
  name, *penalties = loss.split("_")
  return " + ".join([{"gan": "GAN", "rpgan": "RpGAN"}[name], *(penalty.upper() for penalty in penalties)])


def _curves(out: epath.Path, results: Sequence[Result]) -> bytes:
  """Draws scores and R2 against images seen, as PNG: a line per seed, a colour per recipe and loss."""
  names = [name for name in factory.BEST_METRICS if any(name in result.scores for result in results)]
  panels = {f"metrics/{name}": _TITLES.get(name, name) for name in names} | {"discriminator/r2": "R2 (on fakes)"}
  figure, axes = plt.subplots(1, len(panels), figsize=(5.2 * len(panels), 4.2), layout="constrained")
  several = len({result.recipe for result in results}) > 1
  for index, ((recipe, loss, _), group) in enumerate(_groups(results).items()):
    for number, result in enumerate(group):
      metrics = read_metrics(out / recipe / loss / f"seed_{result.seed}")
      label = None if number else (f"{recipe}: " if several else "") + _title(loss)
      for axis, name in zip(np.atleast_1d(axes), panels, strict=True):
        if name in metrics:
          images_seen, values = metrics[name]
          axis.plot(images_seen / 1e3, values, color=f"C{index}", label=label, linewidth=1)
  for axis, (name, title) in zip(np.atleast_1d(axes), panels.items(), strict=True):
    axis.set_title(title, parse_math=False)
    axis.set_xlabel("images seen (thousands)")
    axis.grid(alpha=0.2)
    if name in ("metrics/fid", "discriminator/r2"):
      axis.set_yscale("log")
  # StyleGAN2 has no R2, and an early end may leave no score.
  labelled = {line.get_label(): line for axis in np.atleast_1d(axes) for line in axis.get_legend_handles_labels()[0]}
  figure.legend(handles=list(labelled.values()), loc="outside right upper")
  buffer = BytesIO()
  figure.savefig(buffer, format="png", dpi=110)
  plt.close(figure)
  return buffer.getvalue()


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "out"])
  run(main)
