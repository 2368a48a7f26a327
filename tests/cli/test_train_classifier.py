"""The command as a user runs it, on scikit-learn's digits."""

import numpy as np
from helpers.image_files import idx

from r3gan_jax.data.prepare import prepare_idx
from r3gan_jax.data.stacked import load_small_digits
from r3gan_jax.metrics import digits_cnn


def test_it_trains_tests_and_saves(command, tmp_path):
  images, labels = load_small_digits()
  images = np.pad(images.repeat(3, 1).repeat(3, 2), ((0, 0), (2, 2), (2, 2)))  # 28x28 with empty margins, as MNIST
  for split, chosen in (("train", slice(1400)), ("t10k", slice(1400, None))):
    (tmp_path / f"{split}-images-idx3-ubyte").write_bytes(idx(images[chosen]))
    (tmp_path / f"{split}-labels-idx1-ubyte").write_bytes(idx(labels[chosen].astype(np.uint8)))
  prepare_idx(tmp_path, "mnist", tmp_path / "data")
  out = tmp_path / "classifier.npz"
  done = command("train_classifier", f"--data_path={tmp_path / 'data'}", f"--out={out}", "--epochs=2")
  params, accuracy = digits_cnn.load(out)
  assert done.stdout == f"accuracy on 397 test images: {accuracy:.2%}: {out}\n"
  predicted = digits_cnn.classify(params, np.pad(images[1400:], ((0, 0), (2, 2), (2, 2))))
  np.testing.assert_allclose(np.mean(predicted == labels[1400:]), accuracy, atol=0.01)
  assert accuracy > 0.6


def test_no_data_set(refused, tmp_path):
  error = refused("train_classifier", f"--data_path={tmp_path}")
  assert error.startswith("data set 'mnist' is not prepared under") and "--idx=" in error
