"""The quickstart: stacked 8x8 digits, 1000 modes, minutes on two CPU cores.

    python main.py --config=configs/stacked_digits.py

Trains on scikit-learn's 1,797 handwritten digits: three, drawn independently, are stacked as R, G and B, as in
StackedMNIST. A full run covered 997 of the 1000 modes; another processor rounds differently.
`:smoke` runs a tiny network on generated images.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "") -> ConfigDict:
  config = common.get_config()
  config.name = "stacked_digits"

  config.data.source = "stacked_digits"
  config.data.resolution = 8

  config.gan.widths = (64, 64)
  config.gan.cardinalities = (8, 8)
  config.gan.blocks = (1, 1)
  config.gan.bfloat16_stages = 0

  config.batch_size = 16
  config.gan.burn_in_images = 100_000
  config.gan.learning_rate = (2e-3, 5e-4)
  config.gan.gamma = (0.3, 0.3)
  config.gan.ema_half_life = (0.0, 10_000.0)

  config.run.total_images = 200_000
  config.run.log_every_images = 5_000
  config.run.snapshot_every_images = 25_000
  config.run.grid = (4, 8)
  config.run.grid_channels = True
  config.run.grid_scale = 6
  config.run.metrics = ("modes",)
  config.run.metric_samples = 26_000
  config.run.best_metric = "modes_kl"
  return common.select(config, variant)
