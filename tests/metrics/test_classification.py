"""The error of a run's own networks, by hand and against a loop over all pairs."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.meshes import mesh_of

from r3gan_jax.metrics.classification import (
  CATEGORIES,
  CLASSES,
  CODES,
  ClassificationError,
  labelled_images,
  named,
  nearest,
)

# Images of 1x1, whose two channels are whatever the networks "see".
TRAINING = np.array([(0, 0), (200, 0), (0, 100), (10, 0), (190, 0), (180, 10), (0, 130)], np.uint8)
TEST = np.array([(20, 0), (210, 0), (0, 90), (0, 250), (160, 0)], np.uint8)


@dataclasses.dataclass
class Pixels:
  values: np.ndarray
  labels: list

  def __len__(self):
    return len(self.values)

  def __getitem__(self, indices):
    return {"image": self.values[indices][:, None, None], "label": np.array(self.labels, np.int32)[indices]}


def error_of(kind, outputs, networks, devices=1, training_labels=(0, 1, 2, 0, 1, 1, 2), most=None):
  test = labelled_images("test", Pixels(TEST, [0, 1, 2, 1, 0]), (1, 1, 2))
  training = labelled_images("training", Pixels(TRAINING, list(training_labels)), (1, 1, 2), most)
  return ClassificationError(outputs, kind, mesh_of(devices), 2, test, training)(networks)


def pixels(networks, images):
  return images[:, 0, 0] * networks


@pytest.mark.parametrize("devices", [1, 2])
def test_codes_have_the_class_of_the_nearest(devices):
  """The nearest are the images 3, 1, 2, 6 and 5, of the classes 0, 1, 2, 2 and 1: two of five are wrong."""
  numbers = error_of(CODES, pixels, jnp.ones((1, 2)), devices)
  assert numbers == {
    "classification_error": 0.4,
    "classification_error_test_images": 5,
    "classification_error_training_images": 7,
  }
  # Without the first channel the nearest are the first of equals, 0, for all but the two with a second one.
  assert error_of(CODES, pixels, jnp.array([[0.0, 1.0]]), devices)["classification_error"] == 0.4
  # Of the images 0, 3 and 6 alone, the classes are 0, 0, 2, 2, 0.
  some = error_of(CODES, pixels, jnp.ones((1, 2)), devices, most=3)
  assert (some["classification_error"], some["classification_error_training_images"]) == (0.4, 3)


def categories(networks, images):
  """Logits of four categories: dark, bright in the first channel, bright in the second, and none."""
  x = images[:, 0, 0] + 1
  return jnp.stack([jnp.full(len(x), 0.15), x[:, 0], x[:, 1], jnp.full(len(x), -1.0)], axis=1) * networks


def test_categories_have_the_name_of_their_most_frequent_class():
  """They are 0 1 2 0 1 1 2 in training, and 1 1 2 2 1 of the test images."""
  assert error_of(CATEGORIES, categories, 1.0)["classification_error"] == 0.6
  # The same categories with other labels have other names: 0 is 1, 1 is 2, 2 is 0.
  assert error_of(CATEGORIES, categories, 1.0, training_labels=(1, 2, 0, 1, 2, 2, 0))["classification_error"] == 1.0


def test_names_by_hand():
  known, labels = np.array([0, 0, 0, 2, 2, 1]), np.array([5, 5, 1, 1, 1, 1])
  np.testing.assert_array_equal(named(np.array([0, 1, 2, 2, 3]), known, labels), [5, 1, 1, 1, 0])


def test_logits_of_classes():
  numbers = error_of(CLASSES, categories, 1.0)
  assert numbers == {"classification_error": 0.6, "classification_error_test_images": 5}


@pytest.mark.parametrize("block", [3, 8, 100])
def test_the_nearest_code_against_all_pairs(block):
  """Far from the origin, with parts that are not full; of equals, the first."""
  random = np.random.default_rng(0)
  codes, known = (random.standard_normal((n, 5)).astype(np.float32) + 30 for n in (10, 17))
  known[8:16] = known[:8]
  distances = np.linalg.norm(codes[:, None].astype(np.float64) - known[None], axis=2)
  labels = np.arange(17) * 3
  np.testing.assert_array_equal(nearest(codes, known, labels, block), labels[distances.argmin(axis=1)])
