"""MSG-GAN (Karnewar and Wang 2020) on Fashion-MNIST: images of 4x4 to 32x32 at once: 0.28M / 0.28M parameters.

    python main.py --config=configs/zoo/msggan.py

The report (python -m r3gan_jax.cli.report) shows samples at all resolutions, side by side. `:cifar10` has the same
networks for colour images. `:paper` has the networks for 1024x1024 colour images; choose the data with
--config.data.name. `:smoke` runs tiny networks on generated images.
"""

from ml_collections import ConfigDict

from configs.common import select
from configs.zoo import common


def get_config(variant: str = "") -> ConfigDict:
  config = common.get_config("msggan")
  config.gan.widths = (64, 64, 64, 32)
  config.gan.noise_dim = 64
  config.batch_size = 16
  return select(config, variant, short=common.short(40_000, 16), cifar10=_cifar10, paper=_paper)


def _cifar10(config: ConfigDict) -> None:
  config.data.name = "cifar10"
  config.data.fit = "crop_resize"
  config.data.channels = 3


def _paper(config: ConfigDict) -> None:
  config.gan.widths = (512, 512, 512, 512, 256, 128, 64, 32, 16)
  config.gan.noise_dim = 512
  config.gan.ema_half_life = 11_000.0
  config.data.name = ""
  config.data.fit = "crop_resize"
  config.data.resolution = 1024
  config.data.channels = 3
