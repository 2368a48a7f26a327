"""Fashion-MNIST at 32x32, grey, class-conditional: real data for a CPU.

    python -m r3gan_jax.cli.prepare_data --idx=DIRECTORY --name=fashion_mnist
    python main.py --config=configs/fashion_mnist.py

DIRECTORY has the four idx files, e.g. /usr/share/datasets/fashion-mnist of Debian's package dataset-fashion-mnist.
On two cores of an AMD EPYC with AVX2 57 images/s: two hours; without augmentation (--config.gan.augment_p=0) 66.

`:latents` trains on 8x8 latents of an autoencoder that is trained first:

    python -m benchmarks.train_autoencoder --config=configs/fashion_mnist.py --out=autoencoder
    python -m r3gan_jax.cli.prepare_data --prepared=fashion_mnist --resolution=32 --fit=pad --encode=sd-vae \
      --weights=autoencoder --mirrored --name=fashion_mnist_latents
    python main.py --config=configs/fashion_mnist.py:latents

`:smoke` runs a tiny network on generated images.
"""

from ml_collections import ConfigDict

from configs import common
from configs.imagenet256 import use_latents


def get_config(variant: str = "") -> ConfigDict:
  config = common.get_config()
  config.name = "fashion_mnist"

  config.data.name = "fashion_mnist"
  config.data.fit = "pad"  # 28 -> 32
  config.data.resolution = 32
  config.data.channels = 1
  config.data.num_classes = 10
  config.data.x_flip = True

  config.gan.widths = (128, 128, 64, 32)
  config.gan.cardinalities = (16, 16, 8, 4)
  config.gan.blocks = (1, 1, 1, 1)
  config.gan.bfloat16_stages = 3

  config.batch_size = 64
  config.gan.burn_in_images = 200_000
  config.gan.learning_rate = (1e-3, 2e-4)
  config.gan.gamma = (0.5, 0.1)
  config.gan.ema_half_life = (0.0, 10_000.0)
  config.gan.augment_p = (0.0, 0.3)

  config.run.total_images = 400_000
  config.run.log_every_images = 5_000
  config.run.snapshot_every_images = 50_000
  config.run.grid = (10, 10)
  config.run.grid_scale = 2
  return common.select(config, variant, latents=_latents)


def _latents(config: ConfigDict) -> None:
  use_latents(config, "fashion_mnist", 8)
  config.gan.widths = (128, 128)
  config.gan.cardinalities = (16, 16)
  config.gan.blocks = (1, 1)
  config.run.autoencoder = "autoencoder"
