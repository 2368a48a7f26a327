"""ImageNet at 256x256, class-conditional: R3GAN on 32x32 latents of Stable Diffusion's autoencoder.

    python -m r3gan_jax.cli.prepare_data --images=ILSVRC2012/train --class_directories --name=imagenet256 \
      --resolution=256
    python -m r3gan_jax.cli.prepare_data --prepared=imagenet256 --encode=sd-vae --mirrored --name=imagenet256_latents
    python main.py --config=configs/imagenet256.py

The second command needs the autoencoder's weights, and says where to put them. Or directly from the zip that EDM2's
`encode` command writes, which has no mirror images:

    python main.py --config=configs/imagenet256.py --config.run.data_path=img256-sd.zip --config.data.x_flip=False

This is not one of the paper's experiments, and nobody has trained it yet. Latents have the size and the variance of
ImageNet-32's images, so its preset's settings are a first guess. Augmentation is geometry and cutout: latents have no
colours, and a mirrored latent is not that of the mirrored image. `:wide` has networks twice as wide. `:smoke` runs a
tiny network on generated images.
"""

from ml_collections import ConfigDict

from configs import imagenet32
from configs.common import select

OF_PIXELS = ("x_flip", "brightness", "contrast", "luma_flip", "hue", "saturation")
"""The augmentations that latents do not have."""


def get_config(variant: str = "") -> ConfigDict:
  config = imagenet32.get_config()
  config.name = "imagenet256"
  use_latents(config, "imagenet256", 32)
  return select(config, variant, wide=_wide)


def use_latents(config: ConfigDict, pixels: str, side: int) -> None:
  """Sets the data of a recipe to the latents of a data set, of `side` pixels, and drops augmentations of pixels."""
  config.data.source = "latents"
  config.data.name = f"{pixels}_latents"
  config.data.pixels = pixels
  config.data.resolution = side
  config.data.channels = 4
  config.gan.augment.update(dict.fromkeys(OF_PIXELS, 0.0))


def _wide(config: ConfigDict) -> None:
  stages = len(config.gan.widths)
  config.gan.widths = (3072,) * stages
  config.gan.cardinalities = (192,) * stages
  config.run.tpu_topology = "v5e:16x16"
