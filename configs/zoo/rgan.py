"""rGAN (Kaneko et al. 2019) on Fashion-MNIST, half of its labels redrawn: 0.37M / 0.26M parameters in G / D.

    python main.py --config=configs/zoo/rgan.py

is rAC-GAN, and `:projection` rcGAN. `:naive` and `:naive_projection` take the labels for clean, as AC-GAN and the
projection GAN do; `:clean` is rAC-GAN on clean labels, the same as AC-GAN. The share of labels that are redrawn is
config.data.label_noise, and what G's side knows of it config.gan.label_noise: change both. The report
(python -m r3gan_jax.cli.report) shows samples of each class beside what noise makes of it. `:asymmetric` is CIFAR-10,
with labels that change between classes that are alike. `:smoke` runs a tiny network on generated images.
"""

from ml_collections import ConfigDict

from configs.common import select
from configs.zoo import common


def get_config(variant: str = "") -> ConfigDict:
  config = common.get_config("rgan")
  common.small_resnet(config)
  config.gan.attention_side = 0
  config.gan.decay_images = config.run.total_images
  _noise(config, 0.5)
  variants = {
    "projection": _projection,
    "naive": _naive,
    "naive_projection": _naive_projection,
    "clean": lambda config: _noise(config, 0.0),
    "asymmetric": _asymmetric,
  }
  return select(config, variant, short=_short, **variants)


def _noise(config: ConfigDict, noise: float) -> None:
  config.data.label_noise = noise
  config.gan.label_noise = noise


def _naive(config: ConfigDict) -> None:
  config.gan.label_noise = 0.0


def _projection(config: ConfigDict) -> None:
  config.gan.form = "c"


def _naive_projection(config: ConfigDict) -> None:
  _naive(config)
  _projection(config)


def _short(config: ConfigDict) -> None:
  """With five updates of D for one of G, and the paper's rates and weight, so short a run learns no classes."""
  common.short(20_000, 16)(config)
  config.gan.discriminator_updates = 1
  config.gan.generator_batches = 1
  config.gan.generator_spectral_norm = True
  config.gan.generator_learning_rate = 1e-3
  config.gan.discriminator_learning_rate = 2e-3
  config.gan.class_weight = 1.0


def _asymmetric(config: ConfigDict) -> None:
  common.cifar10(config)
  _noise(config, 0.7)
  # truck to car, bird to plane, deer to horse, cat and dog to each other
  pairs = ((9, 1), (2, 0), (4, 7), (3, 5), (5, 3))
  config.data.label_noise_pairs = pairs
  config.gan.label_noise_pairs = pairs
