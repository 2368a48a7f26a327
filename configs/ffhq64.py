"""FFHQ at 64x64, unconditional.

    python -m r3gan_jax.cli.prepare_data --images=ffhq/images1024x1024 --name=ffhq64 --resolution=64
    python main.py --config=configs/ffhq64.py

The images are from https://github.com/NVlabs/ffhq-dataset. Or directly from the zip of EDM's data tool:

    python main.py --config=configs/ffhq64.py --config.data.source=folder --config.run.data_path=ffhq-64x64.zip

Published ([P]): FID 1.95, recall 0.53, on 8 GPUs.
`:smoke` runs a tiny network on generated images.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "") -> ConfigDict:
  config = common.get_config()
  config.name = "ffhq64"

  config.data.name = "ffhq64"
  config.data.resolution = 64
  config.data.x_flip = True

  # 22.43M / 22.38M parameters in G / D
  config.gan.widths = (768, 768, 768, 768, 384)
  config.gan.cardinalities = (96, 96, 96, 96, 48)
  config.gan.blocks = (2, 2, 2, 2, 2)
  config.gan.bfloat16_stages = 4

  config.batch_size = 256
  config.gan.burn_in_images = 20_000_000
  config.gan.learning_rate = (2e-4, 5e-5)
  config.gan.gamma = (2.0, 0.2)
  config.gan.ema_half_life = (0.0, 500_000.0)
  config.gan.augment_p = (0.0, 0.3)

  config.run.total_images = 100_000_000
  config.run.tpu_topology = "v5e:2x2"
  return common.select(config, variant)
