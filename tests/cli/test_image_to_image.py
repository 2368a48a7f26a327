"""An image-to-image run by its commands: trained, drawn from images of one's own, scored."""

import json

import numpy as np
import pytest
from helpers import commands
from PIL import Image

SMALL = ("--config.batch_size=2", "--config.run.total_images=4", "--config.run.metric_samples=4")

SHAPE = ("--config.gan.widths=(8,8,8,8)", "--config.gan.cardinalities=(1,1,1,1)", "--config.gan.blocks=(1,1,1,1)")
SCORES = ("--config.run.metrics=('pairs',)", "--config.run.feature_network=pixels", "--config.run.best_metric=psnr")


@pytest.fixture(scope="module")
def directory(environment, tmp_path_factory):
  """`run` inpaints images of 32x32; `given` has two images with a transparent box, `large` has one of another size."""
  directory = tmp_path_factory.mktemp("image_to_image")
  flags = ("--config=configs/super_resolution.py:inpaint", "--config.data.source=generated", *SMALL)
  commands.run(environment, "main", *flags, *SHAPE, *SCORES, "--config.run.grid=(4,2)", f"--workdir={directory}/run")
  random = np.random.default_rng(0)
  for name, side in (("given/a.png", 32), ("given/b.png", 32), ("large/a.png", 40)):
    image = random.integers(0, 256, (side, side, 4), np.uint8)
    image[..., 3] = 255
    image[4:12, 8:20] = 0
    (directory / name).parent.mkdir(exist_ok=True)
    Image.fromarray(image).save(directory / name)
  return directory


def test_training_draws_from_the_conditions_of_the_reals_and_scores(directory):
  names = {path.name for path in (directory / "run" / "samples").iterdir()}
  assert {"reals.png", "fakes_0000000004.png", "conditions_samples_and_reals_0000000004.png"} <= names
  lines = [json.loads(line) for line in (directory / "run" / "metrics.jsonl").read_text().splitlines()]
  scores = {name: value for line in lines for name, value in line.items() if name.startswith("metrics/")}
  expected = ("psnr", "ssim", "feature_distance", "diversity", "consistency")
  assert {f"metrics/{name}" for name in expected} <= scores.keys() and np.isfinite([*scores.values()]).all()
  assert 0 < scores["metrics/baseline_psnr"] < 60 and (directory / "run" / "best").exists()


def test_the_command_scores_what_training_logs(directory, command):
  command("evaluate", f"--workdir={directory}/run", f"--json={directory}/scores.json")
  (scores,) = json.loads((directory / "scores.json").read_text())
  logged = [json.loads(line) for line in (directory / "run" / "metrics.jsonl").read_text().splitlines()]
  logged = next(line for line in logged if line["images_seen"] == 4 and "metrics/psnr" in line)
  for name in ("psnr", "ssim", "diversity", "consistency", "baseline_feature_distance"):
    np.testing.assert_allclose(scores[name], logged[f"metrics/{name}"], rtol=1e-5)


def test_images_are_drawn_from_images(directory, environment):
  """Every seed from every image, or from those chosen; an image is its number among the names."""
  out, run = directory / "drawn", f"--workdir={directory}/run"
  out.mkdir()
  calls = [
    (run, f"--condition={directory}/given", "--seeds=0-2", f"--out={out}/all.npz"),
    (run, f"--condition={directory}/given", "--seeds=2,1", "--class=1", f"--out={out}/second.npz"),
    (run, f"--condition={directory}/given", "--seeds=0-2", f"--out={out}/all.png"),
    (run, "--seeds=0", f"--out={out}/none.png"),
    (run, f"--condition={directory}/large", f"--out={out}/none.png"),
    (run, f"--condition={directory}/given", "--class=2", f"--out={out}/none.png"),
  ]
  *drawn, without, large, third = commands.call(environment, "sample", calls)
  assert drawn == [None] * 3
  with np.load(out / "all.npz") as every, np.load(out / "second.npz") as second:
    assert every["images"].shape == (6, 32, 32, 3)
    assert (every["seeds"].tolist(), every["labels"].tolist()) == ([0, 1, 2] * 2, [0] * 3 + [1] * 3)
    np.testing.assert_array_equal(second["images"], every["images"][[5, 4]])
    assert (every["images"][:3] != every["images"][3:]).any()
  with Image.open(out / "all.png") as grid:  # a row for each image
    assert grid.size[0] > grid.size[1]
  assert "--condition=FOLDER" in without
  assert f"--condition={directory}/large: the run draws from images of 32x32" in large and "40x40" in large
  assert third.startswith("--class=2: choose from 0 to 1")


