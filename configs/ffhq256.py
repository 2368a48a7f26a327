"""FFHQ at 256x256, unconditional.

    python -m r3gan_jax.cli.prepare_data --images=ffhq/images1024x1024 --name=ffhq256 --resolution=256
    python main.py --config=configs/ffhq256.py

The images are from https://github.com/NVlabs/ffhq-dataset. Or directly from the zip of StyleGAN's data tool:

    python main.py --config=configs/ffhq256.py --config.data.source=folder --config.run.data_path=ffhq256.zip

Published ([P]): FID 2.75, recall 0.49, on 8 x A6000, about 3 weeks.
`:smoke` runs a tiny network on generated images.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "") -> ConfigDict:
  config = common.get_config()
  config.name = "ffhq256"

  config.data.name = "ffhq256"
  config.data.resolution = 256
  config.data.x_flip = True

  # 23.06M / 23.01M parameters in G / D
  config.gan.widths = (768, 768, 768, 768, 384, 192, 96)
  config.gan.cardinalities = (96, 96, 96, 96, 48, 24, 12)
  config.gan.blocks = (2, 2, 2, 2, 2, 2, 2)
  config.gan.bfloat16_stages = 4

  config.batch_size = 256
  config.gan.burn_in_images = 20_000_000
  config.gan.learning_rate = (2e-4, 5e-5)
  config.gan.gamma = (150.0, 15.0)
  config.gan.ema_half_life = (0.0, 500_000.0)
  config.gan.augment_p = (0.0, 0.3)

  config.run.total_images = 200_000_000
  config.run.tpu_topology = "v5e:4x8"
  config.run.grid = (8, 8)
  return common.select(config, variant)
