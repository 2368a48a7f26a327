"""Draws the GAN's own pictures of a trained run, such as reconstructions or traversals of codes, as training does:

    python -m r3gan_jax.cli.pictures --workdir=runs/NAME --out=DIRECTORY

Each is a grid, NAME.png, of the size that config.run.grid says. Real images in them are test images if the data set has
any, else training images.
"""

from absl import flags

from r3gan_jax import factory, runs
from r3gan_jax.algorithms.capabilities import HasPictures
from r3gan_jax.cli.shared.outputs import output_path
from r3gan_jax.cli.shared.runner import run
from r3gan_jax.errors import UserError
from r3gan_jax.metrics.feature_extractor import spread
from r3gan_jax.sources import has_test_images
from r3gan_jax.storage import failing_as, make_directory

_WORKDIR = flags.DEFINE_string("workdir", None, "The work directory of the run.", required=True)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "", "The checkpoint: its images seen, or 'best'; default: the newest.")
_OUT = flags.DEFINE_string("out", None, "The directory to write.", required=True)


def main() -> None:
  out, _ = output_path("out", _OUT.value, directory=True)
  trained = runs.open_run(_WORKDIR.value, _CHECKPOINT.value)
  algorithm, config = trained.algorithm, trained.config
  if not isinstance(algorithm, HasPictures):
    raise UserError(f"{config.algorithm} has no pictures of its own: draw samples with cli.sample")
  if has_test_images(config):
    config.data.split = "test"
  source = factory.build_source(config)
  columns, rows = config.run.grid
  reals = source[spread(len(source), min(len(source), columns * rows))]["image"]
  pictures = runs.build_pictures(algorithm)(trained.params, trained.carry, reals)
  with failing_as(f"cannot write --out={out}", out):
    make_directory(out)
    for name, images in pictures.items():
      runs.save_grid(config, out / f"{name}.png", images)
      print(out / f"{name}.png")


if __name__ == "__main__":
  run(main)
