"""Configuration B: StyleGAN2 stripped to its skeleton, with the non-saturating loss and R1.

    python main.py --config=configs/roadmap/b.py

The data are those of configs/ffhq256.py. Published ([P] Table 2): FID 12.46 at 5 million images.
`:fashion32`: Fashion-MNIST at 32x32, for a CPU (see configs/fashion_mnist.py for the data).
`:smoke` runs a tiny network on generated images.
"""

from ml_collections import ConfigDict

from configs.roadmap import common


def get_config(variant: str = "") -> ConfigDict:
  config = common.get_config("b")

  config.gan.loss = "non_saturating"
  config.gan.penalties = ("r1",)

  # 18,890,453 / 23,996,481 parameters in G / D
  config.gan.network = "stylegan2_skeleton"
  config.gan.widths = (512, 512, 512, 512, 256, 128, 64)
  config.gan.cardinalities = (1, 1, 1, 1, 1, 1, 1)
  config.gan.blocks = (1, 1, 1, 1, 1, 1, 1)
  config.gan.expansion = 1.0
  return common.select(config, variant)
