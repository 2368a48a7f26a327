"""InfoGAN (Chen et al. 2016) on MNIST at its own 28x28: 6.65M / 6.69M parameters in G / D with Q.

    python -m r3gan_jax.cli.prepare_data --idx=DIRECTORY --name=mnist
    python main.py --config=configs/zoo/infogan.py

DIRECTORY: see configs/stacked_mnist.py. The report (python -m r3gan_jax.cli.report) shows traversals of each code.
`:smoke` runs a tiny network on generated images.
"""

from ml_collections import ConfigDict

from configs.common import select
from configs.zoo import common


def get_config(variant: str = "") -> ConfigDict:
  config = common.get_config("infogan")
  config.data.name = "mnist"
  config.data.resolution = 28
  config.data.x_flip = False
  config.batch_size = 128
  config.run.total_images = 640_000  # 5000 iterations
  return select(config, variant, short=common.short(60_000, 32))
