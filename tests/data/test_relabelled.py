import numpy as np
import pytest

from r3gan_jax.data.loader import Loader
from r3gan_jax.data.relabelled import RelabelledSource, transition_matrix
from r3gan_jax.errors import UserError

CIFAR10_PAIRS = ((9, 1), (2, 0), (4, 7), (3, 5), (5, 3))


class Classes:
  """Images of 10 classes, in turn or given by `labels`; image i is filled with i, its left column with 255."""

  classes = tuple("abcdefghij")

  def __init__(self, size, labels=None):
    self.labels = (np.arange(size) % 10 if labels is None else np.array(labels)).astype(np.int32)
    self.read = 0

  def __len__(self):
    return len(self.labels)

  def __getitem__(self, indices):
    self.read += len(indices)
    images = np.broadcast_to((indices % 250)[:, None, None, None], (len(indices), 2, 2, 1)).astype(np.uint8)
    images[:, :, 0] = 255
    return {"image": images, "label": self.labels[indices]}


def labels(source):
  return source[np.arange(len(source))]["label"]


@pytest.mark.parametrize("share, repeats", [(0.0, 1), (0.01, 1), (0.5, 4), (0.75, 12)])
def test_labelled_images_are_repeated_to_their_share(share, repeats):
  source = RelabelledSource(Classes(100), 10, 0.0, (), 20, share)
  images = source[np.arange(len(source))]
  (kept,) = np.nonzero(images["label"][:100] >= 0)
  labelled = images["label"] >= 0
  found = images["image"][labelled, 0, 1, 0]
  np.testing.assert_array_equal(np.sort(found), np.repeat(kept, repeats))
  np.testing.assert_array_equal(images["label"][labelled], found % 10)
  assert share <= 0.2 or labelled.mean() == share


def noisy(size=100, noise=0.5, pairs=(), labelled_images=0):
  return RelabelledSource(Classes(size), 10, noise, pairs, labelled_images)


def test_transition_matrix():
  matrix = transition_matrix(10, 0.5)
  assert matrix.dtype == np.float64
  np.testing.assert_allclose(np.diag(matrix), 0.55, rtol=1e-15)
  np.testing.assert_allclose(matrix[~np.eye(10, dtype=bool)], 0.05, rtol=1e-15)
  np.testing.assert_array_equal(transition_matrix(10, 0), np.eye(10))
  np.testing.assert_allclose(transition_matrix(4, 1), 0.25)
  matrix = transition_matrix(10, 0.7, CIFAR10_PAIRS)
  assert (matrix[9, 1], matrix[1, 9], matrix[3, 5], matrix[5, 3]) == (0.7, 0, 0.7, 0.7)
  # The fraction of images labelled 1 that are of class 1: 1 / 1.7.
  np.testing.assert_allclose(matrix[1, 1] / matrix[:, 1].sum(), 0.5882, atol=5e-5)
  np.testing.assert_array_equal(matrix[[0, 1, 6, 7, 8]], np.eye(10)[[0, 1, 6, 7, 8]])
  for noise in (0, 0.1, 0.3, 0.7, 1):
    for pairs in ((), CIFAR10_PAIRS):
      np.testing.assert_allclose(transition_matrix(10, noise, pairs).sum(axis=1), 1, rtol=1e-15)


@pytest.mark.parametrize("pairs", [(), CIFAR10_PAIRS])
def test_noisy_labels_follow_the_transition_matrix(pairs):
  size = 200_000
  source = noisy(size, 0.7, pairs)
  counts = np.zeros((10, 10))
  np.add.at(counts, (np.arange(size) % 10, labels(source)), 1)
  matrix = transition_matrix(10, 0.7, pairs)
  # 20,000 of each class: a frequency has a standard deviation of at most 0.0035.
  np.testing.assert_allclose(counts / (size / 10), matrix, atol=0.015)
  np.testing.assert_array_equal(counts[matrix == 0], 0)  # clean classes stay clean
  assert labels(source).dtype == np.int32


def test_the_label_of_an_image_does_not_depend_on_how_it_is_read():
  whole = labels(noisy(1000, labelled_images=500))
  scattered = np.random.default_rng(0).permutation(1000)
  np.testing.assert_array_equal(noisy(1000, labelled_images=500)[scattered]["label"], whole[scattered])
  source = noisy(1000, labelled_images=500)
  assert [int(source[np.array([index])]["label"][0]) for index in range(100)] == whole[:100].tolist()
  # An image's noise does not depend on the rest of the data.
  np.testing.assert_array_equal(labels(noisy(500)), labels(noisy(1000))[:500])


