"""Shared by the recipes of the zoo: Fashion-MNIST at 32x32, grey, without classes, as in configs/fashion_mnist.py.

    python -m r3gan_jax.cli.prepare_data --idx=DIRECTORY --name=fashion_mnist

For a fair comparison with R3GAN these recipes keep a moving average of G, which most of these GANs predate. For samples
of G itself, as published: --config.gan.ema_half_life=0.

`:short` of each recipe is the run of docs/zoo.md: about ten minutes of one CPU core.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from configs import common


def get_config(algorithm: str) -> ConfigDict:
  config = common.get_config(algorithm)
  config.name = f"zoo_{algorithm}"

  config.data.name = "fashion_mnist"
  config.data.fit = "pad"  # 28 -> 32
  config.data.resolution = 32
  config.data.channels = 1
  config.data.x_flip = True

  config.batch_size = 64
  config.gan.ema_half_life = 10_000.0

  config.run.total_images = 400_000
  config.run.log_every_images = 5_000
  config.run.snapshot_every_images = 50_000
  config.run.grid = (10, 10)
  config.run.grid_scale = 2
  return config


def short(total_images: int, batch_size: int) -> Callable[[ConfigDict], None]:
  """Returns the changes for `:short`; its FID is of features of the classifier that cli.train_classifier trains."""

  def change(config: ConfigDict) -> None:
    config.batch_size = batch_size
    config.gan.ema_half_life = total_images / 60
    config.run.total_images = total_images
    config.run.log_every_images = total_images // 40
    config.run.snapshot_every_images = total_images // 4
    config.run.metrics = ("fid", *config.run.metrics)
    config.run.feature_network = "digits"
    config.run.metric_samples = 10_000

  return change


def short_resnet(total_images: int, batch_size: int) -> Callable[[ConfigDict], None]:
  """`short` for SAGAN and its descendants: after a thousand iterations at the papers' rates they know no classes.

  AutoGAN, without classes, is no better at higher rates.
  """

  def change(config: ConfigDict) -> None:
    short(total_images, batch_size)(config)
    config.gan.generator_learning_rate *= 5
    config.gan.discriminator_learning_rate *= 5

  return change


def small_resnet(config: ConfigDict) -> None:
  """Gives SAGAN and its descendants networks of 64 channels for 32x32, with attention at 16x16, and 10 classes."""
  config.data.num_classes = 10
  config.gan.generator_widths = (64, 64, 64, 64)
  config.gan.discriminator_widths = (64, 64, 64, 64)
  config.gan.whole_blocks = 2
  config.gan.attention_side = 16


def cifar10(config: ConfigDict) -> None:
  """Trains on CIFAR-10, in colour."""
  config.data.name = "cifar10"
  config.data.fit = "crop_resize"
  config.data.channels = 3
