"""What users give to be compared: files and arrays of images, and reference statistics."""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.image_files import write_images, zip_directory
from helpers.meshes import mesh_of

from r3gan_jax.errors import UserError
from r3gan_jax.metrics.evaluation import Evaluation
from r3gan_jax.metrics.features import FeatureNetwork
from r3gan_jax.metrics.image_sets import open_images, open_real
from r3gan_jax.metrics.reference import read_npz, read_reference, write_reference
from r3gan_jax.metrics.statistics_cache import StatisticsCache

WEIGHTS = np.random.default_rng(0).normal(size=(192, 5)).astype(np.float32)
FID = ("fid",)


def linear(params, images):
  return {"features": images.reshape(len(images), -1).astype(jnp.float32) / 255 @ params}


def network(weights=WEIGHTS, name="linear", resize="none"):
  return FeatureNetwork(name, linear, weights, resize)


def evaluation(real, cache=None, metrics=FID, **of_network):
  return Evaluation(metrics, network(**of_network), mesh_of(8), real, cache, batch_per_device=8)


@pytest.fixture
def images(tmp_path):
  """80 images in the directories `a` and `b`, of equal sizes in bytes."""
  return {name: write_images(tmp_path / name, 80, suffix="bmp", first=first) for first, name in enumerate("ab")}


def test_a_zip_that_is_made_again_is_another_set(tmp_path, images):
  """Even if all of its sizes are the same; and the set is known again wherever it is, and however it is packed."""
  cache = StatisticsCache(tmp_path / "cache")

  def fid(real):
    return evaluation(open_images("real", real), cache)(open_images("fake", tmp_path / "b"))["fid"]

  data = tmp_path / "data.zip"
  size = zip_directory(tmp_path / "a", data).stat().st_size
  assert fid(data) > 1e-3
  for file in (tmp_path / "a").iterdir():
    file.unlink()
  for file in (tmp_path / "b").iterdir():
    file.rename(tmp_path / "a" / f"{int(file.stem) - 1:05}.bmp")
  (tmp_path / "b").rmdir()
  (tmp_path / "a").rename(tmp_path / "b")
  assert zip_directory(tmp_path / "b", data).stat().st_size == size
  assert abs(fid(data)) < 1e-6
  assert len(list((tmp_path / "cache").iterdir())) == 2
  assert abs(fid(tmp_path / "b")) < 1e-6
  assert len(list((tmp_path / "cache").iterdir())) == 2


def test_arrays_are_images(tmp_path, images):
  """As `cli.sample` and ADM write them; grey ones have three equal channels, as those of files."""
  for key in ("images", "arr_0"):
    np.savez(tmp_path / "of.npz", **{key: images["a"], "labels": np.zeros(80)})
    opened = open_images("fake", tmp_path / "of.npz")
    assert (opened.size, opened.shape) == (80, (8, 8, 3))
    np.testing.assert_array_equal(opened.images(np.array([3, 79, 3])), images["a"][[3, 79, 3]])
  np.savez(tmp_path / "grey.npz", images=images["a"][..., :1])
  opened = open_images("fake", tmp_path / "grey.npz")
  np.testing.assert_array_equal(opened.images(np.arange(80)), images["a"][..., :1].repeat(3, axis=-1))
  first = opened.fingerprint()
  np.savez(tmp_path / "grey.npz", images=images["b"][..., :1])
  assert open_images("fake", tmp_path / "grey.npz").fingerprint() != first


def test_a_random_part_of_the_images(tmp_path, images):
  opened = open_images("fake", tmp_path / "a")
  parts = [opened.drawn(30, seed) for seed in (0, 0, 1)]
  read = [part.images(np.arange(30)) for part in parts]
  np.testing.assert_array_equal(read[0], read[1])
  assert parts[0].size == 30 and (read[0] != read[2]).any()
  assert len(np.unique(read[0].reshape(30, -1), axis=0)) == 30
  with pytest.raises(UserError, match="fake has 80 images, fewer than 81"):
    opened.drawn(81, 0)


