"""ProGAN (Karras et al. 2018) on Fashion-MNIST: networks that grow from 4x4 to 32x32: 0.28M / 0.28M parameters.

    python main.py --config=configs/zoo/progan.py

The report (python -m r3gan_jax.cli.report) shows samples as they grow, samples of all stages side by side, and reals
beside what D sees of them. `:fixed` has the same networks and losses without growth, at 32x32 from the start.
`:paper` is the run on CIFAR-10, with wider networks and its batch of 16. `:smoke` runs tiny networks on generated
images.
"""

from ml_collections import ConfigDict

from configs.common import select
from configs.zoo import common


def get_config(variant: str = "") -> ConfigDict:
  config = common.get_config("progan")
  config.gan.widths = (64, 64, 64, 32)
  config.gan.noise_dim = 64
  config.gan.penalty_norm = 1.0
  config.gan.hold_images = 40_000
  config.gan.ramp_images = 40_000
  config.batch_size = 16
  return select(config, variant, short=_short, fixed=_fixed, paper=_paper)


def _short(config: ConfigDict) -> None:
  common.short(40_000, 16)(config)
  config.gan.hold_images = 5_000
  config.gan.ramp_images = 5_000


def _fixed(config: ConfigDict) -> None:
  config.gan.growing = False


def _paper(config: ConfigDict) -> None:
  config.gan.widths = (128, 128, 128, 128)
  config.gan.noise_dim = 128
  config.gan.stddev_group = 16  # the whole batch
  config.gan.penalty_norm = 750.0
  config.gan.hold_images = 400_000
  config.gan.ramp_images = 400_000
  config.gan.ema_half_life = 11_000.0
  config.data.name = "cifar10"
  config.data.fit = "crop_resize"
  config.data.channels = 3
  config.run.total_images = 20_000_000
  config.run.log_every_images = 50_000
  config.run.snapshot_every_images = 500_000
