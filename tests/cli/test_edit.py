"""The command, on work directories from recorded snapshots of trained networks."""

import json
import re

import jax
import numpy as np
import pytest
from helpers import commands, official_pickles, zoo
from PIL import Image
from scipy.special import softmax

import r3gan_jax
from configs import roadmap
from configs.zoo import gan as zoo_gan
from r3gan_jax import factory
from r3gan_jax.conversion import write_state, write_workdir
from r3gan_jax.editing import Editor
from r3gan_jax.interop.official import read_snapshot
from r3gan_jax.metrics import residual_cnn

FEW = ("--samples=60", "--count=2")
CALLS = {
  "closed_form": ("uncond_16px", "--find=closed_form", *FEW),
  "pca": ("cond_8px", "--find=pca", "--name=components", *FEW),
  "own classes": ("cond_8px", "--find=classifier", "--target=2", "--space=features", *FEW[:1]),
  "classifier": ("cond_8px", "--find=classifier", "--target=1", "--channel=2", "--classifier=GREY", *FEW[:1]),
  "moved": ("uncond_16px", "--direction=closed_form_1", "--strength=-2,0,1", "--seeds=3,5", "--out=moved.png"),
  "of a class": ("cond_8px", "--direction=class_2", "--strength=0,4", "--seeds=0-2", "--class=4", "--out=class.png"),
  "inverted": ("uncond_16px", "--direction=closed_form_0", "--strength=0", "--inversion=found", "--out=found.png"),
  "of w": ("stylegan2", "--find=closed_form", *FEW),
  "layers": ("stylegan2", "--direction=closed_form_0", "--layers=0-1", "--strength=0,9", "--seeds=4", "--out=w.png"),
  "video": ("cond_8px", "--direction=components_1", "--strength=2,-2", "--seeds=0", "--out=video.gif"),
}
REFUSED = [
  (("uncond_16px",), "give either --find"),
  (("uncond_16px", "--find=pca", "--direction=x"), "give either --find"),
  (("uncond_16px", "--find=pca", "--seeds=1"), "--seeds does not go with --find"),
  (("uncond_16px", "--direction=closed_form_0", "--count=3", "--out=x.png"), "--count does not go with --direction"),
  (("uncond_16px", "--direction=closed_form_0"), "--direction needs --out"),
  (("uncond_16px", "--direction=closed_form_0", "--strength=far", "--out=x.png"), "--strength=far: give numbers"),
  (("uncond_16px", "--direction=closed_form_0", "--strength=nan", "--out=x.png"), "--strength=nan: give numbers"),
  (("uncond_16px", "--direction=closed_form_9", "--out=x.png"), "choose from closed_form_0, closed_form_1"),
  (("uncond_16px", "--direction=closed_form_0", "--out=x.jpg"), "x.jpg: choose .png"),
  (("uncond_16px", "--direction=closed_form_0", "--class=0", "--out=x.png"), "--class=0: this run has no classes"),
  (
    ("uncond_16px", "--direction=closed_form_0", "--layers=0", "--out=x.png"),
    "--layers=0: only directions in a StyleG",
  ),
  (
    ("uncond_16px", "--direction=closed_form_0", "--inversion=none", "--out=x.png"),
    "none/inversion.npz cannot be read",
  ),
  (("cond_8px", "--direction=class_2", "--inversion=found", "--out=x.png"), "inversion.npz is of another run"),
  (("cond_8px", "--direction=class_2", "--inversion=found", "--seeds=2", "--out=x.png"), "--seeds does not go with"),
  (("cond_8px", "--direction=class_2", "--class=5", "--out=x.png"), "--class=5: choose from 0 to 4"),
  (
    ("gan", "--find=classifier", "--target=1", "--classifier=LARGE", *FEW[:1]),
    "of 60 samples are of the class, too few",
  ),
  (("gan", "--find=pca"), "AdversarialNets has no features at 4x4, and no w"),
  (("stylegan2", "--direction=closed_form_0", "--layers=16", "--out=x.png"), "--layers=16: choose from 0 to "),
  (("uncond_16px", "--find=classifier", "--target=1"), "--find=classifier needs --classifier"),
  (("cond_8px", "--find=classifier"), "--find=classifier needs --target"),
  (("cond_8px", "--find=classifier", "--target=3"), "add --space=features"),
  (("cond_8px", "--find=classifier", "--target=5", "--space=features"), "--target=5: choose from 0 to 4"),
  (("cond_8px", "--find=classifier", "--target=2", "--classifier=GREY"), "--target=2: "),
  (("cond_8px", "--find=classifier", "--target=0", "--channel=3", "--classifier=GREY"), "--channel=3: "),
  (("uncond_16px", "--find=classifier", "--target=0", "--classifier=GREY"), "grey.npz is for images of (8, 8, 1)"),
  (("cond_8px", "--find=classifier", "--target=2", "--space=features"), "class_2.npz exists: give another --name"),
]


