"""Which places the attention of YLG sees (Daras et al. 2020, arXiv 1911.12287): sparse masks for eight heads.

A full attention is split into two sparse steps over n numbered places, in blocks of s = sqrt(n), of which a path from
any place to any other consists:

    left to right    1  a place sees the places of its block up to itself
                     2  a place sees itself and the last place of each block
    right to left    the same from the end: 1  of its block, from itself on    2  itself, and the first of each block

The authors' layer has both steps as heads side by side, so that no path is walked in one layer. Places are numbered by
their Manhattan distance from the corner ("ESA", section 4), so that near numbers are near places.
"""

import numpy as np

HEADS = 8
"""Each of the four masks serves two heads."""


def numbering(side: int) -> np.ndarray:
  """Returns the number of each place of a side x side map, row by row, int [side side]: by row + column, then row."""
  rows, columns = np.indices((side, side)).reshape(2, -1)
  order = np.lexsort((rows, rows + columns))
  return np.argsort(order)


def steps(block: int) -> np.ndarray:
  """Returns what block^2 numbered places see, bool [4, queries, keys]: steps 1 and 2 to the right, then to the left."""
  query, key = np.indices((block**2, block**2))
  itself, its_block = query == key, query // block == key // block
  to_right = its_block & (key <= query), itself | (key % block == block - 1)
  to_left = its_block & (key >= query), itself | (key % block == 0)
  return np.stack([*to_right, *to_left])


def aligned_masks(side: int) -> np.ndarray:
  """Returns `attention.Masks`: a query sees what the pooled place that it lies in sees."""
  rows, columns = np.indices((side, side)) // 2
  return _of_places(side // 2)[:, (rows * (side // 2) + columns).reshape(-1)]


def tiled_masks(side: int) -> np.ndarray:
  """Returns `attention.Masks` as in the released code, which repeats all rows of a mask four times.

  Most queries then do not see the pooled place that they lie in.
  """
  return np.tile(_of_places(side // 2), (1, 4, 1))


def _of_places(side: int) -> np.ndarray:
  """Returns the masks of the eight heads between pooled places, row by row: bool [8, side^2, side^2]."""
  numbers = numbering(side)
  right_1, right_2, left_1, left_2 = steps(side)[:, numbers[:, None], numbers[None]]
  return np.stack([right_1, right_2, right_1, right_2, left_1, left_2, left_1, left_2])
