"""Configuration E1: D2 with grouped convolution, of 16 channels a group, in bottlenecks twice as wide.

    python main.py --config=configs/roadmap/e1.py

The data are those of configs/ffhq256.py. Published ([P] Table 2): FID 7.507 at 5 million images.
`:fashion32`: Fashion-MNIST at 32x32, for a CPU (see configs/fashion_mnist.py for the data).
`:smoke` runs a tiny network on generated images.
"""

from ml_collections import ConfigDict

from configs.roadmap import common


def get_config(variant: str = "") -> ConfigDict:
  config = common.get_config("e1")

  config.gan.loss = "relativistic"
  config.gan.penalties = ("r1", "r2")

  # 23,187,648 / 23,090,880 parameters in G / D
  config.gan.widths = (1536, 1536, 1536, 1536, 768, 384, 192)
  config.gan.cardinalities = (48, 48, 48, 48, 24, 12, 6)
  config.gan.blocks = (2, 2, 2, 2, 2, 2, 2)
  config.gan.expansion = 0.5
  return common.select(config, variant)
