"""ImageNet at 64x64, class-conditional.

    pip install -e '.[tfds]'
    python -m r3gan_jax.cli.prepare_data --tfds=imagenet_resized/64x64 --manual_dir=DIRECTORY
    python main.py --config=configs/imagenet64.py

DIRECTORY has Imagenet64_train_part1_npz.zip, Imagenet64_train_part2_npz.zip and Imagenet64_val_npz.zip, which
registered users can download at https://image-net.org/download-images. Or directly from the zip of EDM's data tool:

    python main.py --config=configs/imagenet64.py --config.data.source=folder --config.run.data_path=imagenet-64x64.zip

Published ([P]): FID 2.09, recall 0.59, on 64 x H100.
`:smoke` runs a tiny network on generated images.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "") -> ConfigDict:
  config = common.get_config()
  config.name = "imagenet64"

  config.data.name = "imagenet_resized/64x64"
  config.data.resolution = 64
  config.data.num_classes = 1000
  config.data.x_flip = True

  # 103.57M / 107.21M parameters in G / D
  config.gan.widths = (1536, 1536, 1536, 1536, 1536)
  config.gan.cardinalities = (96, 96, 96, 96, 96)
  config.gan.blocks = (2, 2, 2, 2, 2)
  config.gan.bfloat16_stages = 4

  config.batch_size = 4096
  config.gan.burn_in_images = 200_000_000
  config.gan.learning_rate = (2e-4, 5e-5)
  config.gan.gamma = (1.0, 0.1)
  config.gan.ema_half_life = (0.0, 50_000_000.0)
  config.gan.augment_p = (0.0, 0.4)

  config.run.total_images = 1_000_000_000
  config.run.tpu_topology = "v5e:16x16"
  return common.select(config, variant)
