"""BEGAN (Berthelot et al. 2017) on Fashion-MNIST: 0.12M / 0.58M parameters in G / D.

    python main.py --config=configs/zoo/began.py

The report (python -m r3gan_jax.cli.report) shows reals beside their reconstructions by D, and beside the real image of
the nearest code; its series balance/convergence is the paper's measure. `:cifar10` has the same networks for colour
images. `:smoke` runs a tiny network on generated images.
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
  config.batch_size = 16
  return select(config, variant, short=common.short(30_000, 16), cifar10=_cifar10)


def _cifar10(config: ConfigDict) -> None:
  config.data.name = "cifar10"
  config.data.fit = "crop_resize"
  config.data.channels = 3
