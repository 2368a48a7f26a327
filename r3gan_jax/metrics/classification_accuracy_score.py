"""The classification accuracy score: how well a classifier that learns from samples does on test images."""

from collections.abc import Iterator

import numpy as np

from r3gan_jax.metrics import residual_cnn
from r3gan_jax.metrics.classification import LabelledImages
from r3gan_jax.metrics.feature_extractor import ImageSet

STEPS = 2000
"""Updates of the classifier: 5 passes over 50,000 images."""

_BATCH = 128
_PART = 500


class ClassificationAccuracyScore:
  """Trains `metrics.residual_cnn` on samples, and on as many real images for comparison.

  The paper trains a ResNet-50 on ImageNet. A smaller classifier has other scores: they compare only by the same one.
  Unlike FID within classes it shows what samples lack: variety that the test images need. It keeps the samples in
  memory.

  Args:
    real: training images with their classes.
    test: the images that are classified.
    classes: their number.

  References:
    Ravuri and Vinyals, Classification Accuracy Score for Conditional Generative Models, 2019.
  """

  def __init__(self, real: ImageSet, test: LabelledImages, classes: int):
    self._real, self._test, self._classes = real, test, classes
    self._of_real: dict[int, float] = {}

  def __call__(self, fake: ImageSet, seed: int = 0) -> dict[str, float]:
    """Returns 'cas' and 'real_cas', the fraction of right classes in [0, 1], 'cas_num_fake' and 'cas_test_images'.

    Args:
      fake: samples with the classes that they were asked to have.
      seed: for the classifiers' initialisation, and the order of images.
    """
    size = min(fake.size, self._real.size)
    if size not in self._of_real:
      self._of_real[size] = self._score(self._real.thinned(size), seed)
    return {
      "cas": self._score(fake, seed),
      "real_cas": self._of_real[size],
      "cas_num_fake": fake.size,
      "cas_test_images": len(self._test.chosen),
    }

  def _score(self, training: ImageSet, seed: int) -> float:
    params = residual_cnn.train(_batches(training, seed), STEPS, training.shape, self._classes, seed)
    everything = np.arange(self._test.images.size)
    parts = np.array_split(everything, -(-len(everything) // _PART))
    found = [residual_cnn.classify(params, self._test.images.images(part)) for part in parts]
    return float(np.mean(np.concatenate(found) == self._test.labels))


def _batches(training: ImageSet, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields batches of passes over the images without end, each in another order; the rest of a pass is dropped."""
  assert training.labels
  parts = np.array_split(np.arange(training.size), -(-training.size // _PART))
  images, labels = (np.concatenate([read(part) for part in parts]) for read in (training.images, training.labels))
  random, size = np.random.default_rng(seed), min(_BATCH, training.size)
  while True:
    order = random.permutation(training.size)
    for batch in order[: training.size // size * size].reshape(-1, size):
      yield images[batch], labels[batch]
