"""Trains the small classifier that is the feature network of (stacked) MNIST:

    python -m r3gan_jax.cli.train_classifier --data_path=DIRECTORY --name=mnist

The data set is a prepared one of 10 classes and at most 32x32 pixels. Trains on the split "train", in minutes on two
cores, prints the accuracy on the split "test", and saves an .npz.
"""

from r3gan_jax.memory import keep_memory

if __name__ == "__main__":
  keep_memory()

from pathlib import Path

import numpy as np
from absl import flags

from r3gan_jax.cli.shared.outputs import output_path
from r3gan_jax.cli.shared.runner import run
from r3gan_jax.comparison import classifier_path
from r3gan_jax.data.images import Decoder
from r3gan_jax.data.source import Examples
from r3gan_jax.data.tfds import TfdsSource
from r3gan_jax.metrics import digits_cnn

_NAME = flags.DEFINE_string("name", "mnist", "The --name given to prepare_data, e.g. mnist or fashion_mnist.")
_DATA_PATH = flags.DEFINE_string("data_path", "", "The directory of prepared data sets; default: TFDS's.")
_EPOCHS = flags.DEFINE_integer("epochs", 3, "Passes over the training images.", lower_bound=1)
_OUT = flags.DEFINE_string(
  "out", None, "The .npz to write; default: in the user's cache, where the metrics look for it."
)


def main() -> None:
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


if __name__ == "__main__":
  run(main)
