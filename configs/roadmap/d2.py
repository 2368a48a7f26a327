"""Configuration D2: D1 without output skips.

    python main.py --config=configs/roadmap/d2.py

The data are those of configs/ffhq256.py. Published ([P] Table 2): FID 9.950 at 5 million images.
`:fashion32`: Fashion-MNIST at 32x32, for a CPU (see configs/fashion_mnist.py for the data).
`:smoke` runs a tiny network on generated images.
"""

from ml_collections import ConfigDict

from configs.roadmap import common


def get_config(variant: str = "") -> ConfigDict:
  config = common.get_config("d2")

  config.gan.loss = "relativistic"
  config.gan.penalties = ("r1", "r2")

  # 23,378,304 / 23,281,536 parameters in G / D
  config.gan.widths = (1536, 1536, 1536, 1536, 768, 384, 192)
  config.gan.cardinalities = (1, 1, 1, 1, 1, 1, 1)
  config.gan.blocks = (2, 2, 2, 2, 2, 2, 2)
  config.gan.expansion = 0.25
  return common.select(config, variant)
