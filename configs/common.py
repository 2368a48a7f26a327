"""The defaults from which every recipe starts, and its variants.

r3gan_jax/recipe.py explains the settings, and r3gan_jax/algorithms/NAME.py those in `gan`. Settings outside `run`
define what is trained and are fixed for a work directory. Those in `run` define how, and may change when a run resumes.
"""

from ml_collections import ConfigDict

from r3gan_jax import factory
from r3gan_jax.errors import UserError


def get_config(algorithm: str = "r3gan") -> ConfigDict:
  """Returns the default settings, locked: a name that does not exist is an error where it is written."""
  return factory.default_config(algorithm)


def select(config: ConfigDict, variant: str, **variants: object) -> ConfigDict:
  """Returns `config` with the changes of `variant` ("" for none); every recipe also has "smoke"."""
  choices = {"": lambda config: None, "smoke": make_smoke} | variants
  if variant not in choices:
    raise UserError(f"config {config.name!r} has no variant {variant!r}: choose from {sorted(filter(None, choices))}")
  choices[variant](config)  # type: ignore[operator]
  if variant:
    config.name += f"_{variant}"
  return config


def make_smoke(config: ConfigDict) -> None:
  """Shrinks a recipe to a tiny network and a few iterations on generated images: a minute on a CPU."""
  config.data.source = "generated"
  config.gan.update(factory.smoke_settings(config))
  config.data.labelled_images = min(config.data.labelled_images, config.data.num_classes)
  config.batch_size = 8
  config.run.total_images = 64
  config.run.log_every_images = 16
  config.run.snapshot_every_images = 32
  config.run.grid = (4, 2)
  config.run.grid_channels = False
  config.run.metrics = ()
  config.run.best_metric = ""
