"""The GANs of configs/zoo/, StyleGAN2 and R3GAN under one budget of multiply-adds: the same data, metrics and seeds.

    python -m r3gan_jax.cli.compare --comparison=configs/comparisons/zoo.py:fashion_mnist --jobs=2 --out=runs/zoo \
      --results=docs/results/zoo

    variant          data                                  entries                                 budget of a run
    stacked_digits   the quickstart's, 8x8, 1000 modes     those that need no classes, small,      1e12
                                                           and what the survey says of parts
    fashion_mnist    Fashion-MNIST at 32x32                all                                     1e13
    stacked_mnist    StackedMNIST at 32x32, 1000 modes     those that need no classes              1e13
    label_noise      Fashion-MNIST at 16x16, wrong labels  rGAN's two forms, and what they assume  1e13

All but the first need prepared data and a classifier:

    python -m r3gan_jax.cli.prepare_data --idx=DIRECTORY --name=fashion_mnist    # and mnist: configs/stacked_mnist.py
    python -m r3gan_jax.cli.train_classifier --name=fashion_mnist

TFDS_DATA_DIR=DIRECTORY in the environment names another directory of prepared data for all entries.

Every entry has its own recipe's optimiser, loss and regularisation, at `:short`, but for the changes in RECIPES. Common
are the data, the budget, the moving average of G (a half-life of a sixtieth of the run) and, within a group, the
networks' size and the batch.
"""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from ml_collections import ConfigDict

from configs import roadmap, stacked_digits
from configs.comparisons import common
from r3gan_jax.errors import UserError

DCGAN, PERCEPTRONS, AUTOENCODERS, MODERN = "dcgan", "perceptrons", "autoencoders", "modern"
RESNETS, KARRAS = "residual", "progressive"
"""The groups."""

# name: group, control, what it was given
SYSTEMS: dict[str, tuple[str, str, str]] = {
  "gan": (
    PERCEPTRONS,
    "",
    "SGD with momentum, as published, and at 32x32 batches of 100; few multiply-adds, so many images.",
  ),
  "cgan": (PERCEPTRONS, "gan", "The labels."),
  "bigan": (PERCEPTRONS, "gan", "An encoder, and Adam instead of SGD; batch norm; at 32x32 batches of 128."),
  "dcgan": (DCGAN, "", ""),
  "sgan": (DCGAN, "dcgan", "1000 labels; G is not conditional."),
  "infogan": (DCGAN, "dcgan", "Its own networks, at 32x32 with eight to thirteen times as many parameters."),
  "acgan": (DCGAN, "dcgan", "The labels."),
  "wgan_gp": (DCGAN, "dcgan", "Five updates of D for one of G: a fifth as many updates of G for its images."),
  "lapgan": ("pyramid", "dcgan", "A GAN for each level, trained apart; at 32x32 batches of 16."),
  "ebgan": (AUTOENCODERS, "dcgan", "A decoder as a part of D."),
  "began": (AUTOENCODERS, "ebgan", "A decoder as a part of D, and one as G; no batch norm."),
  "sngan": (RESNETS, "", "The labels, where there are any. SAGAN without attention: the control of this group."),
  "sagan": (RESNETS, "sngan", "The labels, where there are any, and attention."),
  "ylg": (RESNETS, "sagan", "The labels, where there are any, and attention, of fewer places."),
  "biggan": (RESNETS, "sagan", "The labels, where there are any; attention, at 32x32; two updates of D for one of G."),
  "rgan": (RESNETS, "sngan", "The labels, by a second head of D, as AC-GAN; twice SNGAN's rate of G."),
  "sngan_d5": (RESNETS, "", "Five updates of D for one of G, as AutoGAN; its control, at five times the rates."),
  "autogan": (RESNETS, "sngan_d5", "A G that was found by search on CIFAR-10; the search is not counted."),
  "progan_fixed": (KARRAS, "", "ProGAN without growth: the control of this group. Logistic loss with R1."),
  "progan": (KARRAS, "progan_fixed", "The group's loss instead of WGAN-GP. All scales are computed from the start."),
  "stylegan": (KARRAS, "progan_fixed", "A mapping network."),
  "msggan": (KARRAS, "progan_fixed", "The group's loss instead of WGAN-GP, and Adam instead of RMSprop."),
  "stylegan2": (MODERN, "r3gan", "A learning rate and a gamma of larger images, not adapted."),
  "r3gan": (MODERN, "", "The home team: the only one with settings that were tuned on such data at length."),
  "r3gan_conditional": (MODERN, "r3gan", "The labels."),
}
CONDITIONAL = ("cgan", "sgan", "acgan", "sngan", "sagan", "ylg", "biggan", "rgan", "r3gan_conditional")
"""Those that get the labels of Fashion-MNIST."""
WITHOUT_CLASSES = (*(name for name in SYSTEMS if name not in CONDITIONAL), "sngan", "sagan", "ylg", "biggan")
"""Those with a form without classes."""

