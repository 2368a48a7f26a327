"""Sampling: images, noise and labels as functions of seeds, interpolation, image and video files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from helpers import golden_cases
from helpers.meshes import mesh_of
from PIL import Image

from configs import stacked_digits
from configs.zoo import gan as zoo_gan
from r3gan_jax import factory
from r3gan_jax.errors import UserError
from r3gan_jax.sampling import (
  FRAME_RATE,
  GUTTER,
  Sampler,
  beside_its_channels,
  image_grid,
  interpolation,
  labels_of_seeds,
  noise_path,
  save_png,
  save_pngs,
  save_video,
  slerp,
)


@golden_cases.cases
def test_one_seed_one_image(case):
  """Images are equal bit for bit: alone, with others, elsewhere in a batch, from its noise, on 1 and 4 devices."""
  case = golden_cases.load(case)
  params = {"generator": case.params("G", "generator")}
  seeds = np.array([7, 2**32 - 1, 0, 3, 11, 12, 13])
  labels = labels_of_seeds(seeds, case.algorithm.num_classes) if case.algorithm.num_classes else None
  drawn = []
  for devices in (1, 4):
    sampler = Sampler(case.algorithm, mesh_of(devices), batch_per_device=2)
    drawn.append(sampler(params, {}, seeds))
    np.testing.assert_array_equal(sampler(params, {}, seeds[3:4]), drawn[-1][3:4])
    noise = sampler.noise(seeds)
    batches = list(sampler.batches(params, {}, noise, labels))
    assert [len(batch) for batch in batches] == {1: [2, 2, 2, 1], 4: [7]}[devices]
    np.testing.assert_array_equal(np.concatenate(batches), drawn[-1])
    assert sampler(params, {}, seeds[:0]).shape == (0, *case.algorithm.image_shape)
  np.testing.assert_array_equal(*drawn)
  assert len(np.unique(drawn[0], axis=0)) == len(seeds) and drawn[0].dtype == np.uint8
  expected = [jax.random.normal(jax.random.key(seed), noise.shape[1:]) for seed in seeds.astype(np.uint32)]
  np.testing.assert_allclose(noise, expected, rtol=1e-6)


@pytest.mark.card
def test_quantisation_in_bfloat16():
  case = golden_cases.load("cond_8px")
  params = {"generator": case.params("G", "generator")}
  in_float32, in_bfloat16 = (
    Sampler(case.algorithm, mesh_of(1), batch_per_device=8, quantised_in=dtype)(params, {}, np.arange(8)).astype(int)
    for dtype in (jnp.float32, jnp.bfloat16)
  )
  higher = in_bfloat16 - in_float32
  assert 0.2 < np.mean(higher == 1) < 0.5 and np.abs(higher).max() == 1


def test_images_that_are_not_finite(caplog):
  """NaN weights are an error that names them; without a title it is only logged."""
  case = golden_cases.load("uncond_16px")
  params = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), {"generator": case.params("G", "generator")})
  with pytest.raises(UserError, match=r"^the checkpoint draws images that are not finite"):
    Sampler(case.algorithm, mesh_of(1), batch_per_device=2, title="the checkpoint")(params, {}, np.arange(3))
  drawn = Sampler(case.algorithm, mesh_of(1), batch_per_device=2, title=None)(params, {}, np.arange(3))
  assert (drawn == 0).all() and "1 of 1 samples are not finite" in caplog.text


def test_slerp():
  """Points by hand in the plane, by equal angles on the sphere, and for (anti)parallel vectors."""
  thirds = slerp(np.array([2.0, 0.0]), np.array([0.0, 2.0]), np.array([0, 1 / 3, 2 / 3, 1]))
  np.testing.assert_allclose(thirds, [[2, 0], [3**0.5, 1], [1, 3**0.5], [0, 2]], atol=1e-12)
  start, end = np.random.default_rng(0).standard_normal((2, 64))
  start, end = start / np.linalg.norm(start), end / np.linalg.norm(end)
  arc = slerp(start, end, np.linspace(0, 1, 9))
  np.testing.assert_allclose(np.linalg.norm(arc, axis=1), 1)
  cosines = np.sum(arc[1:] * arc[:-1], axis=1)
  np.testing.assert_allclose(np.arccos(cosines), np.arccos(start @ end) / 8)
  np.testing.assert_array_equal(slerp(start, start, np.array([0, 0.5])), [start, start])
  np.testing.assert_allclose(slerp(start, -start, np.array([0, 0.25])), [start, start / 2])


def test_interpolation_is_a_closed_path_through_the_rows():
  noise = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
  walk = interpolation(noise, steps=5)
  assert walk.shape == (15, 64) and walk.dtype == np.float32
  np.testing.assert_array_equal(walk[::5], noise)
  np.testing.assert_array_equal(walk[12], slerp(noise[2], noise[0], np.array([2 / 5]))[0])
  steps = np.linalg.norm(np.diff(walk, axis=0, append=walk[:1]), axis=1)
  assert steps.max() < 1.2 * np.linalg.norm(noise - np.roll(noise, -1, axis=0), axis=1).max() / 5


def test_straight_interpolation_by_hand():
  walk = interpolation(np.array([[0, 1], [1, 0], [-1, 0]], np.float32), steps=2, straight=True)
  np.testing.assert_array_equal(walk, [[0, 1], [0.5, 0.5], [1, 0], [0, 0], [-1, 0], [-0.5, 0.5]])


def test_the_path_of_uniform_noise_is_straight():
  """So it stays in the cube; on a sphere it would leave it between two corners."""
  corners = np.array([[1, 1, -1], [1, -1, 1]], np.float32)
  gaussian, uniform = (
    factory.build_algorithm(config) for config in (stacked_digits.get_config("smoke"), zoo_gan.get_config("smoke"))
  )
  assert np.abs(noise_path(uniform, corners, 4)).max() == 1 < np.abs(noise_path(gaussian, corners, 4)).max()


def test_pngs_of_batches(tmp_path):
  images = np.random.default_rng(0).integers(0, 256, (11, 4, 4, 3), dtype=np.uint8)
  names = [f"{index:02}.png" for index in range(11)]
  save_pngs(epath.Path(tmp_path), names, np.split(images, [3, 6, 6, 9]))
  assert sorted(path.name for path in tmp_path.iterdir()) == names
  for name, image in zip(names, images, strict=True):
    with Image.open(tmp_path / name) as picture:
      np.testing.assert_array_equal(np.asarray(picture), image)
  with pytest.raises(OSError):
    save_pngs(epath.Path(tmp_path / names[0]), names, [images])


def test_at_most_two_batches_wait_to_be_written(tmp_path):
  """When the next batch is drawn, all but the last one have been written."""

  def batches():
    for index in range(20):
      assert len(list(tmp_path.iterdir())) >= 50 * (index - 1)
      yield np.zeros((50, 8, 8, 3), np.uint8)

  save_pngs(epath.Path(tmp_path), [f"{index}.png" for index in range(1000)], batches())


@pytest.mark.parametrize("suffix", ["gif", "mp4"])
def test_video(tmp_path, suffix):
  """Grey frames, enlarged, in order, in nearly their colours."""
  frames = np.arange(0, 240, 40, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 1), np.uint8)
  if suffix == "mp4":
    av = pytest.importorskip("av")
  save_video(tmp_path / f"video.{suffix}", iter(frames), scale=4)
  if suffix == "mp4":
    with av.open(str(tmp_path / "video.mp4")) as container:
      assert container.streams.video[0].average_rate == FRAME_RATE
      read = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
  else:
    with Image.open(tmp_path / "video.gif") as video:
      read = []
      for frame in range(video.n_frames):
        video.seek(frame)
        read.append(np.asarray(video.convert("RGB")))
  assert np.shape(read) == (6, 32, 32, 3)
  expected = frames.repeat(4, 1).repeat(4, 2).repeat(3, 3).astype(int)
  assert np.abs(np.array(read) - expected).max() <= 3


@pytest.mark.parametrize(("side", "gutter"), [(2, 2), (64, 2), (100, 2), (128, 4), (256, 8)])
def test_grid_is_filled_by_rows_with_grey_between_and_at_the_end(side, gutter):
  images = np.arange(1, 6, dtype=np.uint8)[:, None, None, None] * np.ones((1, side, side + 1, 3), np.uint8)
  grid = image_grid(images, columns=2)
  assert grid.shape == (3 * side + 2 * gutter, 2 * (side + 1) + gutter, 3)
  expected = np.full_like(grid, GUTTER)
  for index, image in enumerate(images):
    top, left = index // 2 * (side + gutter), index % 2 * (side + 1 + gutter)
    expected[top : top + side, left : left + side + 1] = image
  np.testing.assert_array_equal(grid, expected)


def test_a_grid_of_one_image_is_the_image():
  image = np.random.default_rng(0).integers(0, 256, (1, 7, 5, 1), dtype=np.uint8)
  np.testing.assert_array_equal(image_grid(image, columns=1), image[0])


def test_beside_its_channels():
  images = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), dtype=np.uint8)
  shown = beside_its_channels(images)
  assert shown.shape == (2, 4, 23, 3)
  np.testing.assert_array_equal(shown[:, :, :5], images)
  assert not shown[:, :, 5::6].any()
  for channel in range(3):
    grey = shown[:, :, 6 * (channel + 1) :][:, :, :5]
    for c in range(3):
      np.testing.assert_array_equal(grey[..., c], images[..., channel])


def test_transparent_images_are_shown_over_a_checkerboard():
  images = np.zeros((1, 16, 24, 4), np.uint8)
  images[0, :, 12:] = (100, 150, 200, 255)
  shown = image_grid(images, 1)
  assert (shown[:, 12:] == (100, 150, 200)).all()
  np.testing.assert_array_equal(shown[0, :6, 0], [153, 153, 204, 204, 153, 153])
  np.testing.assert_array_equal(shown[2:4, 0, 0], 204)


def test_png_of_1_to_4_channels(tmp_path):
  for channels, mode in enumerate(("L", "LA", "RGB", "RGBA"), start=1):
    image = np.random.default_rng(0).integers(0, 256, (4, 5, channels), dtype=np.uint8)
    if channels == 4:
      image[..., 3] = 255
    save_png(tmp_path / "image.png", image, scale=2)
    with Image.open(tmp_path / "image.png") as picture:
      assert picture.mode == mode
      np.testing.assert_array_equal(np.asarray(picture).reshape(8, 10, channels)[::2, ::2], image)
  save_png(tmp_path / "half.png", np.array([[[10, 64, 128, 128]]], np.uint8))  # premultiplied
  with Image.open(tmp_path / "half.png") as picture:
    np.testing.assert_array_equal(np.asarray(picture), [[[20, 128, 255, 128]]])


def test_labels_are_functions_of_seeds():
  labels = labels_of_seeds(np.arange(1000), 10)
  assert set(labels) == set(range(10))
  np.testing.assert_array_equal(labels_of_seeds(np.array([7, 3]), 10), labels[[7, 3]])
