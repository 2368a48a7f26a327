import itertools

import numpy as np
import pytest

from r3gan_jax.data.loader import Loader
from r3gan_jax.training.mesh import batch_sharding, make_mesh


class Numbered:
  """Image i is filled with i, its left column with 255 - i."""

  def __init__(self, size):
    self._size = size

  def __len__(self):
    return self._size

  def __getitem__(self, indices):
    images = np.broadcast_to(indices[:, None, None, None], (len(indices), 4, 4, 1)).astype(np.uint8)
    images[:, :, 0] = 255 - images[:, :, 0]
    return {"image": images, "label": indices.astype(np.int32)}


def test_an_epoch_holds_everything_once_and_each_epoch_is_shuffled_anew():
  loader = Loader(Numbered(10), seed=0, x_flip=False)
  order = loader.indices(0, 30).reshape(3, 10)
  for epoch in order:
    assert sorted(epoch) == list(range(10))
  assert (order[0] != order[1]).any() and (order[0] != np.arange(10)).any()
  assert (order != Loader(Numbered(10), seed=1, x_flip=False).indices(0, 30).reshape(3, 10)).any()


def test_the_order_does_not_depend_on_how_it_is_read():
  loader = Loader(Numbered(7), seed=0, x_flip=True)
  whole = loader.indices(0, 100)
  pieces = [Loader(Numbered(7), seed=0, x_flip=True).indices(start, 9) for start in range(0, 90, 9)]
  np.testing.assert_array_equal(np.concatenate(pieces), whole[:90])


def test_x_flip_doubles_the_epoch_by_mirror_images():
  examples = Loader(Numbered(5), seed=0, x_flip=True).examples(0, 10)
  assert sorted(examples["label"]) == sorted([*range(5)] * 2)
  left, right = examples["image"][:, 0, 0, 0], examples["image"][:, 0, -1, 0]
  mirrored = right == 255 - examples["label"]
  assert mirrored.sum() == 5
  np.testing.assert_array_equal(np.where(mirrored, left, right), examples["label"])


@pytest.mark.parametrize("devices", [1, 4])
def test_iterations_are_the_same_wherever_one_starts(devices):
  loader = Loader(Numbered(50), seed=0, x_flip=False)
  sharding = batch_sharding(make_mesh(devices))

  def labels(first, count):
    iterator = loader.iterate((4, 8), first, sharding)
    taken = [[np.asarray(batch["label"]) for batch in batches] for batches in itertools.islice(iterator, count)]
    iterator.close()
    return taken

  whole = labels(0, 6)
  assert [len(batch) for batch in whole[0]] == [4, 8]
  np.testing.assert_array_equal(
    np.concatenate([labels for batches in whole for labels in batches]), loader.indices(0, 72)
  )
  for resumed, expected in zip(labels(4, 2), whole[4:], strict=True):
    np.testing.assert_array_equal(np.concatenate(resumed), np.concatenate(expected))


def test_an_error_of_the_source_reaches_the_loop():
  class Broken(Numbered):
    def __getitem__(self, indices):
      raise OSError("no such disk")

  iterator = Loader(Broken(5), seed=0, x_flip=False).iterate((4,), 0, batch_sharding(make_mesh(1)))
  with pytest.raises(OSError, match="no such disk"):
    next(iterator)
