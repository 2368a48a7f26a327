"""The command, run as a user runs it, with a digit classifier of random weights as the feature network."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from image_files import write_images, zip_directory
from PIL import Image

from r3gan_jax import runs
from r3gan_jax.metrics import digits_cnn
from r3gan_jax.sampling import Sampler, image_grid
from r3gan_jax.training.logging import read_metrics
from r3gan_jax.training.mesh import make_local_mesh

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  directory = tmp_path_factory.mktemp("evaluate")
  write_images(directory / "a", 100, side=32, first=0)
  write_images(directory / "b", 120, side=32, channels=1, first=1)
  zip_directory(directory / "a", directory / "a.zip")
  images = np.zeros((1, digits_cnn.SIDE, digits_cnn.SIDE, 1), np.uint8)
  params = jax.jit(digits_cnn.DigitsCNN().init)(jax.random.key(0), images)["params"]
  digits_cnn.save(directory / "classifier.npz", params, 0.1)
  return directory


def evaluate(files, *arguments, status=0):
  command = [sys.executable, "-m", "r3gan_jax.cli.evaluate", *arguments]
  environment = os.environ | {"XDG_CACHE_HOME": str(files / "cache")}
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
  assert done.returncode == status, done.stderr
  return done


def digits(files):
  return "--network=digits", f"--weights={files / 'classifier.npz'}"


def test_a_set_against_itself_and_against_another(files):
  arguments = (*digits(files), "--metrics=fid,precision_recall", "--batch=32", f"--json={files / 'numbers.json'}")
  evaluate(files, f"--real={files / 'a'}", f"--fake={files / 'a.zip'}", *arguments)
  (itself,) = json.loads((files / "numbers.json").read_text())
  assert abs(itself["fid"]) < 1e-6
  assert (itself["precision"], itself["recall"]) == (1, 1)
  assert (itself["num_real"], itself["num_fake"], itself["network"]) == (100, 100, "classifier")
  shown = evaluate(files, f"--real={files / 'a'}", f"--fake={files / 'b'}", *arguments).stdout
  (other,) = json.loads((files / "numbers.json").read_text())
  assert other["fid"] > 1e-3 and other["num_fake"] == 120
  assert f"{other['fid']:.6g}" in shown
  evaluate(files, f"--real={files / 'a'}", f"--fake={files / 'b'}", *arguments)
  assert json.loads((files / "numbers.json").read_text()) == [other]


def test_a_run(files):
  """Conditional, at 32x32; its samples are functions of the seed, and another checkpoint is another generator."""
  run = files / "run"
  command = [sys.executable, "main.py", "--config=configs/cifar10.py:smoke", f"--workdir={run}"]
  command += ["--config.gan.bfloat16=on", "--config.run.quantisation=official"]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr

  def score(*arguments):
    evaluate(files, f"--workdir={run}", "--num_samples=80", *digits(files), f"--json={files / 'run.json'}", *arguments)
    (numbers,) = json.loads((files / "run.json").read_text())
    return numbers

  first = score("--seed=1")
  assert (first["num_real"], first["num_fake"]) == (256, 80) and first["fid"] > 0
  logged = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
  assert logged == {"images_seen": 64, "metrics/seed": 1} | {f"metrics/{name}": first[name] for name in first}
  assert read_metrics(run)["metrics/fid"][1][-1] == first["fid"]
  assert score("--seed=1") == first
  in_float32 = score("--seed=1", "--quantisation=float32")
  assert (first["quantised_in"], in_float32["quantised_in"]) == ("bfloat16", "float32")
  assert in_float32["fid"] != first["fid"]
  assert score("--seed=1", "--checkpoint=32")["fid"] != first["fid"]
  assert "name either" in evaluate(files, f"--workdir={run}", f"--real={files / 'a'}", status=2).stderr
  error = evaluate(files, f"--workdir={run}", *digits(files), "--checkpoint=33", status=2).stderr
  assert "has no checkpoint of 33 images: choose from [64, 32, 0]" in error

  # What was drawn while it trained is of the same kind; the grid's rows are classes.
  trained = runs.open_run(run)
  with Image.open(run / "samples" / "fakes_0000000064.png") as picture:
    grid = np.asarray(picture)
  kinds = []
  for dtype in (jnp.bfloat16, jnp.float32):
    sampler = Sampler(trained.algorithm, make_local_mesh(), quantised_in=dtype)
    images = sampler(trained.params, trained.carry, np.arange(8), np.arange(8) // 4)
    kinds.append(np.array_equal(image_grid(images, columns=4), grid))
  assert kinds == [True, False]


@pytest.mark.parametrize(
  "arguments, cure",
  [
    (("--fake=a", "--metrics=fid"), "put https://github.com/mseitzer/pytorch-fid"),
    (("--fake=a", "--metrics=sharpness"), "choose from modes, fid, kid, inception_score, precision_recall"),
    (("--fake=a", "--metrics=modes"), "needs the --workdir of a run on stacked digits"),
    (("--fake=a", "--weights=x.npz"), "--weights needs --network"),
    (("--fake=a", "--quantisation=official"), "images in files are uint8 already"),
    (("--fake=nowhere",), "neither a directory nor a zip"),
    (("--fake=a", "--metrics=kid", "digits"), "1000"),
    (("--fake=a", "--metrics=inception_score", "digits"), "needs class logits"),
    (("--fake=mixed", "digits"), "bring all to one size"),
  ],
)
def test_bad_input_is_one_line_that_names_the_cure(files, arguments, cure):
  if not (files / "mixed").exists():
    write_images(files / "mixed", 60, side=32)
    write_images(files / "mixed", 1, side=16, first=60)
  fake, *rest = arguments
  rest = [part for name in rest for part in (digits(files) if name == "digits" else (name,))]
  name = fake.removeprefix("--fake=")
  done = evaluate(files, f"--real={files / 'a'}", f"--fake={files / name}", *rest, status=2)
  error = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
  assert len(error) == 1 and cure in error[0]