def test_statistics_instead_of_the_images(tmp_path, images):
  """Written and read again, or of pytorch-fid and EDM, which record nothing but mu and sigma."""
  real, fake = open_images("real", tmp_path / "a"), open_images("fake", tmp_path / "b")
  of_images = evaluation(real)
  write_reference(tmp_path / "ours.npz", of_images.reference())
  features = np.asarray(linear(WEIGHTS, images["a"])["features"], np.float64)
  arrays = read_npz(tmp_path / "ours.npz")
  np.testing.assert_allclose(arrays["mu"], features.mean(axis=0), rtol=1e-6)
  np.testing.assert_allclose(arrays["sigma"], np.cov(features, rowvar=False), rtol=1e-5)
  assert (arrays["num_images"], arrays["network"], arrays["resize"]) == (80, "linear", "none")
  expected = of_images(fake)
  assert evaluation(open_real(tmp_path / "ours.npz", FID))(fake) == expected

  np.savez(tmp_path / "theirs.npz", mu=arrays["mu"], sigma=arrays["sigma"])
  del expected["num_real"]
  assert evaluation(open_real(tmp_path / "theirs.npz", FID))(fake) == expected
  # ADM's also have images, for the metrics that need them.
  np.savez(tmp_path / "both.npz", arr_0=images["a"], mu=arrays["mu"], sigma=arrays["sigma"])
  assert evaluation(open_real(tmp_path / "both.npz", FID))(fake) == expected
  both = ("fid", "kid")
  assert evaluation(open_real(tmp_path / "both.npz", both), metrics=both)(fake)["num_real"] == 80


@pytest.mark.parametrize(
  "changed, message",
  [
    ({"weights": WEIGHTS[:, :4]}, "weights = "),
    ({"weights": 2 * WEIGHTS}, "weights = "),
    ({"name": "other"}, "network = linear, but now it is other"),
    ({"resize": "pytorch"}, "resize = none, but now it is pytorch"),
  ],
)
def test_statistics_of_another_network_are_refused(tmp_path, images, changed, message):
  write_reference(tmp_path / "ours.npz", evaluation(open_images("real", tmp_path / "a")).reference())
  with pytest.raises(UserError, match=rf"ours\.npz .*{message}"):
    evaluation(open_real(tmp_path / "ours.npz", FID), **changed).check(80, (8, 8, 3), with_classes=False)


def test_other_arrays_are_refused(tmp_path):
  def opening(path="x.npz", metrics=FID, **arrays):
    np.savez(tmp_path / "x.npz", **arrays)
    return open_real(tmp_path / path, metrics)

  eye, mean = np.eye(5), np.zeros(5)
  with pytest.raises(UserError, match=r"x\.npz has statistics of 5 features, but linear has 4"):
    evaluation(opening(mu=mean, sigma=eye), weights=WEIGHTS[:, :4]).check(80, (8, 8, 3), with_classes=False)
  with pytest.raises(UserError, match=r"x\.npz has mu and sigma, which only FID and FD_DINOv2 compare with: for kid"):
    opening(metrics=("fid", "kid"), mu=mean, sigma=eye)
  with pytest.raises(UserError, match="statistics instead of images"):
    open_images("fake", tmp_path / "x.npz")
  with pytest.raises(UserError, match=r"x\.npz has the arrays \['mu', 'pixels'\]: give one with images"):
    opening(mu=mean, pixels=eye)
  for images in (np.zeros((2, 8, 8, 3), np.float32), np.zeros((2, 8, 8), np.uint8), np.zeros((0, 8, 8, 3), np.uint8)):
    with pytest.raises(UserError, match=rf"arr_0 is {images.dtype} .*: images are uint8 \[n, H, W, C\]"):
      opening(arr_0=images)
  for statistics in ({"mu": eye, "sigma": eye}, {"mu": mean, "sigma": np.eye(4)}):
    with pytest.raises(UserError, match=r"x\.npz: mu has the shape"):
      opening(**statistics)
  for statistics in ({"mu": mean * np.nan, "sigma": eye}, {"mu": mean, "sigma": np.eye(5, dtype=int)}):
    with pytest.raises(UserError, match=r"x\.npz: mu and sigma have to be finite"):
      opening(**statistics)
  with pytest.raises(UserError, match=r"x\.npz is no \.npz of arrays"):
    opening(images=np.array([{}]))
  (tmp_path / "broken.npz").write_bytes(b"no arrays")
  with pytest.raises(UserError, match=r"broken\.npz is no \.npz of arrays"):
    opening("broken.npz")
  with pytest.raises(UserError, match=r"cannot read .*none\.npz: No such file"):
    opening("none.npz")
  assert read_reference("x", {"mu": mean, "sigma": eye, "num_images": np.array("many")}).count is None
