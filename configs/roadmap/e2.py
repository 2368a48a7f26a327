"""Configuration E2: E1 with the bottleneck inverted, that is R3GAN.

    python main.py --config=configs/roadmap/e2.py

The data are those of configs/ffhq256.py. Published ([P] Table 2): FID 7.045 at 5 million images.
`:fashion32`: Fashion-MNIST at 32x32, for a CPU (see configs/fashion_mnist.py for the data).
`:smoke` runs a tiny network on generated images.
"""

from ml_collections import ConfigDict

from configs.roadmap import common


def get_config(variant: str = "") -> ConfigDict:
  config = common.get_config("e2")

  config.gan.loss = "relativistic"
  config.gan.penalties = ("r1", "r2")

  # 23,057,952 / 23,009,568 parameters in G / D
  config.gan.widths = (768, 768, 768, 768, 384, 192, 96)
  config.gan.cardinalities = (96, 96, 96, 96, 48, 24, 12)
  config.gan.blocks = (2, 2, 2, 2, 2, 2, 2)
  config.gan.expansion = 2.0
  return common.select(config, variant)