def test_a_page_without_images_to_draw_from_is_refused(directory, refused):
  assert "draws from images" in refused("explore", f"--workdir={directory}/run", "--port=0")


def test_pairs_of_files_from_preparation_to_samples(command, environment, tmp_path):
  """Grey labels -> RGB: prepared, trained and scored as the printed settings say, and drawn from labels alone."""
  random = np.random.default_rng(0)
  for name, channels in (("A", 1), ("B", 3)):
    (tmp_path / "files" / name).mkdir(parents=True)
    for index, image in enumerate(random.integers(0, 256, (4, 16, 16, channels), np.uint8)):
      Image.fromarray(image[..., 0] if channels == 1 else image).save(tmp_path / "files" / name / f"{index}.png")
  preparation = ("--name=labels", "--resolution=16", "--grey_conditions", f"--data_dir={tmp_path}/data")
  done = command("prepare_data", f"--pairs={tmp_path}/files", *preparation)
  printed = done.stdout.splitlines()[-1].removeprefix("train on it with ").split()
  assert printed[:2] == ["--config.gan.condition=pairs", "--config.data.condition_channels=1"]
  shape = ("--config.gan.widths=(8,8,8)", "--config.gan.cardinalities=(1,1,1)", "--config.gan.blocks=(1,1,1)")
  size = ("--config.data.resolution=16", "--config.run.grid=(2,2)")
  recipe = ("--config=configs/super_resolution.py:inpaint", *SMALL, *shape, *size, *SCORES)
  commands.run(environment, "main", *recipe, *printed, f"--workdir={tmp_path}/run")
  lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
  scores = {name: value for line in lines for name, value in line.items() if name.startswith("metrics/")}
  assert "metrics/consistency" not in scores, "no condition can be made of a sample"
  repeated = np.stack([np.asarray(Image.open(tmp_path / "files" / "A" / f"{i}.png").convert("RGB")) for i in range(4)])
  true = np.stack([np.asarray(Image.open(tmp_path / "files" / "B" / f"{i}.png")) for i in range(4)])
  errors = np.mean(np.square(repeated.astype(np.float64) - true), axis=(1, 2, 3))
  np.testing.assert_allclose(scores["metrics/baseline_psnr"], np.mean(10 * np.log10(255**2 / errors)), rtol=1e-5)
  with Image.open(tmp_path / "run" / "samples" / "reals.png") as reals:
    assert reals.mode == "RGB"
  out = tmp_path / "drawn.npz"
  command("sample", f"--workdir={tmp_path}/run", f"--condition={tmp_path}/files/A", "--seeds=0-1", f"--out={out}")
  with np.load(out) as drawn:
    assert drawn["images"].shape == (8, 16, 16, 3)


def test_pairs_are_for_image_to_image_and_prepared_data(refused, tmp_path):
  pairs = ("--config.data.condition_channels=3", f"--workdir={tmp_path}/run")
  message = refused("main", "--config=configs/fashion_mnist.py:smoke", *pairs)
  assert message.startswith("config.data.condition_channels = 3: r3gan learns from images alone")
  recipe = ("--config=configs/super_resolution.py:inpaint", "--config.gan.condition=pairs")
  message = refused("main", *recipe, *pairs, "--config.data.source=folder")
  assert "config.data.source = 'folder': pairs are read from data sets that prepare_data --pairs has made" in message


def test_scores_that_do_not_fit_are_refused(directory, refused):
  message = refused("evaluate", f"--workdir={directory}/run", "--metrics=fid")
  assert message.startswith("metrics: 'fid' of image_to_image: 'pairs' is the metric")
  message = refused("evaluate", f"--workdir={directory}/run", "--metrics=pairs", "--truncation=0.7")
  assert message.startswith("--truncation=0.7 is not for the metric 'pairs'")
