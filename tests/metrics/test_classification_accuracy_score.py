"""The classification accuracy score on images of which a classifier learns everything in a few steps."""

import jax
import numpy as np
import pytest

from r3gan_jax.metrics import classification_accuracy_score
from r3gan_jax.metrics.classification import labelled_images
from r3gan_jax.metrics.classification_accuracy_score import ClassificationAccuracyScore
from r3gan_jax.metrics.feature_extractor import ImageSet

SHAPE = (4, 4, 1)


def images_of(labels, seed):
  """Noise that is darker in the upper half (class 0), the lower half (1), or neither (2)."""
  images = np.random.default_rng(seed).integers(100, 256, (len(labels), *SHAPE))
  images[labels == 0, :2] -= 90
  images[labels == 1, 2:] -= 90
  return images.astype(np.uint8)


class Test:
  """A source of labelled images."""

  labels = np.arange(90) % 3
  images = images_of(labels, seed=0)

  def __len__(self):
    return len(self.labels)

  def __getitem__(self, indices):
    return {"image": self.images[indices], "label": self.labels[indices]}


def image_set(name, labels, images):
  return ImageSet(name, len(labels), SHAPE, images.__getitem__, labels=labels.__getitem__)


@pytest.fixture
def score(monkeypatch):
  monkeypatch.setattr(classification_accuracy_score, "STEPS", 60)
  labels = np.repeat(np.arange(3), 200)
  real = image_set("real", labels, images_of(labels, seed=1))
  with jax.numpy_dtype_promotion("standard"):  # for Optax's Adam
    yield ClassificationAccuracyScore(real, labelled_images("test", Test(), SHAPE), classes=3)


def test_samples_are_as_good_as_what_can_be_learnt_from_them(score):
  labels = np.arange(300) % 3
  images = images_of(labels, seed=2)
  good = score(image_set("fake", labels, images))
  assert good == {"cas": 1.0, "real_cas": 1.0, "cas_num_fake": 300, "cas_test_images": 90}
  # Classes 0 and 1 exchanged: a third is right.
  exchanged = score(image_set("fake", np.array([1, 0, 2])[labels], images))
  assert exchanged["cas"] == pytest.approx(1 / 3, abs=0.05) and exchanged["real_cas"] == 1.0
  # No sample of class 2: its test images are taken for others.
  assert score(image_set("fake", labels[labels < 2], images[labels < 2]))["cas"] == pytest.approx(2 / 3, abs=0.05)


def test_the_real_images_themselves_have_their_own_score(score):
  """Few, in few steps: neither is perfect, and both are the same, whatever samples were scored before."""
  classification_accuracy_score.STEPS = 4
  labels = np.repeat(np.arange(3), 200)
  chosen = np.linspace(0, 599, 50).astype(int)  # as the comparison is thinned
  result = score(image_set("fake", labels[chosen], images_of(labels, seed=1)[chosen]), seed=3)
  assert 0.2 < result["cas"] == result["real_cas"] < 1
