"""AC-GAN (Odena et al. 2017) with DCGAN's networks on Fashion-MNIST's 10 classes: 1.12M / 0.70M parameters in G / D.

    python main.py --config=configs/zoo/acgan.py

Each row of a grid of samples is a class, and python -m r3gan_jax.cli.sample --class=3 draws one. `:paper` has the
paper's own networks for CIFAR-10, 2.99M / 1.66M, and `:cifar10` DCGAN's on the same data. `:smoke` runs a tiny network
on generated images.
"""

from ml_collections import ConfigDict

from configs.common import select
from configs.zoo import common


def get_config(variant: str = "") -> ConfigDict:
  config = common.get_config("acgan")
  config.data.num_classes = 10
  config.gan.networks = "dcgan"
  config.gan.generator_widths = (256, 128, 64)
  config.gan.discriminator_widths = (256, 128, 64)
  config.gan.dropout = 0.0
  return select(config, variant, short=common.short(40_000, 16), paper=_paper, cifar10=_cifar10)


def _cifar10(config: ConfigDict) -> None:
  config.data.name = "cifar10"
  config.data.fit = "crop_resize"
  config.data.channels = 3
  config.data.x_flip = False
  config.batch_size = 100


def _paper(config: ConfigDict) -> None:
  _cifar10(config)
  config.gan.networks = "own"
  config.gan.generator_widths = (384, 192, 96)
  config.gan.discriminator_widths = (512, 256, 128, 64, 32, 16)
  config.gan.dropout = 0.5
  config.gan.ema_half_life = 0.0
