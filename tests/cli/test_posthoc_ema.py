"""The command, on a run of the quickstart's smoke recipe with EDM2's learning rate."""

import re

import jax
import numpy as np
import pytest
from helpers.commands import call
from ml_collections import ConfigDict

import r3gan_jax
from r3gan_jax import factory, runs
from r3gan_jax.training.workdir import read_config

STDS = (0.05, 0.1)


@pytest.fixture(scope="module")
def run(command, tmp_path_factory):
  """Five iterations of 8 images with a snapshot of each; checkpoints at 0, 32 and 40."""
  run = tmp_path_factory.mktemp("posthoc") / "run"
  settings = {"gan.ema_stds": STDS, "gan.learning_rate_schedule": "inverse_sqrt", "gan.learning_rate": 0.01}
  settings |= {"gan.learning_rate_ramp_images": 32, "gan.learning_rate_decay_images": 16}
  settings |= {"run.total_images": 40, "run.snapshot_every_images": 8, "run.keep_checkpoints": 6}
  flags = [f"--config.{name}={value}" for name, value in settings.items()]
  command("main", "--config=configs/stacked_digits.py:smoke", f"--workdir={run}", *flags)
  return run


def assert_close(actual, expected):
  np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-7)


def ema(workdir, checkpoint=""):
  return runs.open_state(workdir, checkpoint)[2].ema


def test_a_first_step_without_a_learning_rate_is_harmless(run):
  """EDM2's is 0 there: parameters stay, the averages are copies of them, and the next step trains."""
  start, first, second = (runs.open_state(run, images)[2] for images in ("0", "8", "16"))
  jax.tree.map(np.testing.assert_array_equal, start.params, first.params)
  for name in ("generator", *(f"generator_{std}" for std in STDS)):
    jax.tree.map(np.testing.assert_array_equal, first.ema[name], start.params["generator"])
  for network in ("generator", "discriminator"):
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), first.params[network], second.params[network])
    assert 0 < max(jax.tree.leaves(moved)) < 0.1


def test_averages_of_any_length(command, run, tmp_path):
  """One that was tracked comes back; the others are work directories, too: for samples and for a new run."""
  made = command("posthoc_ema", f"--workdir={run}", "--std=0.05,0.07,0.2", f"--out={tmp_path}/made")
  assert re.search(
    r"std 0.07 at 40 images seen, with weights [0-9.]+% from the exact ones: \S+/std_0.07\n", made.stdout
  )
  assert "std 0.2 cannot be made well from config.gan.ema_stds = (0.05, 0.1) and the 5 snapshots" in made.stderr
  assert "std 0.07 cannot" not in made.stderr
  whole = runs.open_state(run)[2]
  state = runs.open_state(tmp_path / "made" / "std_0.05")[2]
  assert state.images_seen == 40
  jax.tree.map(assert_close, state.ema["generator"], whole.ema["generator_0.05"])
  jax.tree.map(np.testing.assert_array_equal, state.replace(ema={}, rng=0), whole.replace(ema={}, rng=0))

  # Between the two that were tracked: nearer to both than these are to each other.
  between = ema(tmp_path / "made" / "std_0.07")["generator"]
  low, high = (whole.ema[f"generator_{std}"] for std in STDS)

  def distance(a, b):
    return sum(float(np.square(x - y).sum()) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))

  assert 0 < max(distance(between, low), distance(between, high)) < distance(low, high)

  command("sample", f"--workdir={tmp_path}/made/std_0.07", "--seeds=0-3", f"--out={tmp_path}/drawn.npz")
  gan = r3gan_jax.load(tmp_path / "made" / "std_0.07")
  jax.tree.map(np.testing.assert_array_equal, gan.params["generator"], between)
  np.testing.assert_array_equal(np.load(tmp_path / "drawn.npz")["images"], gan.sample(seeds=range(4)))
  again = ConfigDict(read_config(run))
  again.init_from, again.gan.ema_stds = str(tmp_path / "made" / "std_0.07"), (0.05, 0.15)
  start = runs.build_start(again, factory.build_experiment(again, 1), tmp_path / "again")
  jax.tree.map(np.testing.assert_array_equal, start.ema["generator"], between)
  # The one that the source has not starts from what it averages.
  jax.tree.map(np.testing.assert_array_equal, start.ema["generator_0.15"], whole.params["generator"])


def test_at_images_whose_checkpoint_is_gone(command, run, tmp_path):
  """By the run as it was then; all that is no average is the newest's."""
  before = ema(run, "24")
  (run / "checkpoints" / "24").rename(tmp_path / "24")
  command("posthoc_ema", f"--workdir={run}", "--std=0.1", "--images=24", f"--out={tmp_path}/made")
  state = runs.open_state(tmp_path / "made" / "std_0.1")[2]
  assert state.images_seen == 24
  jax.tree.map(assert_close, state.ema["generator"], before["generator_0.1"])
  jax.tree.map(np.testing.assert_array_equal, state.ema["generator_0.05"], before["generator_0.05"])
  jax.tree.map(np.testing.assert_array_equal, state.params, runs.open_state(run)[2].params)


REFUSED = {
  ("--std=0.3",): "--std=0.3 must be positive and below 0.2887, 1 / sqrt(12)",
  ("--std=0",): "--std=0 must be positive",
  ("--std=nan",): "--std=nan must be positive",
  ("--std=wide",): "--std=wide: give numbers, such as 0.05,0.1",
  ("--std=0.1", "--images=48"): "no averages at 48 images: choose from its 5 snapshots, 8 to 40; the nearest is 40",
  ("--std=0.1", "--out=gs://bucket/x"): "--out=gs://bucket/x: write to a local path",
}


def test_bad_input_is_one_line_that_names_the_cure_and_writes_nothing(environment, run, tmp_path):
  calls = [(f"--workdir={run}", f"--out={tmp_path}/made", *flags) for flags in REFUSED]
  for error, message in zip(call(environment, "posthoc_ema", calls), REFUSED.values(), strict=True):
    assert message in error
  assert not (tmp_path / "made").exists()


def test_what_exists_is_left_alone(refused, run, tmp_path):
  (tmp_path / "std_0.1").mkdir()
  (tmp_path / "std_0.1" / "mine").touch()
  error = refused("posthoc_ema", f"--workdir={run}", "--std=0.05,0.1", f"--out={tmp_path}")
  assert f"{tmp_path}/std_0.1 exists and is not empty" in error and not (tmp_path / "std_0.05").exists()
