"""Adversarial losses and penalties, each with the same network and images ([P] Table 1).

    python -m r3gan_jax.cli.compare --comparison=configs/comparisons/losses.py:stacked_digits --out=runs/losses
    python -m r3gan_jax.cli.compare --comparison=configs/comparisons/losses.py:stacked_mnist --out=runs/losses

`:stacked_digits` is the quickstart at half its length, with batches of 64, 24 runs of about four minutes of one core
each; `:stacked_mnist` is the paper's experiment, on GPUs.
"""

from ml_collections import ConfigDict

from configs import stacked_digits, stacked_mnist
from configs.comparisons import common
from r3gan_jax.errors import UserError

ADVERSARIAL = {"gan": "non_saturating", "rpgan": "relativistic"}
PENALTIES: dict[str, tuple[str, ...]] = {"": (), "_r1": ("r1",), "_r2": ("r2",), "_r1_r2": ("r1", "r2")}


def get_config(variant: str = "stacked_digits") -> ConfigDict:
  recipes = {"stacked_digits": _stacked_digits, "stacked_mnist": _stacked_mnist}
  if variant not in recipes:
    raise UserError(f"losses.py has no variant {variant!r}: choose from {', '.join(recipes)}")
  entries = {}
  for name, loss in ADVERSARIAL.items():
    for suffix, penalties in PENALTIES.items():
      config = recipes[variant]()
      config.gan.loss, config.gan.penalties = loss, penalties
      entries[name + suffix] = common.entry(config, group=name, control=name if suffix else "")
  comparison = common.get_config(variant, f"Losses and penalties, on {variant.replace('_', ' ')}", entries)
  comparison.metrics = ("modes",)
  comparison.samples = 26_000
  return comparison


def _stacked_digits() -> ConfigDict:
  config = stacked_digits.get_config()
  config.batch_size = 64
  config.run.total_images = 100_000
  config.run.snapshot_every_images = 10_000
  return config


def _stacked_mnist() -> ConfigDict:
  config = stacked_mnist.get_config()
  config.run.metrics = ("modes",)
  return config
