"""Your own images: a folder, a zip or a prepared data set, as it is.

    python main.py --config=configs/images.py --config.run.data_path=PHOTOS
    python main.py --config=configs/images.py:base --config.run.data_path=PHOTOS --config.data.resolution=128

It looks at the images and chooses what is `None` below, in r3gan_jax/automatic.py, which says by which rules. Any of it
can be given instead. The choices are logged, and kept in the work directory, so the same command resumes the run.
Images are cropped and resized once, into the user's cache.

`:tiny`, `:small` (the default) and `:base` have narrower networks than the paper's, for a laptop, a fast CPU and a GPU;
`:paper` has the paper's. They are trained on 0.2, 0.4, 25 and 100 million images. `:smoke` runs a tiny network on
generated images.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import common
from r3gan_jax.automatic import SIZES


def get_config(variant: str = "small") -> ConfigDict:
  config = common.get_config()
  config.name = "images"
  config.data.source = "images"
  for name in ("resolution", "width", "channels", "bits", "num_classes"):
    config.data[name] = placeholder(int)
  config.data.x_flip = True  # set it to False for what must not be mirrored, such as writing

  for name in ("widths", "cardinalities", "blocks", "gamma", "augment_p"):
    config.gan[name] = placeholder(tuple)
  config.batch_size = placeholder(int)
  config.run.grid = placeholder(tuple)
  config.run.on_corrupt_image = "skip"
  config.run.fit_memory = True
  return common.select(config, variant, **SIZES, smoke=_smoke)


def _smoke(config: ConfigDict) -> None:
  config.data.update({"resolution": 16, "width": 0, "channels": 3, "bits": 8, "num_classes": 0})
  config.gan.update({"widths": (16,) * 3, "cardinalities": (2,) * 3, "blocks": (1,) * 3})
  config.gan.update({"gamma": (0.3, 0.03), "augment_p": (0.0, 0.3)})
  common.make_smoke(config)
