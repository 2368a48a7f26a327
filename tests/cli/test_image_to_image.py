"""An image-to-image run by its commands: trained, drawn from images of one's own, scored."""

import json

import numpy as np
import pytest
from helpers import commands
from PIL import Image

SMALL = ("--config.batch_size=2", "--config.run.total_images=4", "--config.run.metric_samples=4")


@pytest.fixture(scope="module")
def directory(environment, tmp_path_factory):
  """`run` inpaints images of 32x32; `given` has two images with a transparent box, `large` has one of another size."""
  directory = tmp_path_factory.mktemp("image_to_image")
  flags = ("--config=configs/super_resolution.py:inpaint", "--config.data.source=generated", *SMALL)
  shape = ("--config.gan.widths=(8,8,8,8)", "--config.gan.cardinalities=(1,1,1,1)", "--config.gan.blocks=(1,1,1,1)")
  scores = ("--config.run.metrics=('pairs',)", "--config.run.feature_network=pixels", "--config.run.best_metric=psnr")
  commands.run(environment, "main", *flags, *shape, *scores, "--config.run.grid=(4,2)", f"--workdir={directory}/run")
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


def test_scores_that_do_not_fit_are_refused(directory, refused):
  message = refused("evaluate", f"--workdir={directory}/run", "--metrics=fid")
  assert message.startswith("metrics: 'fid' of image_to_image: 'pairs' is the metric")