_FIVE_UPDATES = {"discriminator_updates": 5, "generator_batches": 2, "generator_spectral_norm": False}
_LOGISTIC = {"loss": "logistic", "learning_rate": 1e-3}
# entry: recipe, what it changes in config.gan
RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
  "sngan": ("sagan", {"attention_side": 0}),
  "sngan_d5": (
    "sagan",
    {"attention_side": 0, "generator_learning_rate": 1e-3, "discriminator_learning_rate": 1e-3, **_FIVE_UPDATES},
  ),
  "rgan": ("rgan", {"label_noise": 0.0}),
  "progan_fixed": ("progan", {"growing": False, **_LOGISTIC}),
  "progan": ("progan", _LOGISTIC),
  "msggan": ("msggan", {"optimizer": "adam", **_LOGISTIC}),
}

_RESNET_8 = {
  **{"generator_widths": (64, 64), "discriminator_widths": (64, 64, 64)},
  **{"attention_side": 0, "noise_dim": 64},
}
# What the 8x8 forms change in config.gan; about 0.1 to 0.2 million parameters a network.
SMALL: dict[str, dict[str, Any]] = {
  "gan": {"noise_dim": 64, "widths": (256, 256), "units": (64, 64), "mean_pixel": 0.305},
  "bigan": {"width": 256},
  "dcgan": {"noise_dim": 64, "widths": (128, 64)},
  "infogan": {"widths": (64, 32), "dense_width": 256, "q_width": 64},
  "wgan_gp": {"noise_dim": 64, "widths": (128, 64)},
  "lapgan": {"coarsest": 4, "generator_units": (256, 256), "discriminator_units": (128, 128), "width": 32},
  "ebgan": {"noise_dim": 64, "generator_widths": (128, 64), "discriminator_widths": (128, 64), "margin": 5.0},
  "began": {"width": 32, "noise_dim": 32, "diversity": 0.7},
  # At 8x8 there is no resolution that both networks' blocks have, for attention: SAGAN and YLG would be SNGAN.
  "sngan": _RESNET_8,
  "sngan_d5": _RESNET_8,
  "biggan": _RESNET_8,
  "autogan": {"generator_width": 48, "discriminator_width": 64},
  **{name: {"widths": (64, 64)} for name in ("progan_fixed", "progan", "stylegan", "msggan")},
  "stylegan2": {"noise_dim": 64, "widths": (64, 64), "bfloat16_stages": 0},
}
# At 8x8 only. name: the entry that is its control, what it changes in config.gan, and the words for that
ABLATIONS: dict[str, tuple[str, dict[str, Any], str]] = {
  "gan_saturating": ("gan", {"saturating": True}, "G's loss of the paper's equation 1, log(1 - D)."),
  "ebgan_no_pull": ("ebgan", {"pulling_away_weight": 0.0}, "No pulling-away term."),
  "began_03": ("began", {"diversity": 0.3}, "A gamma of 0.3, where BEGAN has 0.7."),
  "began_05": ("began", {"diversity": 0.5}, "A gamma of 0.5, the paper's."),
}


def get_config(variant: str = "fashion_mnist") -> ConfigDict:
  comparisons: dict[str, Callable[[], ConfigDict]] = {
    "stacked_digits": _stacked_digits,
    "fashion_mnist": _fashion_mnist,
    "stacked_mnist": _stacked_mnist,
    "label_noise": _label_noise,
  }
  if variant not in comparisons:
    raise UserError(f"zoo.py has no variant {variant!r}: choose from {', '.join(comparisons)}")
  return comparisons[variant]()


def _fashion_mnist() -> ConfigDict:
  entries = {name: common.entry(_on_fashion_mnist(name), *SYSTEMS[name]) for name in SYSTEMS}
  return _comparison("fashion_mnist", "GANs under one budget, on Fashion-MNIST at 32x32", 1e13, entries, OF_LABELS)


OF_LABELS = ("fid", "precision_recall", "class_accuracy", "intra_fid")
OF_MODES = ("fid", "precision_recall", "modes")


