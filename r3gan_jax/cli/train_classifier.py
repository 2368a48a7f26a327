"""Trains a small classifier, in minutes on two cores; saves an .npz and prints its accuracy on images held out.

    python -m r3gan_jax.cli.train_classifier --data_path=DIRECTORY --name=mnist
    python -m r3gan_jax.cli.train_classifier --config=configs/cifar10.py --out=classifier.npz

The first is the feature network of (stacked) MNIST. The data set is a prepared one of 10 classes and at most 32x32
pixels; the split "test" is held out. The second, for config.gan.guidance_classifier and alignment_network, and for
cli.edit, is of the data of any recipe with classes, or of the single digits of stacked ones; a tenth of the images, at
most 10,000, is held out.
"""

from r3gan_jax.memory import keep_memory

if __name__ == "__main__":
  keep_memory()

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np
from absl import flags

from r3gan_jax import automatic, factory
from r3gan_jax.cli.shared.outputs import output_path
from r3gan_jax.cli.shared.recipes import define_recipe
from r3gan_jax.cli.shared.runner import run
from r3gan_jax.data.images import Decoder
from r3gan_jax.data.loader import Loader
from r3gan_jax.data.source import Examples, Subset
from r3gan_jax.data.tfds import TfdsSource
from r3gan_jax.errors import UserError
from r3gan_jax.metrics import digits_cnn, residual_cnn
from r3gan_jax.pretrained import classifier_path
from r3gan_jax.sources import of_single_digits

_CONFIG = define_recipe("config", "The recipe whose data are classified; --name and --data_path do not apply then.")
_NAME = flags.DEFINE_string("name", "mnist", "The --name given to prepare_data, e.g. mnist or fashion_mnist.")
_DATA_PATH = flags.DEFINE_string("data_path", "", "The directory of prepared data sets; default: TFDS's.")
_EPOCHS = flags.DEFINE_integer("epochs", 3, "Passes over the training images.", lower_bound=1)
_OUT = flags.DEFINE_string(
  "out", None, "The .npz to write; default, without --config: in the user's cache, where the metrics look for it."
)

_HELD_OUT = 10_000
_BATCH = 128


def main() -> None:
  if _CONFIG.value:
    _train_for_recipe()
  else:
    _train_for_digits()


def _train_for_digits() -> None:
  out = Path(output_path("out", _OUT.value, (".npz",))[0]) if _OUT.value else classifier_path(_NAME.value)
  training, test = _load("train"), _load("test")
  params = digits_cnn.train(training["image"][..., 0], training["label"], _EPOCHS.value)
  predicted = digits_cnn.classify(params, test["image"][..., 0])
  accuracy = float(np.mean(predicted == test["label"]))
  digits_cnn.save(out, params, accuracy)
  print(f"accuracy on {len(predicted):,} test images: {accuracy:.2%}: {out}")


def _load(split: str) -> Examples:
  grey = Decoder(channels=1)
  source = TfdsSource(_NAME.value, split, _DATA_PATH.value, (digits_cnn.SIDE,) * 2, grey, "pad", digits_cnn.CLASSES)
  return source[np.arange(len(source))]


def _train_for_recipe() -> None:
  if not _OUT.value:
    raise UserError("--config needs --out: name the .npz to write")
  out, _ = output_path("out", _OUT.value, (".npz",))
  config = of_single_digits(factory.with_numbers(automatic.completed(_CONFIG.value)))
  classes = config.data.num_classes
  if not classes:
    raise UserError("config.data.num_classes = 0: a classifier needs data with classes")
  source = factory.build_source(config)
  order = np.random.default_rng(config.seed).permutation(len(source))
  held_out = min(_HELD_OUT, len(source) // 10)
  steps = _EPOCHS.value * (len(source) - held_out) // _BATCH
  if not held_out or not steps:
    raise UserError(f"{len(source)} images are too few for a classifier: give more, or raise --epochs")
  numbers = factory.numbers(config)
  test = Loader(Subset(source, order[:held_out]), config.seed, False, numbers).examples(np.arange(held_out))
  loader = Loader(Subset(source, order[held_out:]), config.seed, config.data.x_flip, numbers)
  params = residual_cnn.train(_batches(loader), steps, test["image"].shape[1:], classes, config.seed)
  accuracy = float(np.mean(residual_cnn.classify(params, test["image"]) == test["label"]))
  residual_cnn.save(out, params, test["image"].shape[1:], classes, accuracy)
  print(f"accuracy on {held_out:,} images held out: {accuracy:.2%}: {out}")


def _batches(loader: Loader) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  for start in count(step=_BATCH):
    examples = loader.examples(np.arange(start, start + _BATCH))
    yield examples["image"], examples["label"]


if __name__ == "__main__":
  run(main)
