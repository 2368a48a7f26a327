"""StyleGAN (Karras et al. 2019) on Fashion-MNIST, at 32x32 from the start: 0.31M / 0.28M parameters.

    python main.py --config=configs/zoo/stylegan.py

The report (python -m r3gan_jax.cli.report) shows samples with the coarse styles of others. `:paper` has the paper's
networks for 1024x1024 colour images, which grow: 26.2M / 23.1M parameters; choose the data with --config.data.name.
`:smoke` runs tiny networks on generated images.
"""

from ml_collections import ConfigDict

from configs.common import select
from configs.zoo import common


def get_config(variant: str = "") -> ConfigDict:
  config = common.get_config("stylegan")
  config.gan.widths = (64, 64, 64, 32)
  config.gan.noise_dim = 64
  config.gan.growing = False
  config.batch_size = 16
  return select(config, variant, short=common.short(40_000, 16), paper=_paper)


def _paper(config: ConfigDict) -> None:
  config.gan.widths = (512, 512, 512, 512, 256, 128, 64, 32, 16)
  config.gan.noise_dim = 512
  config.gan.growing = True
  config.data.name = ""
  config.data.fit = "crop_resize"
  config.data.resolution = 1024
  config.data.channels = 3
  config.batch_size = 32
  config.run.total_images = 25_000_000
  config.run.log_every_images = 50_000
  config.run.snapshot_every_images = 500_000
