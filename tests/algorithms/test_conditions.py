"""The conditions by hand, and against Pillow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from r3gan_jax.algorithms.conditions import CONDITIONS, box
from r3gan_jax.ops.images import to_float

KEYS = jax.random.split(jax.random.key(0), 4)


def pictures(side, channels, count=4):
  """Returns random images of the whole range, uint8, and as floats."""
  images = np.random.default_rng(0).integers(0, 256, (count, side, side, channels), np.uint8)
  return images, jnp.asarray(images / np.float32(127.5) - 1)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_downscaling_is_that_of_pillow(factor):
  """Pillow rounds in between."""
  images, floats = pictures(32, 3)
  made = CONDITIONS[f"downscale_{factor}"].make(floats, KEYS)
  size = (32 // factor, 32 // factor)
  expected = np.stack([np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)) for image in images])
  assert made.dtype == np.uint8 and np.abs(made.astype(np.int16) - expected.astype(np.int16)).max() <= 1
  restored = CONDITIONS[f"downscale_{factor}"].restore(to_float(made), 3)
  for image, condition in zip(restored, made, strict=True):
    enlarged = np.asarray(Image.fromarray(np.asarray(condition)).resize((32, 32), Image.Resampling.BICUBIC), np.float32)
    inside = slice(2 * factor, -2 * factor)  # Pillow and JAX differ at the border
    levels = np.clip((image + 1) * 127.5, 0, 255)
    np.testing.assert_allclose(levels[inside, inside], enlarged[inside, inside], atol=1.5)


def test_grey_is_that_of_pillow():
  images, floats = pictures(8, 3)
  condition = CONDITIONS["grey"]
  made = condition.make(floats, KEYS)
  expected = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in images])
  assert made.shape == (4, 8, 8, 1) and np.abs(made[..., 0].astype(np.int16) - expected.astype(np.int16)).max() <= 1
  np.testing.assert_allclose(
    (condition.restore(to_float(made), 3) + 1) * 127.5, np.broadcast_to(made, images.shape), atol=1e-4
  )


def test_a_mask_hides_a_box_and_nothing_else():
  images, floats = pictures(16, 3)
  made = np.asarray(CONDITIONS["mask"].make(floats, KEYS))
  assert made.shape == (4, 16, 16, 4) and set(np.unique(made[..., 3])) == {0, 255}
  visible = made[..., 3] == 255
  np.testing.assert_array_equal(made[..., :3], np.where(visible[..., None], images, 0))
  for inside in ~visible:
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    assert inside.sum() == len(rows) * len(columns)
    assert (np.diff(rows) == 1).all() and (np.diff(columns) == 1).all()
  alone = CONDITIONS["mask"].make(floats[2:3], KEYS[2:3])
  np.testing.assert_array_equal(alone[0], made[2])


def test_boxes_are_of_all_sizes_and_places():
  boxes = np.asarray(jax.vmap(lambda key: box(8, 16, key))(jax.random.split(jax.random.key(1), 2000)))
  heights, widths = boxes.any(axis=2).sum(axis=1), boxes.any(axis=1).sum(axis=1)
  assert (set(heights), set(widths)) == ({2, 3, 4}, {4, 5, 6, 7, 8})
  assert boxes[:, 0].any() and boxes[:, -1].any() and boxes[:, :, 0].any() and boxes[:, :, -1].any()
  assert abs(heights.mean() - 3) < 0.1 and abs(widths.mean() - 6) < 0.15


def test_boxes_are_filled_with_the_mean_of_what_is_visible():
  condition = np.zeros((1, 2, 2, 2), np.uint8)
  condition[0, 0, 0], condition[0, 0, 1], condition[0, 1, 0] = (255, 255), (0, 255), (51, 255)
  restored = (CONDITIONS["mask"].restore(to_float(jnp.asarray(condition)), 1)[0, ..., 0] + 1) * 127.5
  np.testing.assert_allclose(restored, [[255, 0], [51, 102]], atol=1e-4)


def test_conditions_to_look_at_have_large_pixels_and_black_boxes():
  small = np.array([[[[0], [255]]]], np.uint8)
  np.testing.assert_allclose(CONDITIONS["downscale_2"].shown(small, 1)[0, ..., 0], [[-1, -1, 1, 1]] * 2)
  np.testing.assert_allclose(CONDITIONS["grey"].shown(small, 3)[0, 0], [[-1] * 3, [1] * 3])
  masked = np.array([[[[7, 255], [0, 0]]]], np.uint8)
  np.testing.assert_allclose(CONDITIONS["mask"].shown(masked, 1)[0, 0, :, 0], [7 / 127.5 - 1, -1], atol=1e-6)
