"""EBGAN (Zhao et al. 2017) on Fashion-MNIST: DCGAN's G, and an autoencoder as D: 1.07M / 1.31M parameters.

    python main.py --config=configs/zoo/ebgan.py

The report (python -m r3gan_jax.cli.report) shows reals beside their reconstructions by D, and beside the real image of
the nearest code. `:paper` is for CelebA's size, 64x64 in colour, with the paper's margin; choose the data with
--config.data.name. `:smoke` runs a tiny network on generated images.
"""

from ml_collections import ConfigDict

from configs.common import select
from configs.zoo import common


def get_config(variant: str = "") -> ConfigDict:
  config = common.get_config("ebgan")
  config.gan.generator_widths = (256, 128, 64)
  config.gan.margin = 10.0  # the paper's for MNIST
  return select(config, variant, short=common.short(40_000, 32), paper=_paper)


def _paper(config: ConfigDict) -> None:
  config.gan.generator_widths = (1024, 512, 256, 128)
  config.gan.margin = 20.0
  config.gan.ema_half_life = 0.0
  config.data.name = ""
  config.data.fit = "crop_resize"
  config.data.resolution = 64
  config.data.channels = 3
