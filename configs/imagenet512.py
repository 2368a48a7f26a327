"""ImageNet at 512x512, class-conditional: R3GAN on 64x64 latents of Stable Diffusion's autoencoder.

    python -m r3gan_jax.cli.prepare_data --images=ILSVRC2012/train --class_directories --name=imagenet512 \
      --resolution=512
    python -m r3gan_jax.cli.prepare_data --prepared=imagenet512 --encode=sd-vae --mirrored --name=imagenet512_latents
    python main.py --config=configs/imagenet512.py

As configs/imagenet256.py, with ImageNet-64's settings. EDM2's img512-sd.zip is read as it is.
`:smoke` runs a tiny network on generated images.
"""

from ml_collections import ConfigDict

from configs import imagenet64
from configs.common import select
from configs.imagenet256 import use_latents


def get_config(variant: str = "") -> ConfigDict:
  config = imagenet64.get_config()
  config.name = "imagenet512"
  use_latents(config, "imagenet512", 64)
  return select(config, variant)
