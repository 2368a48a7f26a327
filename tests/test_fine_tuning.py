"""configs/fine_tune.py, from golden weights and from a small run's configuration."""

import json
import re

import jax
import numpy as np
import pytest
from helpers import official_pickles
from helpers.states import final_state

from configs import fine_tune, stacked_digits
from configs.zoo import dcgan
from r3gan_jax import factory
from r3gan_jax.conversion import write_workdir
from r3gan_jax.errors import UserError
from r3gan_jax.interop.official import read_snapshot


@pytest.fixture
def converted(tmp_path):
  """A converted snapshot of 8x8, which names no data."""
  write_workdir(read_snapshot(official_pickles.path("cond_8px")), tmp_path / "source")
  return tmp_path / "source"


def workdir_of(config, path):
  path.mkdir()
  (path / "config.json").write_text(json.dumps(factory.checked(config.to_dict())))
  return str(path)


def test_a_frozen_run_resumes_bit_for_bit(command, converted, tmp_path):
  """And its frozen stages are those of the source."""

  def train(run, images):
    command(
      *("main", f"--config=configs/fine_tune.py:{converted}", f"--workdir={tmp_path / run}"),
      *("--config.data.source=generated", "--config.batch_size=8", f"--config.run.total_images={images}"),
      *("--config.gan.augment_p=0", "--config.gan.freeze_generator=1", "--config.run.grid=(2,2)"),
    )

  train("whole", 32)
  train("parts", 16)
  train("parts", 32)
  source, whole, parts = (final_state(tmp_path / run) for run in ("source", "whole", "parts"))
  jax.tree.map(np.testing.assert_array_equal, whole, parts)
  kept = {
    "discriminator": ("from_image", "stage_1_block_0"),
    "generator": ("basis", "stage_0_block_0", "stage_0_block_1"),
  }
  for network, layers in source.params.items():
    for layer in layers:
      same = jax.tree.map(np.array_equal, whole.params[network][layer], layers[layer])
      assert all(jax.tree.leaves(same)) == (layer in kept[network]), (network, layer)
  assert whole.images_seen == 32


def test_what_the_trained_run_decides(tmp_path):
  """Its networks and data, and the ends of its schedules."""
  trained = stacked_digits.get_config()
  trained.gan.update({"widths": (32, 48), "cardinalities": (4, 6), "gamma": (2.0, 0.2), "learning_rate": (1e-3, 3e-4)})
  trained.batch_size = 16
  config = fine_tune.get_config(workdir_of(trained, tmp_path / "digits"))
  gan = config.gan
  assert (config.name, config.init_from) == ("fine_tune_digits", str(tmp_path / "digits"))
  assert (gan.widths, gan.cardinalities, config.batch_size) == ((32, 48), (4, 6), 16)
  assert (gan.gamma, gan.learning_rate, gan.beta2) == ((0.2, 0.2), (3e-4, 3e-4), (0.99, 0.99))
  assert config.data.source == "stacked_digits" and config.run.metrics == ("modes",)
  experiment = factory.build_experiment(config, 1)
  assert experiment.algorithm.frozen == {("discriminator", "from_image"), ("discriminator", "stage_1_block_0")}
  assert experiment.algorithm.augment is not None


def test_runs_that_it_cannot_tune(tmp_path):
  other = workdir_of(dcgan.get_config(), tmp_path / "dcgan")
  for run, message in (
    (other, "is a run of dcgan"),
    ("", "needs a trained run"),
    (str(tmp_path), "config.json not fou"),
  ):
    with pytest.raises(UserError, match=re.escape(message)):
      fine_tune.get_config(run)
