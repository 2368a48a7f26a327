from functools import partial

import numpy as np

from r3gan_jax.data.stacked import StackedSource, load_small_digits
from r3gan_jax.metrics import digits_svm
from r3gan_jax.metrics.feature_extractor import ImageSet
from r3gan_jax.metrics.modes import ModeCoverage, mode_statistics


def test_statistics_by_hand():
  assert mode_statistics(np.ones(1000, int)) == (1000, 0.0)
  modes, kl = mode_statistics(np.bincount([3, 3, 3, 3], minlength=1000))
  assert modes == 1
  np.testing.assert_allclose(kl, np.log(1000))
  modes, kl = mode_statistics(np.array([1, 3]))
  assert modes == 2
  np.testing.assert_allclose(kl, 0.25 * np.log(0.5) + 0.75 * np.log(1.5))


def test_real_digits_cover_all_modes():
  digits, labels = load_small_digits()
  machine, accuracy = digits_svm.train(digits, labels)
  assert accuracy >= 0.97
  source = StackedSource(digits)
  real = ImageSet("real", 26_000, (8, 8, 3), lambda indices: source[indices]["image"])
  one = ImageSet("fake", 100, (8, 8, 3), lambda indices: source[0 * indices]["image"])
  scores = ModeCoverage(partial(digits_svm.classify, machine), real)(one)
  assert scores["modes"] == 1 and scores["modes_samples"] == 100
  np.testing.assert_allclose(scores["modes_kl"], np.log(1000))
  assert scores["real_modes"] == 1000 and scores["real_modes_samples"] == 26_000
  # The KL of 26,000 uniform draws over 1000 modes is about 999 / 52,000.
  assert 0.01 < scores["real_modes_kl"] < 0.04


def test_channels_are_hundreds_tens_and_ones():
  images = np.zeros((1, 2, 2, 3), np.uint8)
  images[..., :] = [1, 2, 3]
  seen = []

  def classifier(digits):
    seen.append(digits.shape)
    return digits[:, 0, 0].astype(int)

  one = ImageSet("real", 1, (2, 2, 3), images.__getitem__)
  coverage = ModeCoverage(classifier, one)
  assert not seen, "nothing is computed before it is asked for"
  assert coverage(one)["real_modes"] == 1
  assert seen == [(3, 2, 2)] * 2
