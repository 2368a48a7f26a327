"""Compares recipes under one budget, over several seeds:

    python -m r3gan_jax.cli.compare --comparison=configs/comparisons/losses.py:stacked_digits --out=runs/losses

trains every entry of a comparison with every seed, --jobs at a time, each in a process of its own on its own cores,
and scores what no GAN has drawn as well. Then a page is written, with a table, a figure and samples:
RESULTS/NAME/README.md, by default in OUT/results. The same command continues after an interruption, and leaves alone
what has a result, also if its work directory is gone; other entries and seeds join the comparison:

    python -m r3gan_jax.cli.compare --comparison=configs/comparisons/zoo.py:fashion_mnist --seeds=0-2 --jobs=2 \
      --out=runs/zoo --results=docs/results/zoo
    python -m r3gan_jax.cli.compare --comparison=configs/comparisons/zoo.py:fashion_mnist --seeds=0 --rates=0.5,2 \
      --out=runs/zoo --results=docs/results/zoo

Each run is an ordinary work directory, OUT/NAME/ENTRY/seed_N, with its log beside it. A run with a non-finite loss or
gradient has diverged, and has no scores. One that fails does not end the others.
"""

from r3gan_jax.memory import keep_memory

if __name__ == "__main__":
  keep_memory()

from absl import flags

from r3gan_jax.cli.shared.recipes import define_recipe
from r3gan_jax.cli.shared.runner import run
from r3gan_jax.cli.shared.trial_jobs import make_results
from r3gan_jax.errors import UserError
from r3gan_jax.reporting.comparison_page import write_page

_COMPARISON = define_recipe("comparison", "The comparison, e.g. configs/comparisons/losses.py:stacked_digits.")
_RATES = flags.DEFINE_list("rates", ["1"], "What learning rates are multiplied by, e.g. 0.5,2.")


def main() -> None:
  comparison = _COMPARISON.value
  make_results(
    "compare",
    comparison,
    lambda results, rows, bounds: write_page(results, comparison.title, rows, bounds),
    _rates(),
  )


def _rates() -> list[float]:
  try:
    rates = list(dict.fromkeys(map(float, _RATES.value)))
  except ValueError:
    rates = [0.0]
  if min(rates, default=0.0) <= 0:
    raise UserError(f"--rates={','.join(_RATES.value)}: give positive numbers, e.g. 0.5,2")
  return rates


if __name__ == "__main__":
  flags.mark_flag_as_required("comparison")
  run(main)
