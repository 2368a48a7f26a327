"""What moves R3GAN's recall: one setting at a time, all else as in the recipe; and what raises it, together.

    python -m r3gan_jax.cli.compare --comparison=configs/comparisons/recall.py:stacked_digits --seeds=0-2 --jobs=2 \
      --out=runs/recall --results=docs/results/recall

    variant          data                              recipe
    stacked_digits   the quickstart's, at 8x8          the quickstart's, at half its length, batches of 64
    fashion_mnist    Fashion-MNIST, 28 -> 16 pixels    that of docs/editing.md, half as wide

Scores are of the features of classifiers of MNIST and Fashion-MNIST, which need prepared data and
`cli.train_classifier`, as configs/comparisons/zoo.py says.
"""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from configs import fashion_mnist, stacked_digits
from configs.comparisons import common
from r3gan_jax.errors import UserError
from r3gan_jax.trials import of_length, times

BASE = "base"


def get_config(variant: str = "stacked_digits") -> ConfigDict:
  recipes = {"stacked_digits": _stacked_digits, "fashion_mnist": _fashion_mnist}
  if variant not in recipes:
    raise UserError(f"recall.py has no variant {variant!r}: choose from {', '.join(recipes)}")
  entries = {}
  for name, (group, change) in _CHANGES.items():
    config = recipes[variant]()
    change(config)
    entries[name] = common.entry(config, group=group, control="" if name == BASE else BASE)
  comparison = common.get_config(variant, f"What moves recall, on {variant.replace('_', ' ')}", entries)
  comparison.metrics = ("fid", "precision_recall", "density_coverage")
  return comparison


def _stacked_digits() -> ConfigDict:
  config = stacked_digits.get_config()
  config.batch_size = 64  # as Fashion-MNIST has; the quickstart's 16 are what this comparison showed
  return _of(config, 100_000)


def _fashion_mnist() -> ConfigDict:
  config = fashion_mnist.get_config()
  config.data.update({"resolution": 16, "fit": "crop_resize"})
  config.gan.update({"widths": (32, 32, 16), "cardinalities": (4, 4, 2), "blocks": (1, 1, 1), "bfloat16_stages": 0})
  config.gan.update({"learning_rate": (2e-3, 3e-4), "augment_p": (0.0, 0.0)})
  return _of(config, 100_000)


def _of(config: ConfigDict, images: int) -> ConfigDict:
  config.run.feature_network = "digits"
  config.run.metrics = ("fid",)
  config.run.best_metric = ""
  config.run.metric_samples = 1_000
  return of_length(config, images)


def _scaled(name: str, factor: float) -> Callable[[ConfigDict], None]:
  def change(config: ConfigDict) -> None:
    config.gan[name] = times(config.gan[name], factor)

  return change


def _set(**values: Any) -> Callable[[ConfigDict], None]:
  return lambda config: config.gan.update(values)


def _batch(factor: float) -> Callable[[ConfigDict], None]:
  def change(config: ConfigDict) -> None:
    config.batch_size = round(config.batch_size * factor)

  return change


def _all(*changes: Callable[[ConfigDict], None]) -> Callable[[ConfigDict], None]:
  def change(config: ConfigDict) -> None:
    for one in changes:
      one(config)

  return change


# name: knob, what it changes
_CHANGES: dict[str, tuple[str, Callable[[ConfigDict], None]]] = {
  BASE: ("", lambda config: None),
  "gamma_x0.1": ("gamma", _scaled("gamma", 0.1)),
  "gamma_x0.3": ("gamma", _scaled("gamma", 0.3)),
  "gamma_x3": ("gamma", _scaled("gamma", 3.0)),
  "gamma_x10": ("gamma", _scaled("gamma", 10.0)),
  "augmented": ("augmentation", _set(augment_p=(0.0, 0.3))),
  "width_x0.5": ("width", _scaled("widths", 0.5)),
  "width_x2": ("width", _scaled("widths", 2.0)),
  "batch_x0.25": ("batch", _batch(0.25)),
  "batch_x4": ("batch", _batch(4.0)),
  "without_ema": ("EMA", _set(ema_half_life=(0.0, 0.0))),
  "ema_x10": ("EMA", _scaled("ema_half_life", 10.0)),
  # the three that raise recall
  "together": ("all", _all(_scaled("gamma", 10.0), _scaled("widths", 2.0), _batch(0.25))),
}