def _label_noise() -> ConfigDict:
  entries = {}
  for name, form in (("rac_gan", "ac"), ("rcgan", "c")):
    entries[f"{name}_0"] = common.entry(_rgan(form, 0.0, 0.0), name, given="Clean labels.")
    for percent in (30, 50, 70):
      naive = f"{name}_naive_{percent}"
      for knowledge, assumed in (("naive", 0), ("less", percent - 20), ("known", percent)):
        entries[f"{name}_{knowledge}_{percent}"] = common.entry(
          _rgan(form, percent / 100, assumed / 100),
          name,
          control="" if knowledge == "naive" else naive,
          given=f"{percent} % of the labels are random, and it assumes {assumed} %.",
        )
  return _comparison("label_noise", "Wrong labels, on Fashion-MNIST at 16x16", 1e13, entries, OF_LABELS)


def _rgan(form: str, noise: float, assumed: float) -> ConfigDict:
  config = _on_fashion_mnist("rgan")
  config.data.update({"resolution": 16, "fit": "crop_resize", "label_noise": noise})
  config.gan.update({"form": form, "label_noise": assumed, "generator_widths": (64, 64, 64)})
  return config


def _stacked_mnist() -> ConfigDict:
  entries = {}
  for name in WITHOUT_CLASSES:
    config = _on_fashion_mnist(name)
    config.data.update({"source": "stacked_mnist", "name": "mnist", "channels": 3, "x_flip": False, "num_classes": 0})
    config.run.grid_channels = True
    if "mean_pixel" in config.gan:
      config.gan.mean_pixel = 0.1  # MNIST's 0.1307, padded
    entries[name] = common.entry(config, *_without_classes(name, WITHOUT_CLASSES))
  comparison = _comparison("stacked_mnist", "GANs under one budget, on StackedMNIST at 32x32", 1e13, entries, OF_MODES)
  comparison.samples = 26_000
  return comparison


def _stacked_digits() -> ConfigDict:
  names = [name for name in WITHOUT_CLASSES if name not in ("sagan", "ylg")]  # see SMALL
  entries = {name: common.entry(_on_stacked_digits(name), *_without_classes(name, names)) for name in names}
  for name, (control, changes, given) in ABLATIONS.items():
    config = _on_stacked_digits(control)
    config.gan.update(changes)
    config.name = f"compare_{name}"
    entries[name] = common.entry(config, SYSTEMS[control][0], control, given)
  comparison = _comparison("stacked_digits", "GANs under one budget, on stacked digits at 8x8", 1e12, entries, OF_MODES)
  comparison.samples = 26_000
  return comparison


def _comparison(
  name: str, title: str, multiply_adds: float, entries: dict[str, dict[str, object]], metrics: tuple[str, ...]
) -> ConfigDict:
  comparison = common.get_config(name, title, entries)
  comparison.multiply_adds = multiply_adds
  comparison.metrics = metrics
  return comparison


def _without_classes(name: str, names: Sequence[str]) -> tuple[str, str, str]:
  """Returns what `SYSTEMS` says of the form without classes, among others of these names."""
  group, control, given = SYSTEMS[name]
  return group, control if control in ("", *names) else "sngan", given


def _on_fashion_mnist(name: str) -> ConfigDict:
  """Returns an entry's configuration, at 32x32."""
  if name in ("stylegan2", "r3gan", "r3gan_conditional"):
    config = roadmap.get_config("a_fashion32" if name == "stylegan2" else "e2_fashion32")
  else:
    recipe, changes = RECIPES.get(name, (name, {}))
    config = importlib.import_module(f"configs.zoo.{recipe}").get_config("short")
    config.gan.update(changes)
  config.name = f"compare_{name}"
  of_labels = {"num_classes": 10 if name in CONDITIONAL else 0, "label_noise": 0.0}
  config.data.update({"name": "fashion_mnist", "fit": "pad", "resolution": 32, "x_flip": True, **of_labels})
  if SYSTEMS[name][0] in (DCGAN, AUTOENCODERS):
    config.batch_size = 32
  if "mean_pixel" in config.gan:
    config.gan.mean_pixel = 0.219
  config.gan.ema_half_life = config.run.total_images / 60
  config.run.metrics = ("fid",)
  config.run.metric_samples = 2_000
  config.run.feature_network = "digits"
  config.run.best_metric = ""
  return config


def _on_stacked_digits(name: str) -> ConfigDict:
  """Returns an entry's configuration, at 8x8."""
  recipe = stacked_digits.get_config()
  if name == "r3gan":
    config = recipe
  else:
    config = _on_fashion_mnist(name)
    config.data.update(recipe.data)
    config.gan.update(SMALL[name])
  config.batch_size = 64
  config.name = f"compare_{name}"
  config.gan.ema_half_life = config.run.total_images / 60
  config.run.update({setting: recipe.run[setting] for setting in ("grid", "grid_channels", "grid_scale")})
  config.run.metrics = ("fid", "modes")
  config.run.metric_samples = 1_000
  config.run.feature_network = "pixels"
  config.run.best_metric = ""
  return config
