"""Shared by the recipes of the zoo: Fashion-MNIST at 32x32, grey, without classes, as in configs/fashion_mnist.py.

    python -m r3gan_jax.cli.prepare_data --idx=DIRECTORY --name=fashion_mnist

For a fair comparison with R3GAN these recipes keep a moving average of G, which most of these GANs predate. For samples
of G itself, as published: --config.gan.ema_half_life=0.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(algorithm: str) -> ConfigDict:
  config = common.get_config(algorithm)
  config.name = f"zoo_{algorithm}"

  config.data.name = "fashion_mnist"
  config.data.fit = "pad"  # 28 -> 32
  config.data.resolution = 32
  config.data.channels = 1
  config.data.x_flip = True

  config.batch_size = 64
  config.gan.ema_half_life = 10_000.0

  config.run.total_images = 400_000
  config.run.log_every_images = 5_000
  config.run.snapshot_every_images = 50_000
  config.run.grid = (10, 10)
  config.run.grid_scale = 2
  return config
