"""WGAN-GP (Gulrajani et al. 2017) on Fashion-MNIST: DCGAN's G and D, without batch norm in D: 1.19M / 0.66M parameters.

    python main.py --config=configs/zoo/wgan_gp.py

About 60 images/s on one of two busy cores: two hours. `:smoke` runs a tiny network on generated images.
"""

from ml_collections import ConfigDict

from configs.common import select
from configs.zoo import common


def get_config(variant: str = "") -> ConfigDict:
  config = common.get_config("wgan_gp")
  config.gan.widths = (256, 128, 64)
  # With five updates of D per update of G a CPU does few iterations: small batches, and a high learning rate.
  config.batch_size = 16
  config.gan.learning_rate = (5e-4, 5e-4)
  config.gan.ema_half_life = 4_000.0
  return select(config, variant, short=common.short(40_000, 16))
