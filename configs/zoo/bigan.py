"""BiGAN (Donahue et al. 2017) on Fashion-MNIST at its own 28x28: 1.95M / 1.90M / 1.90M parameters in G / E / D.

    python main.py --config=configs/zoo/bigan.py

The report (python -m r3gan_jax.cli.report) shows reals beside their reconstructions G(E(x)), and beside the real image
of the nearest code.
About 600 images/s on one core: eleven minutes. `:resolution32` is at 32x32, like the rest of the zoo.
`:smoke` runs a tiny network on generated images.
"""

from ml_collections import ConfigDict

from configs.common import select
from configs.zoo import common


def get_config(variant: str = "") -> ConfigDict:
  config = common.get_config("bigan")
  config.data.resolution = 28
  config.batch_size = 128
  return select(config, variant, short=common.short(300_000, 128), resolution32=_resolution32)


def _resolution32(config: ConfigDict) -> None:
  config.data.resolution = 32
