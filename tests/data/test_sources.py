import numpy as np
import pytest

from configs import cifar10, stacked_digits
from r3gan_jax import factory
from r3gan_jax.data.generated import GeneratedSource
from r3gan_jax.data.stacked import StackedSource, load_small_digits
from r3gan_jax.errors import UserError
from r3gan_jax.sources import of_single_digits


def test_stacked_digits_are_three_real_digits():
  digits, labels = load_small_digits()
  assert digits.shape == (1797, 8, 8) and digits.dtype == np.uint8 and digits.max() == 255
  assert set(labels) == set(range(10))
  source = StackedSource(digits, size=3000)
  images = source[np.arange(3000)]["image"]
  assert images.shape == (3000, 8, 8, 3)
  known = {digit.tobytes(): label for digit, label in zip(digits, labels, strict=True)}
  modes = [tuple(known[image[..., c].tobytes()] for c in range(3)) for image in images]
  # 3000 draws of 1000 equally likely modes hit 950 +- 7.
  assert 900 < len(set(modes)) < 1000
  np.testing.assert_array_equal(source[np.array([7, 2])]["image"], images[[7, 2]])


def test_single_digits_of_a_recipe_of_stacked_ones():
  config = stacked_digits.get_config()
  source = factory.build_source(of_single_digits(config))
  examples = source[np.array([1796, 0])]
  digits, labels = load_small_digits()
  np.testing.assert_array_equal(examples["image"][..., 0], digits[[1796, 0]])
  np.testing.assert_array_equal(examples["label"], labels[[1796, 0]])
  assert len(source) == 1797 and source.classes[3] == "3"
  assert config.data.source == "stacked_digits" and config.data.channels == 3
  config.data.resolution = 16
  with pytest.raises(UserError, match=r"config\.data\.resolution = 16: scikit-learn's digits need 8"):
    factory.build_source(config)
  other = cifar10.get_config()
  assert of_single_digits(other) is other


def test_generated_images():
  source = GeneratedSource((16, 16), 2, num_classes=5)
  examples = source[np.array([3, 3, 4])]
  assert examples["image"].shape == (3, 16, 16, 2) and examples["image"].dtype == np.uint8
  np.testing.assert_array_equal(examples["image"][0], examples["image"][1])
  assert set(source[np.arange(len(source))]["label"]) == set(range(5))
  assert "label" not in GeneratedSource((16, 16), 3, 0)[np.array([0])]
