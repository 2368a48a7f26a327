"""Configuration A of the roadmap ([P] section 3): StyleGAN2, FFHQ at 256x256, 5 million images.

    python main.py --config=configs/roadmap/a.py

The data are prepared as for configs/ffhq256.py. The settings are those of StyleGAN2-ADA's recipe for FFHQ at 256x256
(arXiv 2006.06676, "paper256"), with groups of 4 for D's standard deviation, as in StyleGAN2, in place of 8.
Published ([P] Table 2): FID 7.516.

`:fashion32` is Fashion-MNIST at 32x32, for a CPU, of networks an eighth as wide, 227 and 230 thousand parameters; the
data are prepared as for configs/fashion_mnist.py. 8 minutes on one core.
`:smoke` runs a tiny network on generated images.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "") -> ConfigDict:
  config = common.get_config("stylegan2")
  config.name = "roadmap_a"

  config.data.name = "ffhq256"
  config.data.resolution = 256
  config.data.x_flip = True

  # 24.767M / 24.001M parameters in G / D; min(512, 16384 / resolution)
  config.gan.widths = (512, 512, 512, 512, 256, 128, 64)
  config.gan.noise_dim = 512  # of z and w
  config.gan.bfloat16_stages = 4

  # All constant; lazy regularisation's corrections come on top.
  config.batch_size = 64
  config.gan.learning_rate = 2.5e-3
  config.gan.beta2 = 0.99
  config.gan.gamma = 1.0
  config.gan.ema_half_life = 20_000.0

  config.run.total_images = 5_000_000
  config.run.snapshot_every_images = 200_000
  config.run.grid = (8, 8)
  return common.select(config, variant, smoke=_smoke, fashion32=_fashion32)


def _smoke(config: ConfigDict) -> None:
  config.data.resolution = 32  # at 256 a CPU would compile for minutes
  config.gan.widths = (16, 16, 16, 16)
  common.make_smoke(config)


def _fashion32(config: ConfigDict) -> None:
  config.data.name = "fashion_mnist"
  config.data.fit = "pad"  # 28 -> 32
  config.data.resolution = 32
  config.data.channels = 1
  config.gan.widths = (64, 64, 32, 32)  # an eighth of 512, 512, 256, 256
  config.gan.noise_dim = 64
  config.gan.bfloat16_stages = 3
  config.batch_size = 16
  config.gan.ema_half_life = 5_000.0
  config.run.total_images = 50_000
  config.run.log_every_images = 2_500
  config.run.snapshot_every_images = 10_000
  config.run.grid = (10, 10)
  config.run.grid_scale = 2
  config.run.metrics = ("fid",)
  config.run.metric_samples = 10_000
  config.run.feature_network = "digits"
