"""Fine-tunes a trained R3GAN on other images, few or many: docs/fine_tuning.md.

    python main.py --config=configs/fine_tune.py:runs/NAME --workdir=runs/my_images \
      --config.data.source=folder --config.run.data_path=my_images

After the colon stands the work directory of the trained run, own or converted. Networks, data, batch and scores are
those of its config.json until flags change them; the values of its schedules at their end become constants.
"""

from pathlib import PurePath

from ml_collections import ConfigDict

from configs import common
from r3gan_jax import factory
from r3gan_jax.errors import UserError
from r3gan_jax.storage import as_path
from r3gan_jax.training.workdir import CONFIG_FILE, read_config

SCORED_AND_SHOWN = (
  *("grid", "grid_scale", "grid_channels", "metrics", "metric_samples", "feature_network", "best_metric"),
  *("resize", "quantisation"),
)
"""Settings of config.run that are those of the trained run."""


def get_config(workdir: str = "") -> ConfigDict:
  if not workdir:
    raise UserError("fine_tune.py needs a trained run: --config=configs/fine_tune.py:runs/NAME")
  there = factory.opened(read_config(workdir), as_path(workdir) / CONFIG_FILE)
  if there.algorithm != "r3gan":
    raise UserError(
      f"{workdir} is a run of {there.algorithm}, but fine_tune.py is for r3gan: use its own recipe with "
      f"--config.init_from={workdir}"
    )
  trained = factory.checked(there.to_dict())
  config = common.get_config()
  config.name = f"fine_tune_{PurePath(workdir).name}"
  config.init_from = workdir
  config.batch_size = trained["batch_size"]
  config.data.update(trained["data"])
  config.gan.update(trained["gan"])
  config.run.update({name: trained["run"][name] for name in SCORED_AND_SHOWN})

  for name in ("learning_rate", "beta2", "gamma"):
    config.gan[name] = (trained["gan"][name][1],) * 2
  config.gan.augment_p = (0.5, 0.5)  # [P] has 0.3 for 70,000 faces, 0.55 for CIFAR-10; ADA rises with fewer images
  config.gan.ema_half_life = (10_000.0, 10_000.0)  # as StyleGAN2-ADA at batch 32; begins at the run's own average
  # FreezeD. Of 7 stages, three with the layer from the image: --freezed=10 of StyleGAN3's advice
  config.gan.freeze_discriminator = len(trained["gan"]["widths"]) // 2

  config.run.total_images = 1_000_000
  config.run.log_every_images = 5_000
  config.run.snapshot_every_images = 50_000  # few images overfit soon: compare the grids
  config.run.keep_every_images = 50_000
  return config
