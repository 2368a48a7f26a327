"""SAGAN (Zhang et al. 2019) on Fashion-MNIST's 10 classes: 0.38M / 0.27M parameters in G / D, attention at 16x16.

    python main.py --config=configs/zoo/sagan.py

The report (python -m r3gan_jax.cli.report) shows what places of samples attend to. `:plain` is the same without
attention, `:sngan` also has SNGAN's training (Miyato et al. 2018), and `--config.data.num_classes=0` no classes.
`:cifar10` has the same networks for colour images, and `:paper` the paper's for 128x128; choose the data with
--config.data.name. `:smoke` runs a tiny network on generated images.
"""

from ml_collections import ConfigDict

from configs.common import select
from configs.zoo import common


def get_config(variant: str = "") -> ConfigDict:
  config = common.get_config("sagan")
  common.small_resnet(config)
  variants = {"plain": _plain, "sngan": _sngan, "cifar10": common.cifar10, "paper": _paper}
  return select(config, variant, short=common.short_resnet(20_000, 16), **variants)


def _plain(config: ConfigDict) -> None:
  config.gan.attention_side = 0


def _sngan(config: ConfigDict) -> None:
  _plain(config)
  config.gan.generator_spectral_norm = False
  config.gan.discriminator_updates = 5
  config.gan.generator_batches = 2
  config.gan.generator_learning_rate = 2e-4
  config.gan.discriminator_learning_rate = 2e-4


def _paper(config: ConfigDict) -> None:
  config.gan.generator_widths = (1024, 1024, 512, 256, 128, 64)
  config.gan.discriminator_widths = (64, 128, 256, 512, 1024, 1024)
  config.gan.whole_blocks = 1
  config.gan.attention_side = 32
  config.gan.ema_half_life = 0.0
  config.data.name = ""
  config.data.fit = "crop_resize"
  config.data.resolution = 128
  config.data.channels = 3
  config.data.num_classes = 1000
  config.batch_size = 256
