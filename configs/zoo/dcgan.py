"""DCGAN (Radford et al. 2016) with 4x4 kernels on Fashion-MNIST: 1.07M / 0.66M parameters in G / D.

    python main.py --config=configs/zoo/dcgan.py

About 65 images/s on one core: 100 minutes. `:paper` has the paper's networks for 64x64 colour images, with 5x5 kernels
and 18.9M / 17.2M parameters, and its batch of 128; choose the data with --config.data.name.
`:smoke` runs a tiny network on generated images.
"""

from ml_collections import ConfigDict

from configs.common import select
from configs.zoo import common


def get_config(variant: str = "") -> ConfigDict:
  config = common.get_config("dcgan")
  config.gan.widths = (256, 128, 64)
  config.gan.kernel_size = 4
  return select(config, variant, short=common.short(40_000, 16), paper=_paper)


def _paper(config: ConfigDict) -> None:
  config.gan.widths = (1024, 512, 256, 128)
  config.gan.kernel_size = 5
  config.gan.ema_half_life = 0.0
  config.data.name = ""
  config.data.fit = "crop_resize"
  config.data.resolution = 64
  config.data.channels = 3
  config.batch_size = 128
