"""The roadmap from StyleGAN2 to R3GAN ([P] section 3 and Table 2): FFHQ at 256x256, 5 million images.

    python main.py --config=configs/roadmap.py:b            # or a, c1, c2, d1, d2, e1, e2
    python main.py --config=configs/roadmap.py:b_fashion32  # Fashion-MNIST at 32x32, for a CPU
    python main.py --config=configs/roadmap.py:b_smoke      # a tiny network on generated images

    configuration                                                     published FID  parameters of G / D
    a   StyleGAN2, by StyleGAN2-ADA's recipe (arXiv 2006.06676)              7.516   24.767M    / 24.001M
    b   StyleGAN2 stripped to its skeleton; non-saturating loss, R1         12.46    18,890,453 / 23,996,481
    c1  b with the relativistic loss                                        11.77    18,890,453 / 23,996,481
    c2  c1 with R2 as well                                                  11.65    18,890,453 / 23,996,481
    d1  c2's loss on 1-3-1 residual blocks (fix-up), output skips           10.17    23,400,192 / 23,281,536
    d2  d1 without output skips                                              9.950   23,378,304 / 23,281,536
    e1  d2 with groups of 16 channels in bottlenecks twice as wide           7.507   23,187,648 / 23,090,880
    e2  e1 with inverted bottlenecks: R3GAN                                  7.045   23,057,952 / 23,009,568

The data are those of configs/ffhq256.py; for `fashion32`, of configs/fashion_mnist.py. `fashion32` takes 8 to 10
minutes on one core; docs/results/README.md has its scores.

[P] gives the losses, penalties and networks, z of 64 dimensions, Adam without momentum, and a learning rate of 5e-5
instead of StyleGAN2's 2.5e-3 where equalised learning rates are dropped. The other settings of b to e2 are those of
configs/ffhq256.py, with a burn-in as long as the run: our choice, the same for all. `a` uses groups of 4 for D's
minibatch standard deviation, as StyleGAN2 does, instead of StyleGAN2-ADA's 8.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common
from r3gan_jax.errors import UserError

_R1, _R1_R2 = {"penalties": ("r1",)}, {"penalties": ("r1", "r2")}
_NON_SATURATING, _RELATIVISTIC = {"loss": "non_saturating"}, {"loss": "relativistic"}
_SKELETON = {
  "network": "stylegan2_skeleton",
  "widths": (512, 512, 512, 512, 256, 128, 64),
  "cardinalities": (1, 1, 1, 1, 1, 1, 1),
  "blocks": (1, 1, 1, 1, 1, 1, 1),
  "expansion": 1.0,
}
_BOTTLENECKS = {
  "widths": (1536, 1536, 1536, 1536, 768, 384, 192),
  "cardinalities": (1, 1, 1, 1, 1, 1, 1),
  "blocks": (2, 2, 2, 2, 2, 2, 2),
  "expansion": 0.25,
}
_GROUPED = _BOTTLENECKS | {"cardinalities": (48, 48, 48, 48, 24, 12, 6), "expansion": 0.5}
_INVERTED = {
  "widths": (768, 768, 768, 768, 384, 192, 96),
  "cardinalities": (96, 96, 96, 96, 48, 24, 12),
  "blocks": (2, 2, 2, 2, 2, 2, 2),
  "expansion": 2.0,
}
_R3GAN: dict[str, Any] = {
  "bfloat16_stages": 4,
  "burn_in_images": 5_000_000,
  "learning_rate": (5e-5, 5e-5),
  "gamma": (150.0, 15.0),
  "ema_half_life": (0.0, 500_000.0),
}
_STYLEGAN2: dict[str, Any] = {
  "widths": (512, 512, 512, 512, 256, 128, 64),  # min(512, 16384 / resolution)
  "noise_dim": 512,  # of z and w
  "bfloat16_stages": 4,
  # Constant; the corrections for lazy regularisation are added.
  "learning_rate": 2.5e-3,
  "beta2": 0.99,
  "gamma": 1.0,
  "ema_half_life": 20_000.0,
}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
  "a": _STYLEGAN2,
  "b": _R3GAN | _NON_SATURATING | _R1 | _SKELETON,
  "c1": _R3GAN | _RELATIVISTIC | _R1 | _SKELETON,
  "c2": _R3GAN | _RELATIVISTIC | _R1_R2 | _SKELETON,
  "d1": _R3GAN | _RELATIVISTIC | _R1_R2 | _BOTTLENECKS | {"network": "r3gan_output_skips"},
  "d2": _R3GAN | _RELATIVISTIC | _R1_R2 | _BOTTLENECKS,
  "e1": _R3GAN | _RELATIVISTIC | _R1_R2 | _GROUPED,
  "e2": _R3GAN | _RELATIVISTIC | _R1_R2 | _INVERTED,
}
"""Configuration -> its changes to `config.gan`."""


def get_config(variant: str = "") -> ConfigDict:
  name, _, size = variant.partition("_")
  if name not in CONFIGURATIONS:
    raise UserError(
      f"{name!r} is no configuration of the roadmap: choose from {', '.join(CONFIGURATIONS)}, e.g. configs/roadmap.py:b"
    )
  config = common.get_config("stylegan2" if name == "a" else "r3gan")
  config.name = f"roadmap_{name}"

  config.data.name = "ffhq256"
  config.data.resolution = 256
  config.data.x_flip = True

  config.gan.update(CONFIGURATIONS[name])
  config.batch_size = 64 if name == "a" else 256

  config.run.total_images = 5_000_000
  config.run.snapshot_every_images = 200_000 if name == "a" else 500_000
  config.run.grid = (8, 8)
  return common.select(config, size, fashion32=_fashion32, smoke=_smoke)


def _smoke(config: ConfigDict) -> None:
  if config.algorithm == "stylegan2":  # at 256x256 a CPU would compile for minutes
    config.data.resolution = 32
    config.gan.widths = (16, 16, 16, 16)
  common.make_smoke(config)


def _fashion32(config: ConfigDict) -> None:
  """Fashion-MNIST at 32x32, with networks an eighth as wide and one block per stage; groups keep their size."""
  config.data.name = "fashion_mnist"
  config.data.fit = "pad"  # 28 -> 32
  config.data.resolution = 32
  config.data.channels = 1

  gan = config.gan
  stages = (0, 0, 4, 4)  # of the full network: two as wide as at 4x4, two half as wide
  gan.widths = tuple(gan.widths[stage] // 8 for stage in stages)
  if config.algorithm == "stylegan2":
    gan.noise_dim = 64
    gan.bfloat16_stages = 3
    gan.ema_half_life = 5_000.0
  else:
    gan.cardinalities = tuple(max(1, gan.cardinalities[stage] // 8) for stage in stages)
    gan.blocks = (1,) * len(stages)
    gan.burn_in_images = 50_000
    gan.learning_rate = (1e-3, 2e-4)
    gan.gamma = (5.0, 1.0)
    gan.ema_half_life = (0.0, 10_000.0)
  config.batch_size = 16

  config.run.total_images = 50_000
  config.run.log_every_images = 2_500
  config.run.snapshot_every_images = 10_000
  config.run.grid = (10, 10)
  config.run.grid_scale = 2
  # FID by the features of a classifier of Fashion-MNIST: cli.train_classifier --name=fashion_mnist
  config.run.metrics = ("fid",)
  config.run.metric_samples = 10_000
  config.run.feature_network = "digits"
