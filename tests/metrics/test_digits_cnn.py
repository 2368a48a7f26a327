"""The CNN, on scikit-learn's digits, enlarged to 32x32; cli/test_train_classifier.py trains it."""

import jax
import numpy as np
import pytest

from r3gan_jax.data.stacked import load_small_digits
from r3gan_jax.errors import UserError
from r3gan_jax.metrics import digits_cnn
from r3gan_jax.metrics.features import resize
from r3gan_jax.pretrained import build_feature_network


@pytest.fixture(scope="module")
def digits():
  images, labels = load_small_digits()
  return images.repeat(4, 1).repeat(4, 2), labels


@pytest.fixture(scope="module")
def params(digits):
  return jax.jit(digits_cnn.DigitsCNN().init)(jax.random.key(0), digits[0][:1, ..., None])["params"]


def test_it_is_saved_and_loaded_as_the_feature_network_of_stacked_digits(digits, params, tmp_path):
  path = tmp_path / "cache" / "digits-cnn-small.npz"
  digits_cnn.save(path, params, 0.75)
  assert digits_cnn.load(path)[1] == 0.75
  network = build_feature_network("digits", weights=path)
  assert (network.name, network.resize) == ("digits-cnn-small", "pytorch")
  stacked = np.moveaxis(digits[0][:6].reshape(2, 3, 32, 32), 1, -1)
  run = jax.jit(network.apply)
  found = run(network.params, stacked)
  assert found["features"].shape == (2, 3 * 64) and found["logits"].shape == (2, 3, 10)
  np.testing.assert_array_equal(np.argmax(found["logits"], -1).ravel(), digits_cnn.classify(params, digits[0][:6]))
  bordered = np.pad(stacked[:, 2:-2, 2:-2], ((0, 0), (2, 2), (2, 2), (0, 0)))
  unpadded, padded = (run(network.params, images) for images in (bordered[:, 2:-2, 2:-2], bordered))
  np.testing.assert_array_equal(unpadded["features"], padded["features"])
  small = stacked[:, ::2, ::4]
  resized = run(network.params, resize(small, 32, "pytorch"))
  np.testing.assert_array_equal(run(network.params, small)["features"], resized["features"])
  one = run(network.params, stacked[1:, ..., 2:])
  np.testing.assert_allclose(found["features"][1, 128:], one["features"][0], rtol=1e-4, atol=1e-5)


def test_bad_input(tmp_path):
  with pytest.raises(UserError, match=r"none\.npz does not exist: .*r3gan_jax\.cli\.train_classifier"):
    build_feature_network("digits", weights=tmp_path / "none.npz")
  (tmp_path / "broken.npz").write_text("no weights")
  with pytest.raises(UserError, match=r"broken\.npz cannot be read .*r3gan_jax\.cli\.train_classifier"):
    digits_cnn.load(tmp_path / "broken.npz")
  with pytest.raises(UserError, match="feature network 'resnet' is unknown: choose from"):
    build_feature_network("resnet")
  with pytest.raises(UserError, match="resize 'nearest' is unknown"):
    build_feature_network("inception", "nearest")
