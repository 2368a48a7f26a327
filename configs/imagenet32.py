"""ImageNet at 32x32, class-conditional.

    pip install -e '.[tfds]'
    python -m r3gan_jax.cli.prepare_data --tfds=imagenet_resized/32x32 --manual_dir=DIRECTORY
    python main.py --config=configs/imagenet32.py

DIRECTORY has Imagenet32_train_npz.zip and Imagenet32_val_npz.zip, which https://image-net.org/download-images
gives to registered users.

Published ([P]): FID 1.27, recall 0.63, on 32 x H100.
`:smoke` runs a tiny network on generated images.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "") -> ConfigDict:
  config = common.get_config()
  config.name = "imagenet32"

  config.data.name = "imagenet_resized/32x32"
  config.data.resolution = 32
  config.data.num_classes = 1000
  config.data.x_flip = True

  # 82.91M / 86.55M parameters in G / D
  config.gan.widths = (1536, 1536, 1536, 1536)
  config.gan.cardinalities = (96, 96, 96, 96)
  config.gan.blocks = (2, 2, 2, 2)
  config.gan.bfloat16_stages = 3

  config.batch_size = 4096
  config.gan.burn_in_images = 200_000_000
  config.gan.learning_rate = (2e-4, 5e-5)
  config.gan.gamma = (0.5, 0.05)
  config.gan.ema_half_life = (0.0, 50_000_000.0)
  config.gan.augment_p = (0.0, 0.5)

  config.run.total_images = 1_000_000_000
  config.run.tpu_topology = "v5e:8x8"
  return common.select(config, variant)
