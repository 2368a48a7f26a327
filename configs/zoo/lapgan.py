"""LAPGAN (Denton et al. 2015) on Fashion-MNIST: a GAN each for 8x8, 16x16 and 32x32 pixels: 2.06M / 0.62M parameters.

    python main.py --config=configs/zoo/lapgan.py

One core trains 20 images/s, most of it for the 7x7 convolutions of G at 32x32, so 100,000 take an hour and a half. The
report (python -m r3gan_jax.cli.report) shows samples at all three levels, and reals beside what the upper levels draw
from their own 8x8 pixels.

`:short` has half as many channels in the convolutions, which are then twice as fast: the level of 8x8 needs the images.
`:cifar10` has the same networks for colour images, and `:paper` the paper's optimiser on them. `:smoke` runs tiny
networks on generated images.
"""

from ml_collections import ConfigDict

from configs.common import select
from configs.zoo import common


def get_config(variant: str = "") -> ConfigDict:
  config = common.get_config("lapgan")
  config.batch_size = 16
  config.run.total_images = 100_000
  config.run.snapshot_every_images = 25_000
  return select(config, variant, short=_short, cifar10=_cifar10, paper=_paper)


def _short(config: ConfigDict) -> None:
  common.short(40_000, 16)(config)
  config.gan.width = 32
  config.gan.learning_rate = 5e-4


def _cifar10(config: ConfigDict) -> None:
  config.data.name = "cifar10"
  config.data.fit = "crop_resize"
  config.data.channels = 3


def _paper(config: ConfigDict) -> None:
  _cifar10(config)
  config.gan.optimizer = "sgd"
  config.gan.learning_rate = 0.02
  config.gan.ema_half_life = 0.0
  config.batch_size = 64  # and as many fakes
