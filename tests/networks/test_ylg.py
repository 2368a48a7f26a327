"""The masks of YLG by hand and by its laws."""

import numpy as np

from r3gan_jax.networks.ylg import HEADS, aligned_masks, numbering, steps, tiled_masks


def reached(*masks):
  """Returns where a path over these steps, the last one first, leads to."""
  path = masks[0].astype(int)
  for mask in masks[1:]:
    path = (path @ mask.astype(int) > 0).astype(int)
  return path


def test_places_are_numbered_by_their_distance_from_the_corner():
  np.testing.assert_array_equal(numbering(3).reshape(3, 3), [[0, 1, 3], [2, 4, 6], [5, 7, 8]])


def test_steps_in_two_blocks_of_two():
  right_1, right_2, left_1, left_2 = steps(2).astype(int)
  np.testing.assert_array_equal(right_1, [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]])
  np.testing.assert_array_equal(right_2, [[1, 1, 0, 1], [0, 1, 0, 1], [0, 1, 1, 1], [0, 1, 0, 1]])
  np.testing.assert_array_equal(left_1, right_1.T)
  np.testing.assert_array_equal(left_2, [[1, 0, 1, 0], [1, 1, 1, 0], [1, 0, 1, 0], [1, 0, 1, 1]])


def test_two_steps_reach_all_places():
  """In one order; each step has few edges, and all of them together a third of the places."""
  right_1, right_2, left_1, left_2 = steps(8)
  assert [mask.sum() for mask in (right_1, right_2, left_1, left_2)] == [288, 568, 288, 568]
  for first, second in ((right_1, right_2), (left_1, left_2)):
    assert reached(second, first).all()
    np.testing.assert_allclose(reached(first, second).mean(), 0.193, atol=1e-3)
  np.testing.assert_allclose(steps(8).any(axis=0).mean(), 0.34, atol=5e-3)
  np.testing.assert_allclose(steps(16).any(axis=0).mean(), 0.18, atol=5e-3)


def own_place(masks):
  """Returns whether queries of 16x16 see the pooled place of 8x8 that they lie in, [heads, queries]."""
  rows, columns = np.indices((16, 16)).reshape(2, -1) // 2
  return masks[:, np.arange(256), rows * 8 + columns]


def test_aligned_queries_see_what_their_place_sees():
  masks = aligned_masks(16)
  assert masks.shape == (HEADS, 256, 64) and masks.dtype == bool
  assert own_place(masks).all()
  np.testing.assert_array_equal(masks[:, 17], masks[:, 0])
  by_number = steps(8)[:, numbering(8)[9]][:, numbering(8)]  # of place (1, 1)
  for query in (2 * 16 + 2, 3 * 16 + 3):
    np.testing.assert_array_equal(masks[[0, 1, 4, 5], query], by_number)
    np.testing.assert_array_equal(masks[[2, 3, 6, 7], query], by_number)


def test_most_tiled_queries_do_not_see_their_own_place():
  masks = tiled_masks(16)
  assert masks.shape == (HEADS, 256, 64)
  shares = own_place(masks).mean(axis=1)
  assert 0.11 < shares.min() < shares.max() < 0.14
  np.testing.assert_array_equal(masks.reshape(HEADS, 4, 64, 64), np.stack([aligned_masks(16)[:, _first()]] * 4, axis=1))


def _first():
  """Returns a query of each pooled place."""
  rows, columns = np.indices((8, 8)).reshape(2, -1)
  return 2 * rows * 16 + 2 * columns
