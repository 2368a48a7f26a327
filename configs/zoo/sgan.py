"""SGAN (Odena 2016), semi-supervised, on MNIST with 1000 labels: 1.07M / 0.70M parameters in G / D.

    python -m r3gan_jax.cli.prepare_data --idx=DIRECTORY --name=mnist
    python main.py --config=configs/zoo/sgan.py

DIRECTORY: see configs/stacked_mnist.py. The number of labels is config.data.labelled_images; the report has the
classifier's error on test images.
`:paper` has the paper's losses. `:without_generator` has D alone, for comparison: it learns from labelled images, and G
has no effect on it. `:smoke` runs a tiny network on generated images.
"""

from ml_collections import ConfigDict

from configs.common import select
from configs.zoo import common


def get_config(variant: str = "") -> ConfigDict:
  config = common.get_config("sgan")
  config.data.name = "mnist"
  config.data.num_classes = 10
  config.data.labelled_images = 1000
  config.data.labelled_share = 0.5
  config.data.x_flip = False
  config.run.metrics = ("classification_error",)
  variants = {"paper": _paper, "without_generator": _without_generator}
  return select(config, variant, short=common.short(50_000, 32), **variants)


def _without_generator(config: ConfigDict) -> None:
  config.gan.unlabelled = False
  config.gan.fakes = False


def _paper(config: ConfigDict) -> None:
  config.gan.unlabelled = False
  config.gan.saturating = True
  config.gan.ema_half_life = 0.0
