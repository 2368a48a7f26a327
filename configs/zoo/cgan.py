"""CGAN (Mirza and Osindero 2014) on MNIST at its own 28x28: perceptrons of 2.41M / 1.22M parameters in G / D.

    python main.py --config=configs/zoo/cgan.py
    python -m r3gan_jax.cli.sample --workdir=runs/zoo_cgan --seeds=0-9 --class=0-9

The first command needs the data of configs/zoo/gan.py, the second draws a grid with a row per class. Those of training
have one, too. `:smoke` runs a tiny network on generated images.
"""

from ml_collections import ConfigDict

from configs.common import select
from configs.zoo import common


def get_config(variant: str = "") -> ConfigDict:
  config = common.get_config("cgan")
  config.data.name = "mnist"
  config.data.resolution = 28
  config.data.num_classes = 10
  config.data.x_flip = False
  config.batch_size = 100
  return select(config, variant, short=common.short(600_000, 100))
