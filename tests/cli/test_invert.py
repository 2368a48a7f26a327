"""The command, on work directories from recorded snapshots of trained networks."""

import json

import jax
import numpy as np
import pytest
from helpers import commands, official_pickles
from PIL import Image

from configs import images as images_recipe
from r3gan_jax import runs
from r3gan_jax.conversion import write_workdir
from r3gan_jax.interop.official import read_snapshot
from r3gan_jax.inversion import FineTuned
from r3gan_jax.sampling import Sampler, over_checkerboard
from r3gan_jax.training.mesh import make_mesh

FEW = ("--starts=2", "--steps=20")
INVERTED = {
  "fine_tuned": ("uncond_16px", ("wide.png", "b.webp"), ("--fine_tune", "--interpolate=0.08", "--seed=5")),
  "classes": ("cond_8px", ("grey.png", "b.webp", "grey.png"), ("--class=4", "--class=1", "--class=4")),
  "class": ("cond_8px", ("grey.png", "b.webp"), ("--class=1", "--interpolate=0.08")),
  "transparent": ("rgba_4px", ("half.png", "empty.png"), ("--interpolate=0.08",)),
}
REFUSED = [
  ("uncond_16px", ("nowhere.png",), (), "nowhere.png: No such file"),
  ("uncond_16px", ("text.png",), (), "text.png is not an image"),
  ("uncond_16px", ("cut.png",), (), "cut.png is damaged or cut short"),
  ("uncond_16px", ("b.webp",), ("--class=0",), "--class=0: "),
  ("uncond_16px", ("b.webp",), ("--interpolate=1",), "two images"),
  ("uncond_16px", ("b.webp",), ("--seed=4294967295",), "--seed=4294967295: its 2 starts need seeds beyond 2^32"),
  ("uncond_16px", ("b.webp",), ("--out=text.png",), "cannot write --out=text.png: "),
  ("uncond_16px", ("b.webp",), ("--steps=0",), "--steps=0"),
  ("cond_8px", ("b.webp",), (), "--class is missing"),
  ("cond_8px", ("b.webp",), ("--class=5",), "--class=5: choose from 0 to 4"),
  ("cond_8px", ("b.webp",) * 3, ("--class=1", "--class=2"), "--class is given 2 times for 3 images"),
  ("cond_8px", ("b.webp",) * 2, ("--class=1", "--class=2", "--interpolate=1"), "--interpolate"),
  ("nowhere", ("b.webp",), (), "nowhere"),
]


@pytest.fixture(scope="module")
def out(environment, tmp_path_factory):
  """All of `INVERTED`, and the errors of `REFUSED`, in a directory."""
  directory = tmp_path_factory.mktemp("invert")
  for case in ("cond_8px", "uncond_16px"):  # of 5 classes at 8x8, and of none at 16x16
    write_workdir(read_snapshot(official_pickles.path(case)), directory / "runs" / case)
  train_transparent(directory / "runs" / "rgba_4px")
  key = np.random.default_rng(0)
  colours = Image.fromarray(key.integers(0, 256, (6, 6, 3), dtype=np.uint8))
  colours.resize((48, 32)).save(directory / "wide.png")
  colours.resize((16, 16)).save(directory / "b.webp", lossless=True)
  colours.convert("L").save(directory / "grey.png")
  for name, alpha in (("half", 128), ("empty", 0)):
    Image.fromarray(np.full((4, 4, 4), (200, 100, 50, alpha), np.uint8)).save(directory / f"{name}.png")
  (directory / "text.png").write_text("no image")
  (directory / "cut.png").write_bytes((directory / "wide.png").read_bytes()[:-200])
  calls = [(case, images, (f"--out={name}", *rest)) for name, (case, images, rest) in INVERTED.items()]
  calls += [(case, images, ("--out=refused", *rest)) for case, images, rest, _ in REFUSED]
  arguments = [
    (f"--workdir={directory / 'runs' / case}", *(f"--image={directory / image}" for image in images), *FEW, *rest)
    for case, images, rest in calls
  ]
  arguments = [[argument.replace("--out=", f"--out={directory}/") for argument in call] for call in arguments]
  (directory / "errors.json").write_text(json.dumps(commands.call(environment, "invert", arguments)))
  return directory


def train_transparent(workdir):
  """A run of one iteration on images of 4x4 pixels with an alpha channel."""
  config = images_recipe.get_config("smoke")
  config.data.update({"resolution": 4, "channels": 4})
  config.gan.update({"widths": (8,), "cardinalities": (2,), "blocks": (1,)})
  config.run.total_images = config.batch_size
  config.run.grid = (2, 2)
  runs.train_run(config, workdir)


def load(path):
  with np.load(path / "inversion.npz") as file:
    return dict(file)


