import numpy as np

from r3gan_jax.data.stacked import StackedSource, load_small_digits
from r3gan_jax.metrics.digit_classifier import DigitClassifier
from r3gan_jax.metrics.modes import ModeCoverage, mode_statistics


def test_statistics_by_hand():
  assert mode_statistics(np.arange(1000)) == (1000, 0.0)
  modes, kl = mode_statistics(np.array([3, 3, 3, 3]))
  assert modes == 1
  np.testing.assert_allclose(kl, np.log(1000))
  modes, kl = mode_statistics(np.array([0, 1, 1, 1]), num_modes=2)
  assert modes == 2
  np.testing.assert_allclose(kl, 0.25 * np.log(0.5) + 0.75 * np.log(1.5))


def test_real_digits_cover_all_modes():
  digits, labels = load_small_digits()
  classifier = DigitClassifier(digits, labels)
  assert classifier.accuracy >= 0.97
  source = StackedSource(digits)
  scores = ModeCoverage(classifier, num_samples=26_000)(lambda seeds: source[seeds]["image"])
  assert scores["modes"] == 1000 and scores["modes_samples"] == 26_000
  # KL of 26 000 uniform draws over 1000 modes: about 999 / 52 000.
  assert 0.01 < scores["modes_kl"] < 0.04


def test_channels_are_hundreds_tens_and_ones():
  images = np.zeros((1, 2, 2, 3), np.uint8)
  images[..., :] = [1, 2, 3]
  seen = []

  def classifier(digits):
    seen.append(digits.shape)
    return digits[:, 0, 0].astype(int)

  coverage = ModeCoverage(classifier, num_samples=1)
  assert coverage(lambda seeds: images)["modes"] == 1
  assert seen == [(3, 2, 2)]
