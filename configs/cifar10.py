"""CIFAR-10 at 32x32, class-conditional; `:unconditional` without labels.

    pip install -e '.[tfds]'
    python -m r3gan_jax.cli.prepare_data --tfds=cifar10
    python main.py --config=configs/cifar10.py

Or directly from the zip of EDM's data tool, 32x32 with labels:

    python main.py --config=configs/cifar10.py --config.data.source=folder --config.run.data_path=cifar10-32x32.zip

Published ([P]): FID 1.96, recall 0.57 (conditional), on 8 x L40, about 4 days.
`:smoke` runs a tiny network on generated images.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "") -> ConfigDict:
  config = common.get_config()
  config.name = "cifar10"

  config.data.name = "cifar10"
  config.data.resolution = 32
  config.data.num_classes = 10
  config.data.x_flip = True

  # 20.78M / 21.28M parameters in G / D (20.73M / 20.68M unconditional)
  config.gan.widths = (768, 768, 768, 768)
  config.gan.cardinalities = (96, 96, 96, 96)
  config.gan.blocks = (2, 2, 2, 2)
  config.gan.bfloat16_stages = 3

  config.batch_size = 512
  config.gan.burn_in_images = 20_000_000
  config.gan.learning_rate = (2e-4, 5e-5)
  config.gan.gamma = (0.05, 0.005)
  config.gan.ema_half_life = (0.0, 5_000_000.0)
  config.gan.augment_p = (0.0, 0.55)

  config.run.total_images = 250_000_000
  config.run.tpu_topology = "v5e:2x2"
  return common.select(config, variant, unconditional=_unconditional)


def _unconditional(config: ConfigDict) -> None:
  config.data.num_classes = 0
