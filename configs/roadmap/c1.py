"""Configuration C1: B with the relativistic loss.

    python main.py --config=configs/roadmap/c1.py

The data are those of configs/ffhq256.py. Published ([P] Table 2): FID 11.77 at 5 million images.
`:fashion32`: Fashion-MNIST at 32x32, for a CPU (see configs/fashion_mnist.py for the data).
`:smoke` runs a tiny network on generated images.
"""

from ml_collections import ConfigDict

from configs.roadmap import common


def get_config(variant: str = "") -> ConfigDict:
  config = common.get_config("c1")

  config.gan.loss = "relativistic"
  config.gan.penalties = ("r1",)

  # 18,890,453 / 23,996,481 parameters in G / D
  config.gan.network = "stylegan2_skeleton"
  config.gan.widths = (512, 512, 512, 512, 256, 128, 64)
  config.gan.cardinalities = (1, 1, 1, 1, 1, 1, 1)
  config.gan.blocks = (1, 1, 1, 1, 1, 1, 1)
  config.gan.expansion = 1.0
  return common.select(config, variant)
