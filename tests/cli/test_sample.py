"""The command, on work directories from recorded snapshots of trained networks."""

import json

import numpy as np
import pytest
from helpers import commands, official_pickles
from PIL import Image

from r3gan_jax.conversion import write_workdir
from r3gan_jax.interop.official import read_snapshot
from r3gan_jax.sampling import image_grid

SEVERAL = ("cond_8px", "--class=3,0-1", "--seeds=5-8")
DRAWN = {
  "several.npz": SEVERAL,
  "several.png": SEVERAL,
  "several": SEVERAL,
  "one.npz": ("cond_8px", "--class=1", "--seeds=7"),
  "truncation_none.npz": ("uncond_16px", "--seeds=0-3"),
  "truncation_1.npz": ("uncond_16px", "--seeds=0-3", "--truncation=1"),
  "truncation_0.999.npz": ("uncond_16px", "--seeds=0-3", "--truncation=0.999"),
  "truncation_0.npz": ("uncond_16px", "--seeds=0-3", "--truncation=0"),
  "walk.gif": ("uncond_16px", "--seeds=2,1,3", "--interpolate=0.16"),
  "classes.gif": ("cond_8px", "--seeds=0,1", "--class=0-2", "--interpolate=0.04"),
  "classes.npz": ("cond_8px", "--seeds=0,1", "--class=0-2"),
}
REFUSED = [
  ("cond_8px", ("--class=3-5",), "--class=3-5: choose from 0 to 4"),
  ("cond_8px", ("--class=cat",), "--class=cat: 'cat' is neither a number nor a range"),
  ("uncond_16px", ("--class=0",), "--class=0: "),
  ("uncond_16px", ("--seeds=0-4294967296",), "choose from 0 to 4294967295"),
  ("uncond_16px", ("--truncation=1.5",), "--truncation=1.5"),
  ("uncond_16px", ("--interpolate=0",), "--interpolate=0"),
  ("uncond_16px", ("--interpolate=1",), "x.png: "),
  ("uncond_16px", ("--out=x.gif",), "x.gif: "),
  ("uncond_16px", ("--interpolate=1", "--seeds=3", "--out=x.gif"), "--seeds=3 is one seed"),
  ("cond_8px", ("--interpolate=1", "--out=x.gif"), "--class=0-4"),
]


@pytest.fixture(scope="module")
def out(environment, tmp_path_factory):
  """All of `DRAWN`, and the errors of `REFUSED`, in a directory."""
  directory = tmp_path_factory.mktemp("sample")
  for case in ("cond_8px", "uncond_16px"):  # of 5 classes at 8x8, and of none at 16x16
    write_workdir(read_snapshot(official_pickles.path(case)), directory / "runs" / case)
  calls = [(case, *arguments, f"--out={directory / name}") for name, (case, *arguments) in DRAWN.items()]
  calls += [(case, f"--out={directory}/x.png", *arguments) for case, arguments, _ in REFUSED]
  errors = commands.call(
    environment, "sample", [(f"--workdir={directory / 'runs' / case}", *arguments) for case, *arguments in calls]
  )
  (directory / "errors.json").write_text(json.dumps(errors))
  return directory


def images(path):
  with np.load(path) as file:
    return file["images"].astype(int)


def picture(path):
  with Image.open(path) as it:
    return np.asarray(it)


def test_every_seed_in_each_of_several_classes(out):
  with np.load(out / "several.npz") as file:
    drawn, seeds, labels = file["images"], file["seeds"], file["labels"]
  assert seeds.tolist() == [5, 6, 7, 8] * 3 and labels.tolist() == [3] * 4 + [0] * 4 + [1] * 4
  np.testing.assert_array_equal(images(out / "one.npz")[0], drawn[10])
  assert (drawn[0] != drawn[4]).any()
  np.testing.assert_array_equal(picture(out / "several.png"), image_grid(drawn, 4))  # a class a row, a seed a column
  for image, seed, label in zip(drawn, seeds, labels, strict=True):
    np.testing.assert_array_equal(picture(out / "several" / f"class{label:04}_seed{seed:08}.png"), image)
  assert len(list((out / "several").iterdir())) == 12


def test_truncation(out):
  """At 0 all seeds give the image of no noise; from 1, the default, the way there is continuous."""
  none, one, almost, zero = (images(out / f"truncation_{psi}.npz") for psi in ("none", "1", "0.999", "0"))
  np.testing.assert_array_equal(none, one)
  assert 0 < np.abs(one - almost).mean() < 2
  assert (zero == zero[0]).all() and np.abs(one - zero).mean() > 10


def test_a_video_passes_through_the_seeds_and_repeats(out):
  seeds = images(out / "truncation_none.npz")[[2, 1, 3]]
  with Image.open(out / "walk.gif") as video:
    assert (video.n_frames, video.size, video.info["loop"], video.info["duration"]) == (12, (256, 256), 0, 40)
    frames = []
    for frame in range(12):
      video.seek(frame)
      frames.append(np.asarray(video.convert("RGB")).astype(int)[::16, ::16])
  distance = np.array([[np.abs(frame - seed).mean() for frame in frames] for seed in seeds])
  assert distance.argmin(axis=1).tolist() == [0, 4, 8] and distance.min(axis=1).max() < 3


def test_a_video_of_several_classes_side_by_side(out):
  drawn = images(out / "classes.npz").reshape(3, 2, 8, 8, 3)
  with Image.open(out / "classes.gif") as video:
    assert (video.n_frames, video.size) == (2, (576, 576))
    video.seek(1)
    frame = np.asarray(video.convert("RGB"))[::32, ::32]
  assert np.abs(frame.astype(int) - image_grid(drawn[:, 1], 2)).mean() < 3


def test_bad_input_is_one_line_that_names_the_cure(out):
  errors = json.loads((out / "errors.json").read_text())
  assert errors[: len(DRAWN)] == [None] * len(DRAWN)
  for error, (_, _, message) in zip(errors[len(DRAWN) :], REFUSED, strict=True):
    assert error and message in error and "\n" not in error
  assert not (out / "x.png").exists()
