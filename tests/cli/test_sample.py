"""The command, on work directories from recorded snapshots of trained networks."""

import json
from io import BytesIO

import numpy as np
import pytest
from helpers import commands, official_pickles
from PIL import Image

from r3gan_jax.conversion import write_workdir
from r3gan_jax.data.files import ImageFiles
from r3gan_jax.data.labels import listed_labels
from r3gan_jax.interop.official import read_snapshot
from r3gan_jax.sampling import image_grid

SEVERAL = ("cond_8px", "--class=3,0-1", "--seeds=5-8")
DRAWN = {
  "several.npz": SEVERAL,
  "several.png": SEVERAL,
  "several": SEVERAL,
  "drawn.ZIP": ("cond_8px", "--seeds=0-5,3,5-7"),
  "drawn": ("cond_8px", "--seeds=0-2,2"),
  "drawn/": ("cond_8px", "--seeds=0-7"),
  "drawn.npz": ("cond_8px", "--seeds=0-7"),
  "plain.v2": ("uncond_16px", "--seeds=0-1"),
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
  ("uncond_16px", ("--seeds=0-4294967295",), "4,294,967,296 images of 16x16 in one file need"),
  ("uncond_16px", ("--seeds=0-4294967295", "--out=x.npz"), "write a directory or .zip"),
  ("uncond_16px", ("--seeds=0-4294967295", "--interpolate=1", "--out=x.gif"), "107,374,182,400 images"),
  ("uncond_16px", ("--out=DIR/x.jpg",), "x.jpg: choose .png or .npz or .zip or .gif or .mp4 or a directory"),
  ("uncond_16px", ("--out=DIR/several",), "runs/cond_8px, not of the checkpoint at"),
  ("uncond_16px", ("--out=DIR/drawn.ZIP",), "runs/cond_8px, not of the checkpoint at"),
  ("cond_8px", ("--truncation=0.5", "--out=DIR/several"), "several has images drawn with truncation = 1.0, not 0.5"),
  ("cond_8px", ("--out=DIR/foreign",), "foreign has images but no sampling.json"),
  ("cond_8px", ("--out=DIR/foreign.zip",), "foreign.zip exists and was not written by this command"),
]


@pytest.fixture(scope="module")
def out(environment, tmp_path_factory):
  """All of `DRAWN`, and the errors of `REFUSED`, in a directory."""
  directory = tmp_path_factory.mktemp("sample")
  for case in ("cond_8px", "uncond_16px"):  # of 5 classes at 8x8, and of none at 16x16
    write_workdir(read_snapshot(official_pickles.path(case)), directory / "runs" / case)
  (directory / "foreign").mkdir()
  (directory / "foreign" / "mine.png").write_text("mine")
  (directory / "foreign.zip").write_text("mine")
  calls = [(case, *arguments, f"--out={directory}/{name}") for name, (case, *arguments) in DRAWN.items()]
  for case, arguments, _ in REFUSED:
    calls.append((case, f"--out={directory}/x.png", *(flag.replace("DIR", str(directory)) for flag in arguments)))
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
  names = [path.name for path in sorted((out / "several").glob("*.png"))]
  listed = json.loads((out / "several" / "dataset.json").read_text())["labels"]
  assert listed == [[name, int(name[5:9])] for name in names] and len(names) == 12


def test_a_directory_or_zip_keeps_the_labels_that_seeds_draw(out):
  """As our own reader finds them; the directory was drawn in two parts."""
  with np.load(out / "drawn.npz") as file:
    drawn, seeds, labels = file["images"], file["seeds"], file["labels"]
  expected = {
    f"class{label:04}_seed{seed:08}.png": index for index, (seed, label) in enumerate(zip(seeds, labels, strict=True))
  }
  for name in ("drawn", "drawn.ZIP"):
    files = ImageFiles(out / name)
    assert sorted(files.names) == sorted(expected)
    order = [expected[name] for name in files.names]
    np.testing.assert_array_equal(listed_labels(files), labels[order])
    read = [np.asarray(Image.open(BytesIO(files.read(index)))) for index in range(8)]
    np.testing.assert_array_equal(read, drawn[order])
  assert sorted(path.name for path in (out / "plain.v2").iterdir()) == [
    "sampling.json",
    "seed00000000.png",
    "seed00000001.png",
  ]


def test_a_zip_can_be_prepared_for_training(environment, out):
  where = (f"--images={out / 'drawn.ZIP'}", f"--data_dir={out / 'data'}", "--name=samples", "--resolution=8")
  shown = commands.run(environment, "prepare_data", *where, "--processes=1").stdout
  with np.load(out / "drawn.npz") as file:
    assert f"{file['labels'].max() + 1} classes, numbered" in shown and "8 images in" in shown


def test_what_is_there_is_not_drawn_again(environment, out):
  """An image that is there stays as it is, whatever it holds; one that is missing is drawn."""
  kept, missing = sorted((out / "drawn").glob("*.png"))[:2]
  before = missing.read_bytes()
  kept.write_text("there")
  missing.unlink()
  flags = (f"--workdir={out / 'runs' / 'cond_8px'}", "--seeds=0-7", f"--out={out / 'drawn'}")
  shown = commands.run(environment, "sample", *flags).stdout
  assert "8 images (7 of them were there)" in shown
  assert kept.read_text() == "there" and missing.read_bytes() == before


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
  assert not list(out.glob("x.*"))
  assert (out / "foreign.zip").read_text() == "mine" and len(list((out / "foreign").iterdir())) == 1
