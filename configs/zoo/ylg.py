"""YLG (Daras et al. 2020) on Fashion-MNIST's 10 classes: SAGAN's 0.38M / 0.27M parameters in G / D, sparse attention.

    python main.py --config=configs/zoo/ylg.py

The report (python -m r3gan_jax.cli.report) shows what places of samples attend to. `:tiled` has the masks of the
released code, and `:cifar10` the same networks for colour images. `:smoke` runs a tiny network on generated images.
"""

from ml_collections import ConfigDict

from configs.common import select
from configs.zoo import common


def get_config(variant: str = "") -> ConfigDict:
  config = common.get_config("ylg")
  common.small_resnet(config)
  return select(config, variant, short=common.short_resnet(20_000, 16), tiled=_tiled, cifar10=common.cifar10)


def _tiled(config: ConfigDict) -> None:
  config.gan.tiled = True
