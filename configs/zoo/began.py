"""BEGAN (Berthelot et al. 2017) on Fashion-MNIST: 0.12M / 0.58M parameters in G / D.

    python main.py --config=configs/zoo/began.py

The report (python -m r3gan_jax.cli.report) shows reals beside their reconstructions by D, and beside the real image of
the nearest code; its series balance/convergence is the paper's measure. One core trains 40 images/s, so 400,000 take
three hours. `:cifar10` has the same networks for colour images, and the paper's settings. `:smoke` runs a tiny network
on generated images.
"""

from ml_collections import ConfigDict

from configs.common import select
from configs.zoo import common


def get_config(variant: str = "") -> ConfigDict:
  config = common.get_config("began")
  config.gan.width = 32
  config.gan.noise_dim = 32
  config.gan.hold_images = 200_000
  config.gan.decay_images = 200_000
  # Dark images are easy to reconstruct: with the paper's 0.5 and 0.001 all samples are black after 15,000 images.
  config.gan.diversity = 0.9
  config.gan.balance_rate = 0.05
  config.batch_size = 16
  return select(config, variant, short=_short, cifar10=_cifar10)


def _short(config: ConfigDict) -> None:
  common.short(30_000, 16)(config)
  config.gan.learning_rate = (4e-4, 1e-4)
  config.gan.hold_images = 20_000
  config.gan.decay_images = 10_000


def _cifar10(config: ConfigDict) -> None:
  config.data.name = "cifar10"
  config.data.fit = "crop_resize"
  config.data.channels = 3
  config.gan.diversity = 0.5
  config.gan.balance_rate = 0.001
