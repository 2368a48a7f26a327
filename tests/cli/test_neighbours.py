"""The command: which real images are nearest to samples, and the picture."""

from pathlib import Path

import numpy as np
import pytest
from helpers import commands
from helpers import neighbourhoods as golden
from helpers.image_files import write_images
from PIL import Image

from r3gan_jax.reporting.neighbours import picture

OLD = Path(__file__).parent.parent / "old_workdir"


@pytest.fixture
def find(environment, tmp_path):
  return lambda *flags: commands.run(environment, "neighbours", *flags, f"--out={tmp_path / 'found.png'}").stdout


def test_a_copy_is_found(find, tmp_path):
  real, fake = write_images(tmp_path / "a", 40, first=1), write_images(tmp_path / "b", 30, first=100)
  real[:20] = 250 - real[20:] // 8  # a cluster
  for index, image in enumerate(real, 1):
    Image.fromarray(image).save(tmp_path / "a" / f"{index:05}.png")
  fake[13] = real[28]
  Image.fromarray(fake[13]).save(tmp_path / "b" / "00113.png")
  shown = find(
    f"--real={tmp_path / 'a'}", f"--fake={tmp_path / 'b'}", "--network=pixels", "--shown=3", "--neighbours=2"
  )
  authenticity = golden.authenticity(*(images.reshape(len(images), -1) / np.float32(255) for images in (real, fake)))
  assert 0 < authenticity < 1
  assert f"authenticity {authenticity:.4g}: of 30 samples, among 40 real images" in shown
  with Image.open(tmp_path / "found.png") as image:
    drawn = np.asarray(image)
  copy = real[28].repeat(12, axis=0).repeat(12, axis=1)
  assert drawn.shape == (8 + 3 * (96 + 22 + 8), 16 + 3 * 104, 3)
  for x in (8, 120):  # the least authentic sample, and the real image
    np.testing.assert_array_equal(drawn[8:104, x : x + 96], copy)
  assert (drawn[104:126, 8:104] < 128).any(), "a caption"


def test_of_a_run(find):
  """Its samples, and the data that it was trained on; `--network` is needed, as VGG16's weights are missing."""
  shown = find(f"--workdir={OLD}", "--network=pixels", "--num_samples=20", "--shown=99")
  assert ": of 20 samples, among " in shown and "features of pixels" in shown


def test_pictures_of_any_channels():
  random = np.random.default_rng(0)
  captions = [["a", "b"], ["c", ""]]
  for channels in (1, 3, 4):
    images = random.integers(0, 256, (2, 2, 100, 50, channels), np.uint8)
    drawn = picture(images, captions)
    assert drawn.shape == (8 + 2 * 130, 16 + 2 * 58, 3)
    if channels < 4:
      np.testing.assert_array_equal(drawn[138:238, 74:124], np.broadcast_to(images[1, 1], (100, 50, 3)))
    assert drawn[242:256, 74:124].min() == 255, "an empty caption"


def test_bad_input_is_one_line_that_names_the_cure(environment, tmp_path):
  write_images(tmp_path / "a", 4)
  write_images(tmp_path / "b", 4, side=16)
  real, fake, network, out = f"--real={tmp_path / 'a'}", f"--fake={tmp_path / 'a'}", "--network=pixels", "--out=x.png"
  refused = {
    (real, out): "name either a --workdir, or --real and --fake",
    (real, fake, "--weights=x.npz", out): "--weights needs --network",
    (real, fake, network, "--out=x.jpg"): "choose .png",
    (real, f"--fake={tmp_path / 'b'}", network, out): "samples have the shape (16, 16, 3) and real images (8, 8, 3)",
    (real, fake, network, out): "the 4 nearest of 4 real images",
    (f"--workdir={OLD}", "--network=pixels", "--seed=4294967295", out): "choose a smaller one",
  }
  for error, cure in zip(commands.call(environment, "neighbours", list(refused)), refused.values(), strict=True):
    assert error and cure in error and "\n" not in error, cure
