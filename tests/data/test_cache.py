import numpy as np

from r3gan_jax.data.cache import cached
from r3gan_jax.data.generated import GeneratedSource


class Counting:
  """A source of 10 images of 8x8x3 that counts the reads of each."""

  classes = ()

  def __init__(self):
    self._source = GeneratedSource((8, 8), 3, num_classes=5, count=10)
    self.reads = np.zeros(10, int)

  def __len__(self):
    return 10

  def __getitem__(self, indices):
    np.add.at(self.reads, indices, 1)
    return self._source[indices]


def test_each_example_is_read_once():
  source = Counting()
  caching = cached(source, limit_gib=1)
  source.reads[:] = 0
  for indices in ([3, 1, 3], [1, 2], [3, 9, 2]):
    examples, expected = caching[np.array(indices)], GeneratedSource((8, 8), 3, 5, 10)[np.array(indices)]
    np.testing.assert_array_equal(examples["image"], expected["image"])
    np.testing.assert_array_equal(examples["label"], expected["label"])
  np.testing.assert_array_equal(source.reads, [0, 1, 1, 1, 0, 0, 0, 0, 0, 1])
  examples["image"][:] = 0  # a copy: the loader flips in place
  np.testing.assert_array_equal(caching[np.array([3])]["image"], expected["image"][:1])


def test_a_source_larger_than_the_limit_is_not_cached():
  size = 10 * (8 * 8 * 3 + 4)
  source = Counting()
  assert cached(source, limit_gib=(size - 1) / 2**30) is source
  assert cached(source, limit_gib=size / 2**30) is not source
