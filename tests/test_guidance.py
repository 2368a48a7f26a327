"""A classifier is trained on a recipe's data, guides a run and aligns its critic, as a user does it: on 8x8 digits."""

import re

import jax
import numpy as np
import pytest
from helpers.states import final_state
from PIL import Image

from configs import fashion_mnist
from r3gan_jax import factory
from r3gan_jax.data.stacked import load_small_digits
from r3gan_jax.errors import UserError
from r3gan_jax.metrics import residual_cnn


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
  """The data: a folder of scikit-learn's digits with a directory per class."""
  folder = tmp_path_factory.mktemp("digits")
  for index, (image, label) in enumerate(zip(*load_small_digits(), strict=True)):
    (folder / str(label)).mkdir(exist_ok=True)
    Image.fromarray(image).save(folder / str(label) / f"{index}.png")
  return (
    *("--config=configs/fashion_mnist.py", "--config.data.source=folder", f"--config.run.data_path={folder}"),
    *("--config.data.resolution=8", "--config.data.x_flip=False"),
  )


@pytest.fixture(scope="module")
def trained(command, flags, tmp_path_factory):
  """Returns (the classifier's file, what the command said)."""
  out = tmp_path_factory.mktemp("classifier") / "digits.npz"
  return out, command("train_classifier", *flags, f"--out={out}", "--epochs=5").stdout


def test_its_accuracy(trained):
  """On images that it has not seen, as the command says, and on all; floats are the same images."""
  out, said = trained
  accuracy = float(re.fullmatch(rf"accuracy on 179 images held out: (.*)%: {out}\n", said)[1]) / 100
  assert accuracy > 0.7
  params = residual_cnn.load(out, (8, 8, 1), 10)
  images, labels = load_small_digits()
  predicted = residual_cnn.classify(params, images[..., None])
  assert np.mean(predicted == labels) > 0.7
  as_float = images[..., None].astype(np.float32) / 127.5 - 1
  assert np.mean(residual_cnn.classify(params, as_float) == predicted) > 0.99


def test_a_guided_run_resumes_bit_for_bit(command, flags, trained, tmp_path):
  gan = {"widths": (8, 8), "cardinalities": (2, 2), "blocks": (1, 1), "augment_p": 0.0}
  gan |= {"guidance_classifier": trained[0], "guidance_weight": 0.5}
  gan |= {"alignment_network": trained[0], "alignment_weight": 0.5}

  def train(run, images):
    command(
      *("main", *flags, f"--workdir={tmp_path / run}", "--config.batch_size=8", f"--config.run.total_images={images}"),
      *(f"--config.gan.{name}={value}" for name, value in gan.items()),
      *("--config.run.grid=(2,2)", "--config.run.log_every_images=8"),
    )

  train("whole", 32)
  train("parts", 16)
  train("parts", 32)
  whole, parts = (final_state(tmp_path / run) for run in ("whole", "parts"))
  jax.tree.map(np.testing.assert_array_equal, whole, parts)
  assert "alignment" in whole.params["discriminator"] and whole.params.keys() == {"generator", "discriminator"}
  log = (tmp_path / "whole" / "metrics.jsonl").read_text()
  assert "generator/cross_entropy" in log and "discriminator/alignment" in log


def test_latents_of_any_size_and_channels():
  """float32 [N, 6, 9, 5], whose class is the sign of a channel's mean."""
  random = np.random.default_rng(0)
  images = random.standard_normal((512, 6, 9, 5)).astype(np.float32) / 2
  labels = (images[..., 3].mean((1, 2)) > 0).astype(np.int32)
  batches = ((images[at : at + 64], labels[at : at + 64]) for _ in range(8) for at in range(0, 448, 64))
  with jax.numpy_dtype_promotion("standard"):  # for Optax's Adam
    params = residual_cnn.train(batches, 56, (6, 9, 5), 2)
  assert np.mean(residual_cnn.classify(params, images[448:]) == labels[448:]) > 0.8


@pytest.mark.parametrize(
  "data, message",
  [
    ({"resolution": 16}, "is for images of (8, 8, 1), but the run has (16, 16, 1): train one"),
    ({"channels": 3}, "is for images of (8, 8, 1), but the run has (8, 8, 3): train one"),
    ({"num_classes": 7}, "is for a number of classes of 10, but the run has 7: train one"),
  ],
)
def test_a_classifier_of_other_data_is_refused(trained, data, message):
  stages = 3 if data.get("resolution") == 16 else 2
  config = fashion_mnist.get_config()
  config.data.update({"resolution": 8} | data)
  config.gan.update(dict.fromkeys(("widths", "cardinalities", "blocks"), (1,) * stages))
  config.gan.update({"guidance_classifier": str(trained[0]), "guidance_weight": 1.0})
  with pytest.raises(
    UserError, match=re.escape(f"config.gan.guidance_classifier = '{trained[0]}': {trained[0]} {message}")
  ):
    factory.build_experiment(config, 1)


def test_bad_input(refused, flags, tmp_path):
  unlabelled = (*flags, "--config.data.num_classes=0", f"--out={tmp_path / 'a.npz'}")
  assert "config.data.num_classes = 0" in refused("train_classifier", *unlabelled)
  assert "--config needs --out" in refused("train_classifier", *flags)
