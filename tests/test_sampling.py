import numpy as np
from PIL import Image

from r3gan_jax.sampling import beside_its_channels, image_grid, labels_of_seeds, save_png


def test_grid_is_row_by_row_and_ends_in_black():
  images = np.arange(1, 6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 3, 1), np.uint8)
  grid = image_grid(images, columns=2)
  assert grid.shape == (6, 6, 1)
  np.testing.assert_array_equal(grid[::2, ::3, 0], [[1, 2], [3, 4], [5, 0]])


def test_beside_its_channels():
  images = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), dtype=np.uint8)
  shown = beside_its_channels(images)
  assert shown.shape == (2, 4, 20, 3)
  np.testing.assert_array_equal(shown[:, :, :5], images)
  for channel in range(3):
    grey = shown[:, :, 5 * (channel + 1) : 5 * (channel + 2)]
    for c in range(3):
      np.testing.assert_array_equal(grey[..., c], images[..., channel])


def test_png_of_1_to_4_channels(tmp_path):
  for channels, mode in enumerate(("L", "LA", "RGB", "RGBA"), start=1):
    image = np.random.default_rng(0).integers(0, 256, (4, 5, channels), dtype=np.uint8)
    save_png(tmp_path / "image.png", image, scale=2)
    with Image.open(tmp_path / "image.png") as picture:
      assert picture.mode == mode
      np.testing.assert_array_equal(np.asarray(picture).reshape(8, 10, channels)[::2, ::2], image)


def test_labels_are_functions_of_seeds():
  labels = labels_of_seeds(np.arange(1000), 10)
  assert set(labels) == set(range(10))
  np.testing.assert_array_equal(labels_of_seeds(np.array([7, 3]), 10), labels[[7, 3]])