@pytest.fixture(scope="module")
def made(environment, tmp_path_factory):
  """All of `CALLS`, and the errors of `REFUSED`, in a directory."""
  directory = tmp_path_factory.mktemp("edit")
  for case in ("cond_8px", "uncond_16px"):  # of 5 classes at 8x8, and of none at 16x16
    write_workdir(read_snapshot(official_pickles.path(case)), directory / case)
  for name, config in (("gan", zoo_gan.get_config("smoke")), ("stylegan2", roadmap.get_config("a_smoke"))):
    write_state(config.to_dict(), zoo.first_state(factory.build_algorithm(config)), directory / name)
  for name, side in (("grey", 8), ("large", 28)):
    shape = (side, side, 1)
    params = jax.jit(residual_cnn.ResidualCNN(2).init)(jax.random.key(1), np.zeros((1, *shape), np.uint8))["params"]
    residual_cnn.save(directory / f"{name}.npz", params, shape, 2, 0.5)
  sample = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
  Image.fromarray(sample).save(directory / "image.png")
  flags = (f"--workdir={directory}/uncond_16px", f"--image={directory}/image.png", f"--out={directory}/found")
  commands.run(environment, "invert", *flags, "--fine_tune", "--starts=2", "--steps=20")
  calls = [*CALLS.values(), *(call for call, _ in REFUSED)]
  paths = {name: f"{directory}/{name.lower()}.npz" for name in ("GREY", "LARGE")}
  paths |= {flag: f"{flag}{directory}/" for flag in ("--out=", "--inversion=")}
  calls = [[f"--workdir={directory}/{case}", *rest] for case, *rest in calls]
  for name, path in paths.items():
    calls = [[flag.replace(name, path) for flag in call] for call in calls]
  (directory / "errors.json").write_text(json.dumps(commands.call(environment, "edit", calls)))
  return directory