def picture(path):
  with Image.open(path) as it:
    return np.asarray(it)


def test_errors_are_one_line_that_names_the_cure(out):
  errors = json.loads((out / "errors.json").read_text())
  assert errors[: len(INVERTED)] == [None] * len(INVERTED)
  for error, (*_, message) in zip(errors[len(INVERTED) :], REFUSED, strict=True):
    assert error and message.replace("=text", f"={out}/text") in error and "\n" not in error
  assert not (out / "refused").exists()


def test_images_come_to_the_resolution_and_channels_of_the_run(out):
  square = Image.open(out / "wide.png").crop((8, 0, 40, 32)).resize((16, 16), Image.Resampling.LANCZOS)
  np.testing.assert_array_equal(load(out / "fine_tuned")["targets"], [square, picture(out / "b.webp")])
  grey = Image.open(out / "grey.png").resize((8, 8), Image.Resampling.LANCZOS)
  np.testing.assert_array_equal(load(out / "classes")["targets"][0], np.stack([grey] * 3, axis=-1))


@pytest.mark.parametrize("name", ["fine_tuned", "classes"])
def test_what_is_found_draws_the_images_again(out, name):
  """From inversion.npz and the checkpoint alone, as the command's docstring says."""
  case, images, _ = INVERTED[name]
  trained, found = runs.open_run(out / "runs" / case), load(out / name)
  algorithm, noise = trained.algorithm, found["noise"]
  if name == "fine_tuned":
    algorithm = FineTuned(trained.algorithm, trained.params, trained.carry)
    noise = np.concatenate([noise, found["offsets"]], axis=1)
  else:
    assert found["labels"].tolist() == [4, 1, 4] and found["offsets"].shape == (3, 0)
  (drawn,) = Sampler(algorithm, make_mesh(jax.local_devices()), batch_per_device=1).batches(
    trained.params, trained.carry, noise, found.get("labels")
  )
  assert np.abs(drawn.astype(int) - found["images"]).max() <= 1
  errors = np.mean(np.square((found["images"].astype(float) - found["targets"]) / 127.5), axis=(1, 2, 3))
  np.testing.assert_allclose(found["mse"], errors, rtol=0.05)
  assert found["losses"].shape == (len(images), 2)


def test_each_image_beside_what_is_drawn(out):
  found = load(out / "fine_tuned")
  names = sorted(path.name for path in (out / "fine_tuned").iterdir())
  assert names == ["0_wide.png", "1_b.png", "interpolation.gif", "inversion.npz"]
  shown = picture(out / "fine_tuned" / "0_wide.png")
  assert shown.shape == (256, 832, 3)
  target, by_noise, by_features = (shown[::16, ::16][:, 18 * i : 18 * i + 16] for i in range(3))
  np.testing.assert_array_equal(target, found["targets"][0])
  np.testing.assert_array_equal(by_features, found["images"][0])
  assert (by_noise != by_features).any()
  assert picture(out / "class" / "1_b.png").shape == (256, 576, 3)


def test_the_same_is_found_whatever_came_before(out):
  for name, rows in load(out / "classes").items():
    np.testing.assert_array_equal(rows[0], rows[2])
    assert name == "offsets" or (rows[0] != rows[1]).any()


def test_alpha_is_straight_in_arrays_and_over_a_checkerboard_in_the_video(out):
  """By hand: colours come back through premultiplied ones to a step; what is empty has none."""
  found = load(out / "transparent")
  np.testing.assert_array_equal(found["targets"][0], np.full((4, 4, 4), (199, 100, 50, 128)))
  np.testing.assert_array_equal(found["targets"][1], np.zeros((4, 4, 4)))
  trained = runs.open_run(out / "runs" / "rgba_4px")
  (drawn,) = Sampler(trained.algorithm, make_mesh(jax.local_devices()), batch_per_device=1).batches(
    trained.params, trained.carry, found["noise"], None
  )
  with Image.open(out / "transparent" / "interpolation.gif") as video:
    frame = np.asarray(video.convert("RGB")).astype(int)[::64, ::64]
  assert np.abs(frame - over_checkerboard(drawn)[0].astype(int)).mean() < 3


@pytest.mark.parametrize("name", ["fine_tuned", "class"])
def test_the_interpolation_passes_through_the_images(out, name):
  images = load(out / name)["images"].astype(int)
  scale = 256 // images.shape[1]
  with Image.open(out / name / "interpolation.gif") as video:
    assert video.n_frames == 4
    for index, image in enumerate(images):
      video.seek(2 * index)
      frame = np.asarray(video.convert("RGB")).astype(int)[::scale, ::scale]
      assert np.abs(frame - image).mean() < 3
