"""Super-resolution of Fashion-MNIST, 8x8 -> 32x32, by a GAN with an image as condition: docs/image_to_image.md.

    python -m r3gan_jax.cli.prepare_data --idx=DIRECTORY --name=fashion_mnist
    python main.py --config=configs/super_resolution.py

DIRECTORY has the four idx files: see configs/fashion_mnist.py. Variants, of other data:

    :colourise    CIFAR-10 in grey -> in colour
    :inpaint      CIFAR-10 with a box cut out -> filled
    :smoke        a tiny network on generated images
"""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "") -> ConfigDict:
  config = common.get_config("image_to_image")
  config.name = "super_resolution"

  config.data.name = "fashion_mnist"
  config.data.fit = "pad"  # 28 -> 32
  config.data.resolution = 32
  config.data.channels = 1
  config.data.x_flip = True

  config.gan.condition = "downscale_4"
  config.gan.widths = (64, 64, 32, 16)
  config.gan.cardinalities = (8, 8, 4, 2)
  config.gan.blocks = (1, 1, 1, 1)
  config.gan.bfloat16_stages = 3

  config.batch_size = 32
  config.gan.burn_in_images = 50_000
  config.gan.learning_rate = (1e-3, 2e-4)
  config.gan.gamma = (1.0, 0.3)
  config.gan.ema_half_life = (0.0, 5_000.0)

  config.run.total_images = 100_000
  config.run.log_every_images = 5_000
  config.run.snapshot_every_images = 25_000
  config.run.grid = (10, 10)
  config.run.grid_scale = 2
  return common.select(config, variant, colourise=_colourise, inpaint=_inpaint)


def _colourise(config: ConfigDict) -> None:
  _on_cifar10(config)
  config.gan.condition = "grey"


def _inpaint(config: ConfigDict) -> None:
  _on_cifar10(config)
  config.gan.condition = "mask"


def _on_cifar10(config: ConfigDict) -> None:
  """On a GPU: networks of a third of the widths of configs/cifar10.py."""
  config.data.name = "cifar10"
  config.data.channels = 3

  config.gan.widths = (256, 256, 256, 256)
  config.gan.cardinalities = (32, 32, 32, 32)
  config.gan.blocks = (2, 2, 2, 2)

  config.batch_size = 256
  config.gan.burn_in_images = 5_000_000
  config.gan.learning_rate = (2e-4, 5e-5)
  config.gan.gamma = (0.05, 0.005)
  config.gan.ema_half_life = (0.0, 500_000.0)

  config.run.total_images = 20_000_000
  config.run.log_every_images = 20_000
  config.run.snapshot_every_images = 1_000_000
  config.run.grid_scale = 1
