"""What a GAN is for besides samples, by the commands, as a user runs them: on BiGAN and a data set with test images."""

import json

import jax
import numpy as np
import pytest
from helpers import official_pickles
from helpers.image_files import write_idx_files
from PIL import Image

from r3gan_jax import runs
from r3gan_jax.conversion import write_workdir
from r3gan_jax.data.prepare import prepare_idx
from r3gan_jax.interop.official import read_snapshot
from r3gan_jax.ops.images import to_float, to_uint8
from r3gan_jax.sampling import image_grid
from r3gan_jax.training.logging import read_metrics


@pytest.fixture(scope="module")
def trained(command, tmp_path_factory):
  """(work directory, images and labels by prefix of the idx files, the images in another order than the data set's)."""
  directory = tmp_path_factory.mktemp("own")
  images = write_idx_files(directory)
  prepare_idx(directory, "mnist", directory / "data")
  workdir = directory / "run"
  command(
    "main",
    "--config=configs/zoo/bigan.py:smoke",
    f"--workdir={workdir}",
    "--config.data.source=tfds",
    "--config.data.name=mnist",
    f"--config.run.data_path={directory / 'data'}",
    "--config.run.metrics=('classification_error',)",
    "--config.run.best_metric=classification_error",
    "--config.run.total_images=16",
  )
  return workdir, images


def test_pictures_are_of_test_images(command, trained, tmp_path):
  workdir, images = trained
  command("pictures", f"--workdir={workdir}", f"--out={tmp_path / 'new'}")
  run = runs.open_run(workdir)
  reals = jax.numpy.asarray(images["t10k"][0][..., None])
  drawn = jax.jit(run.algorithm.pictures)(run.params, run.carry, to_float(reals))
  assert sorted(path.stem for path in (tmp_path / "new").iterdir()) == sorted(drawn)
  for name, expected in drawn.items():
    with Image.open(tmp_path / "new" / f"{name}.png") as picture:
      grid = np.asarray(picture)[:: run.config.run.grid_scale, :: run.config.run.grid_scale].astype(int)
    expected = image_grid(np.asarray(to_uint8(expected)), run.config.run.grid[0])[..., 0]
    assert grid.shape == expected.shape and np.abs(grid - expected).max() <= 1


def test_the_error_by_the_command_is_that_of_training(command, trained, tmp_path):
  """And of all pairs of codes; it has one series, whatever samples other scores are of, and fixes no protocol."""
  workdir, images = trained
  series = "metrics/classification_error"
  before = read_metrics(workdir)[series]
  command("evaluate", f"--workdir={workdir}", f"--json={tmp_path / 'scores.json'}", "--num_samples=7", "--seed=3")
  (scores,) = json.loads((tmp_path / "scores.json").read_text())
  run = runs.open_run(workdir)
  codes = {
    prefix: run.algorithm.encode(run.params, run.carry, to_float(jax.numpy.asarray(pixels[..., None])))
    for prefix, (pixels, _) in images.items()
  }
  distances = np.linalg.norm(codes["t10k"][:, None] - codes["train"][None], axis=2)
  guessed = images["train"][1][distances.argmin(axis=1)]
  error = np.mean(guessed != images["t10k"][1])
  assert scores == {
    "images_seen": 16,
    "classification_error": pytest.approx(error),
    "classification_error_test_images": 5,
    "classification_error_training_images": 12,
  }
  after = read_metrics(workdir)
  assert [name for name in after if name.startswith("metrics/")] == [
    series,
    f"{series}_test_images",
    f"{series}_training_images",
  ]
  assert before[1][-1] == after[series][1][-1] == pytest.approx(error)
  assert (workdir / "best").is_dir() and not (workdir / "protocol.json").exists()
  said = command("report", f"--workdir={workdir}").stdout
  assert f"classification_error: {error:g}" in said
  page = (workdir / "report.html").read_text()
  assert "classification error on test images" in page and "classification error test images 5" in page


def test_a_gan_without_pictures(refused, tmp_path):
  write_workdir(read_snapshot(official_pickles.path("uncond_16px")), tmp_path / "run")
  error = refused("pictures", f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'new'}")
  assert error == "r3gan has no pictures of its own: draw samples with cli.sample"
  assert not (tmp_path / "new").exists()
