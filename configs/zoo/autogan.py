"""AutoGAN's G, as found by search (Gong et al. 2019), on Fashion-MNIST: 0.38M / 0.26M parameters in G / D.

    python main.py --config=configs/zoo/autogan.py

`:cifar10` has the same networks for colour images, and `:paper` the paper's for CIFAR-10, 4.41M / 1.05M. `:smoke` runs
a tiny network on generated images.
"""

from ml_collections import ConfigDict

from configs.common import select
from configs.zoo import common


def get_config(variant: str = "") -> ConfigDict:
  config = common.get_config("autogan")
  config.gan.generator_width = 64
  config.gan.discriminator_width = 64
  return select(config, variant, short=common.short(25_000, 16), cifar10=common.cifar10, paper=_paper)


def _paper(config: ConfigDict) -> None:
  common.cifar10(config)
  config.gan.generator_width = 256
  config.gan.discriminator_width = 128
  config.gan.ema_half_life = 220_000.0
