"""Finds the real images nearest to samples, to see whether a GAN has memorised its training images:

    python -m r3gan_jax.cli.neighbours --workdir=runs/NAME --out=neighbours.png
    python -m r3gan_jax.cli.neighbours --workdir=runs/NAME --network=pixels --out=in_pixels.png
    python -m r3gan_jax.cli.neighbours --real=A --fake=B --network=pixels --out=neighbours.png

It prints the authenticity: the fraction of samples that are farther from the nearest real image than that is from its
own nearest other one. The picture has the least authentic samples, each beside its nearest real images, with their
Euclidean distances in the features of the network. Below a sample is the ratio of the two distances of authenticity: 1
or less if it is not authentic.

All images that the run trains on are searched, but not their mirror images: a sample that is the mirror image of one is
not found. Stacked digits are endless draws, of which --num_samples are searched. A and B are as for cli.evaluate.
"""

from pathlib import Path

import numpy as np
from absl import flags

from r3gan_jax import factory, runs, scoring
from r3gan_jax.cli.shared.outputs import output_path
from r3gan_jax.cli.shared.runner import run
from r3gan_jax.comparison import network_of
from r3gan_jax.errors import UserError
from r3gan_jax.metrics.feature_extractor import FeatureExtractor, ImageSet
from r3gan_jax.metrics.features import FeatureNetwork
from r3gan_jax.metrics.image_sets import open_images
from r3gan_jax.metrics.memorisation import nearest_reals
from r3gan_jax.pretrained import FEATURE_NETWORKS, build_feature_network
from r3gan_jax.reporting.neighbours import picture
from r3gan_jax.sampling import save_png
from r3gan_jax.storage import failing_as
from r3gan_jax.training.mesh import make_mesh

_WORKDIR = flags.DEFINE_string("workdir", None, "The work directory of a run.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "", "With --workdir: its images seen, or 'best'; default: the newest.")
_REAL = flags.DEFINE_string("real", None, "Real images: a directory, zip or .npz.")
_FAKE = flags.DEFINE_string("fake", None, "The samples: a directory, zip or .npz.")
_NUM_SAMPLES = flags.DEFINE_integer(
  "num_samples", 1000, "How many samples of a run to draw; of --fake all are taken.", lower_bound=1
)
_SHOWN = flags.DEFINE_integer("shown", 8, "How many samples the picture has, at most.", lower_bound=1)
_NEIGHBOURS = flags.DEFINE_integer("neighbours", 4, "How many real images are beside each.", lower_bound=1)
_NETWORK = flags.DEFINE_enum("network", None, FEATURE_NETWORKS, "Default: the run's, or VGG16.")
_WEIGHTS = flags.DEFINE_string("weights", None, "With --network: the file of its weights, as for cli.evaluate.")
_DOWNLOAD = flags.DEFINE_bool("download", False, "Fetch published weights that are missing.")
_BATCH = flags.DEFINE_integer("batch", 64, "Images in one forward pass on each device.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of the samples of a run.", lower_bound=0, upper_bound=2**32 - 1)
_OUT = flags.DEFINE_string("out", None, "The picture to write, a .png.", required=True)


def main() -> None:
  if _WEIGHTS.value and not _NETWORK.value:
    raise UserError("--weights needs --network: whose weights are they?")
  if bool(_WORKDIR.value) == bool(_REAL.value) or bool(_REAL.value) != bool(_FAKE.value):
    raise UserError("name either a --workdir, or --real and --fake")
  out, _ = output_path("out", _OUT.value, (".png",))
  weights = Path(_WEIGHTS.value).expanduser() if _WEIGHTS.value else None
  fake, real, network = _of_run(_WORKDIR.value, weights) if _WORKDIR.value else _of_files(weights)
  if fake.shape != real.shape:
    raise UserError(f"samples have the shape {fake.shape} and real images {real.shape}: bring them to one size")
  extract = FeatureExtractor(network, make_mesh(), _BATCH.value)
  found = nearest_reals(extract, fake, real, _NEIGHBOURS.value)
  print(f"authenticity {found.authenticity:.4g}: of {fake.size:,} samples, among {real.size:,} real images")
  print(f"by distances between features of {network.name}")

  ratios = found.distances[:, 0] / np.maximum(found.own, np.finfo(np.float32).tiny)
  shown = np.argsort(ratios, kind="stable")[: _SHOWN.value]
  beside = real.images(found.indices[shown].ravel()).reshape(len(shown), _NEIGHBOURS.value, *real.shape)
  images = np.concatenate([fake.images(shown)[:, None], beside], axis=1)
  captions = [
    [f"ratio {ratios[sample]:.3g}", *(f"{distance:.3g}" for distance in found.distances[sample])] for sample in shown
  ]
  with failing_as(f"cannot write --out={out}", out):
    save_png(out, picture(images, captions))
  print(out)


def _of_run(workdir: str, weights: Path | None) -> tuple[ImageSet, ImageSet, FeatureNetwork]:
  """Returns samples, real images and the feature network of a run."""
  trained = runs.open_run(workdir, _CHECKPOINT.value)
  config, algorithm = trained.config, trained.algorithm
  if _NETWORK.value:
    config.run.feature_network = _NETWORK.value
  name = scoring.chosen_network(config) or network_of("authenticity")
  weights = scoring.chosen_weights(config, weights)
  network = build_feature_network(name, config.run.resize, weights, _DOWNLOAD.value)
  source = factory.build_source(config)
  quantised_in = factory.quantised_in(config, algorithm)
  fakes = scoring.fake_images(
    algorithm, source, _NUM_SAMPLES.value, _SEED.value, quantised_in=quantised_in, title=trained.title
  )
  real = scoring.real_images(config, source, _NUM_SAMPLES.value)
  return fakes(trained.params, trained.carry), real, network


def _of_files(weights: Path | None) -> tuple[ImageSet, ImageSet, FeatureNetwork]:
  """Returns samples, real images and the feature network that flags name."""
  name = _NETWORK.value or network_of("authenticity")
  network = build_feature_network(name, weights=weights, download=_DOWNLOAD.value)
  return open_images("fake", _FAKE.value or ""), open_images("real", _REAL.value or ""), network


if __name__ == "__main__":
  run(main)
