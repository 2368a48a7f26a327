"""What the configurations B to E2 share: FFHQ at 256x256, unconditional, 5 million images.

[P] names the loss, the penalties, the networks, z of 64 dimensions, Adam without momentum, and a learning rate lowered
from StyleGAN2's 2.5e-3 to 5e-5 where equalised learning rates went. The rest is as in configs/ffhq256.py, with the
burn-in at the end of the run: our choice, and the same for all.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(name: str) -> ConfigDict:
  config = common.get_config()
  config.name = f"roadmap_{name}"

  config.data.name = "ffhq256"
  config.data.resolution = 256
  config.data.x_flip = True

  config.gan.bfloat16_stages = 4

  config.batch_size = 256
  config.gan.burn_in_images = 5_000_000
  config.gan.learning_rate = (5e-5, 5e-5)
  config.gan.gamma = (150.0, 15.0)
  config.gan.ema_half_life = (0.0, 500_000.0)

  config.run.total_images = 5_000_000
  config.run.snapshot_every_images = 500_000
  config.run.grid = (8, 8)
  return config


def select(config: ConfigDict, variant: str) -> ConfigDict:
  """`common.select` with the variant fashion32."""
  return common.select(config, variant, fashion32=_fashion32)


def _fashion32(config: ConfigDict) -> None:
  """Fashion-MNIST at 32x32 on a CPU, networks an eighth as wide, of one block a stage; groups stay as large."""
  config.data.name = "fashion_mnist"
  config.data.fit = "pad"  # 28 -> 32
  config.data.resolution = 32
  config.data.channels = 1

  gan = config.gan
  stages = (0, 0, 4, 4)  # of the full size: two as wide as at 4x4, two half as wide
  gan.widths = tuple(gan.widths[stage] // 8 for stage in stages)
  gan.cardinalities = tuple(max(1, gan.cardinalities[stage] // 8) for stage in stages)
  gan.blocks = (1,) * len(stages)

  config.batch_size = 16
  config.gan.burn_in_images = 50_000
  config.gan.learning_rate = (1e-3, 2e-4)
  config.gan.gamma = (5.0, 1.0)
  config.gan.ema_half_life = (0.0, 10_000.0)

  config.run.total_images = 50_000
  config.run.log_every_images = 2_500
  config.run.snapshot_every_images = 10_000
  config.run.grid = (10, 10)
  config.run.grid_scale = 2
  # FID by the features of a classifier of Fashion-MNIST: cli.train_classifier --name=fashion_mnist
  config.run.metrics = ("fid",)
  config.run.metric_samples = 10_000
  config.run.feature_network = "digits"
