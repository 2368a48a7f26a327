"""GAN (Goodfellow et al. 2014) on MNIST at its own 28x28: perceptrons of 2.50M / 1.23M parameters in G / D.

    python -m r3gan_jax.cli.prepare_data --idx=DIRECTORY --name=mnist
    python main.py --config=configs/zoo/gan.py

configs/stacked_mnist.py says where DIRECTORY's four files come from. `:smoke` runs a tiny network on generated images.
"""

from ml_collections import ConfigDict

from configs.common import select
from configs.zoo import common


def get_config(variant: str = "") -> ConfigDict:
  config = common.get_config("gan")
  config.data.name = "mnist"
  config.data.resolution = 28
  config.data.x_flip = False
  config.batch_size = 100
  return select(config, variant, short=common.short(600_000, 100))