def cells(path, side, scale):
  """The images of a grid: uint8 [rows, columns, side, side, 3]."""
  with Image.open(path) as picture:
    grid = np.asarray(picture)[::scale, ::scale]
  step = side + 2
  rows, columns = -(-grid.shape[0] // step), -(-grid.shape[1] // step)
  images = [grid[row * step :, column * step :][:side, :side] for row in range(rows) for column in range(columns)]
  return np.stack(images).reshape(rows, columns, side, side, 3)


def direction(made, case, name):
  with np.load(made / case / "directions" / f"{name}.npz") as file:
    return dict(file)


def test_errors_are_one_line_that_names_the_cure(made):
  errors = json.loads((made / "errors.json").read_text())
  assert errors[: len(CALLS)] == [None] * len(CALLS)
  for error, (_, message) in zip(errors[len(CALLS) :], REFUSED, strict=True):
    assert error and message in error.replace(f"{made}/", "") and "\n" not in error
  assert not list(made.glob("x.*"))


def test_directions_are_kept_with_the_run(made):
  names = {
    case: sorted(path.stem for path in (made / case / "directions").iterdir()) for case in ("uncond_16px", "cond_8px")
  }
  assert names == {
    "uncond_16px": ["closed_form_0", "closed_form_1"],
    "cond_8px": ["class_1_channel_2", "class_2", "components_0", "components_1"],
  }
  found = direction(made, "cond_8px", "class_1_channel_2")
  assert (found["space"], found["target"], found["channel"], found["samples"]) == ("noise", 1, 2, 60)
  assert found["classifier"] == f"{made}/grey.npz"


def test_a_row_for_each_image_and_a_column_for_each_strength(made):
  """At strength 0 these are the samples of the run, bit for bit; elsewhere those of the noise beside it."""
  gan = r3gan_jax.load(made / "uncond_16px")
  shown = cells(made / "moved.png", 16, gan.config.run.grid_scale)
  assert shown.shape[:2] == (2, 3)
  np.testing.assert_array_equal(shown[:, 1], gan.sample(seeds=[3, 5]))
  noise = gan.algorithm.noise(jax.vmap(jax.random.key)(np.array([3, 5], np.uint32)))
  for column, strength in ((0, -2), (2, 1)):
    moved = np.asarray(noise) + strength * direction(made, "uncond_16px", "closed_form_1")["vector"]
    drawn = np.asarray(jax.jit(gan.algorithm.generate)(gan.params, gan.carry, moved, None))
    assert np.abs(shown[:, column] - (drawn.clip(-1, 1) * 127.5 + 127.5)).max() < 1.01


def test_layers_of_a_stylegan(made):
  """The coarse ones alone: w of the others is that of the sample, by hand."""
  run = r3gan_jax.load(made / "stylegan2")
  own, moved = cells(made / "w.png", 32, run.config.run.grid_scale)[0].astype(float)
  editor = Editor(run.algorithm, run.params, run.carry)
  w = editor.features(editor.latents(np.array([4]), None)).reshape(1, *editor.feature_shape)
  step, params = direction(made, "stylegan2", "closed_form_0")["vector"], run.params["generator"]["synthesis"]
  step = step.reshape(w.shape[1:])
  for image, edited in ((own, w), (moved, w + 9 * step * (np.arange(len(step)) < 2)[:, None])):
    drawn = np.asarray(jax.jit(run.algorithm.synthesis.apply)({"params": params}, edited))[0]
    assert np.abs(image - (drawn.clip(-1, 1) * 127.5 + 127.5)).max() < 1.01
  assert np.abs(own - moved).max() > 2


def test_the_direction_of_a_class_leads_to_it(made):
  """Other samples of class 2 are farther along it than those of the others, by more than a standard deviation."""
  gan = r3gan_jax.load(made / "cond_8px")
  editor, labels = Editor(gan.algorithm, gan.params, gan.carry), np.arange(100, dtype=np.int32) % 5
  found = direction(made, "cond_8px", "class_2")["vector"]
  along = editor.features(editor.latents(np.arange(100), labels)) @ found / (found @ found)
  assert along[labels == 2].mean() > along[labels != 2].mean() + 1
  own, moved = cells(made / "class.png", 8, gan.config.run.grid_scale).swapaxes(0, 1)
  np.testing.assert_array_equal(own, gan.sample(seeds=range(3), label=4))
  assert (own != moved).any(axis=(1, 2, 3)).all()


def test_edits_of_an_inverted_image_start_from_its_reconstruction(made):
  with np.load(made / "found" / "inversion.npz") as found:
    scale = r3gan_jax.load(made / "uncond_16px").config.run.grid_scale
    np.testing.assert_array_equal(cells(made / "found.png", 16, scale)[0, 0], found["images"][0])
    assert found["offsets"].any()


def test_a_video_goes_there_and_back(made):
  with Image.open(made / "video.gif") as video:
    assert video.n_frames == 98
    frames = []
    for index in (0, 1, 49, 97):
      video.seek(index)
      frames.append(np.asarray(video.convert("RGB")).astype(int))
  assert np.abs(frames[1] - frames[3]).max() == 0 and np.abs(frames[0] - frames[2]).max() > 2


def test_numbers_are_those_of_the_pictures(command, made):
  """What the classifier says of the images in a grid; likeness is that of the channels that are not meant."""
  flags = (f"--workdir={made}/cond_8px", "--direction=class_1_channel_2", "--seeds=0-3", "--strength=0,5")
  which = (f"--classifier={made}/grey.npz", "--target=1", "--channel=2")
  said = command("edit", *flags, *which, f"--out={made}/scored.png").stdout
  rows = [[float(number) for number in re.findall(r"-?[\d.]+", line)] for line in said.splitlines()[-2:]]
  images = cells(made / "scored.png", 8, r3gan_jax.load(made / "cond_8px").config.run.grid_scale)
  params = residual_cnn.load(made / "grey.npz", (8, 8, 1))
  outputs = [residual_cnn.outputs(params, images[..., c].reshape(-1, 8, 8, 1)) for c in range(3)]
  probability = softmax(np.asarray(outputs[2]["logits"]), axis=1)[:, 1].reshape(4, 2).mean(axis=0)
  features = np.concatenate([np.asarray(of["features"]) for of in outputs[:2]], axis=1).reshape(4, 2, -1)
  units = features / np.linalg.norm(features, axis=2, keepdims=True)
  likeness = np.sum(units[:, 0] * units[:, 1], axis=1).mean()
  for row, expected in zip(rows, ([0, probability[0], 1], [5, probability[1], likeness]), strict=True):
    assert [row[0], row[1], row[3]] == pytest.approx(expected, abs=1e-3)
  assert rows[0][1:] == [rows[0][1], rows[0][1], 1, 1]  # random directions at strength 0
  free = command("edit", *flags, which[0]).stdout
  assert re.search(r"class [01] of channel [0-2]", free)
