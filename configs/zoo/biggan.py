"""BigGAN (Brock et al. 2019) on Fashion-MNIST's 10 classes: 0.30M / 0.27M parameters in G / D, attention at 16x16.

    python main.py --config=configs/zoo/biggan.py

`--config.data.num_classes=0` trains without classes, and `--config.gan.orthogonal_weight=0` without the orthogonal
term. `:cifar10` has the same networks for colour images, and `:paper` the paper's for ImageNet at 128x128, 70.4M /
88.0M; choose the data with --config.data.name. `:smoke` runs a tiny network on generated images.

    python -m r3gan_jax.cli.sample --workdir=runs/zoo_biggan --truncation=0.683      # |z| at most 1
"""

from ml_collections import ConfigDict

from configs.common import select
from configs.zoo import common


def get_config(variant: str = "") -> ConfigDict:
  config = common.get_config("biggan")
  common.small_resnet(config)
  config.gan.noise_dim = 80  # four times 20
  config.gan.embed_dim = 32
  # The paper's are for batches of 2048.
  config.gan.generator_learning_rate = 2e-4
  config.gan.discriminator_learning_rate = 2e-4
  return select(config, variant, short=common.short_resnet(20_000, 16), cifar10=_cifar10, paper=_paper)


def _cifar10(config: ConfigDict) -> None:
  common.cifar10(config)
  config.gan.discriminator_updates = 4
  config.batch_size = 50


def _paper(config: ConfigDict) -> None:
  config.gan.generator_widths = (1536, 1536, 768, 384, 192, 96)
  config.gan.discriminator_widths = (96, 192, 384, 768, 1536, 1536)
  config.gan.whole_blocks = 1
  config.gan.attention_side = 64
  config.gan.noise_dim = 120
  config.gan.embed_dim = 128
  config.gan.generator_learning_rate = 5e-5
  config.gan.ema_half_life = 28_000_000.0
  config.data.name = ""
  config.data.fit = "crop_resize"
  config.data.resolution = 128
  config.data.channels = 3
  config.data.num_classes = 1000
  config.batch_size = 2048