def test_labels_are_the_same_in_all_epochs_and_seeds_mirrored_or_not():
  expected = labels(noisy(40, labelled_images=30))
  for seed in (0, 1):
    loader = Loader(noisy(40, labelled_images=30), seed, x_flip=True)
    examples = loader.examples(np.arange(240))  # three epochs
    mirrored = examples["image"][:, 0, 0, 0] != 255
    assert mirrored.sum() == 120
    images = np.where(mirrored, examples["image"][:, 0, 0, 0], examples["image"][:, 0, -1, 0])
    np.testing.assert_array_equal(examples["label"], expected[images])


def test_labelled_images_are_balanced():
  random = np.random.default_rng(0).integers(0, 10, 5000)
  clean = Classes(5000, random)
  source = RelabelledSource(clean, 10, 0.0, (), 123)
  kept = labels(source)
  # 12 of each, and one more of the first three.
  assert np.bincount(kept[kept >= 0]).tolist() == [13] * 3 + [12] * 7 and (kept == -1).sum() == 5000 - 123
  np.testing.assert_array_equal(kept[kept >= 0], random[kept >= 0])
  assert source.classes == clean.classes and len(source) == 5000
  assert np.flatnonzero(kept >= 0).max() > 4000  # from all over the data


def test_only_as_many_images_are_read_as_needed():
  source = Classes(5000)
  RelabelledSource(source, 10, 0.5, (), 0)
  assert source.read == 0
  RelabelledSource(source, 10, 0.5, (), 20)
  assert 0 < source.read <= 256


def test_kept_labels_are_noisy_and_the_source_stays_clean():
  clean = Classes(1000)
  labels(RelabelledSource(clean, 10, 0.5, (), 200))
  np.testing.assert_array_equal(labels(clean), np.arange(1000) % 10)
  with_all, with_some = labels(noisy(1000)), labels(noisy(1000, labelled_images=200))
  kept = with_some >= 0
  assert kept.sum() == 200 and np.bincount(np.arange(1000)[kept] % 10).tolist() == [20] * 10
  np.testing.assert_array_equal(with_some[kept], with_all[kept])
  assert (with_some[kept] != np.arange(1000)[kept] % 10).any()


@pytest.mark.parametrize(
  "settings, message",
  [
    ({"num_classes": 0}, r"config.data.num_classes = 0: .*label_noise"),
    ({"noise": 1.5}, r"config.data.label_noise = 1.5 must lie between 0 and 1"),
    ({"noise": float("nan")}, r"config.data.label_noise = nan must lie"),
    ({"pairs": ((0, 1), (10, 2))}, r"label_noise_pairs: \(10, 2\) must be \(from, to\), .* from 0 to 9"),
    ({"pairs": ((0, -1),)}, r"label_noise_pairs: \(0, -1\) must be"),
    ({"pairs": ((3, 3),)}, r"label_noise_pairs: \(3, 3\) must be .* two different classes"),
    ({"pairs": (9, 1)}, r"label_noise_pairs: 9 must be \(from, to\)"),
    ({"pairs": ((0, 1), (0, 2))}, r"label_noise_pairs = \(\(0, 1\), \(0, 2\)\): give at most one"),
    ({"labelled_images": 9}, r"labelled_images = 9 must lie between config.data.num_classes = 10 and .* images, 100"),
    ({"labelled_images": 101}, r"labelled_images = 101 must lie .* images, 100"),
    ({"labelled_images": -1}, r"labelled_images = -1 must lie"),
  ],
)
def test_refusals(settings, message):
  with pytest.raises(UserError, match=message):
    RelabelledSource(Classes(100), **{"num_classes": 10, "noise": 0.5, "pairs": (), "labelled_images": 0} | settings)


def test_too_few_images_of_a_class_are_refused():
  few = [7, *(label for label in range(10) if label != 7 for _ in range(11))]
  with pytest.raises(UserError, match=r"= 20 needs 2 images of class 7, but there are only 1"):
    RelabelledSource(Classes(100, few), 10, 0.0, (), 20)
