"""A work directory of before `config.gan`, tests/old_workdir: the quickstart's smoke run after 32 of 64 images."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.states import arrays_of

from configs import stacked_digits
from r3gan_jax import runs
from r3gan_jax.errors import UserError
from r3gan_jax.training.workdir import claim_workdir

OLD = Path(__file__).parent / "old_workdir"


def recipe():
  config = stacked_digits.get_config("smoke")
  config.gan.widths = (8, 8)
  return config


def test_it_opens():
  trained = runs.open_run(OLD)
  assert trained.images_seen == 32 and trained.algorithm.noise_dim == 64
  assert trained.config.gan.widths == [8, 8] and "network" not in trained.config
  data = trained.config.data
  assert (data.labelled_images, data.label_noise, data.label_noise_pairs) == (0, 0, ())


def test_it_resumes_as_one_of_today_does(tmp_path):
  """With the same checkpoint, bit for bit; and from then on it is one of today."""
  for name in ("old", "new"):
    shutil.copytree(OLD, tmp_path / name)
  (tmp_path / "new" / "config.json").unlink()
  shutil.move(tmp_path / "new" / "checkpoints", tmp_path / "checkpoints")
  claim_workdir(tmp_path / "new", recipe().to_dict())
  shutil.move(tmp_path / "checkpoints", tmp_path / "new" / "checkpoints")
  states = []
  for name in ("old", "new"):
    runs.train_run(recipe(), tmp_path / name)
    _, _, state = runs.open_state(tmp_path / name)
    assert state.images_seen == 64
    states.append(arrays_of(state))
  jax.tree.map(np.testing.assert_array_equal, *states)
  old, new = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("old", "new"))
  assert old == new and old["gan"]["widths"] == [8, 8]


def test_another_recipe_is_refused(tmp_path):
  shutil.copytree(OLD, tmp_path / "run")
  other = recipe()
  other.gan.gamma = 3.0
  with pytest.raises(UserError, match=r"was made with config.gan.gamma = \[0.3, 0.3\], but now it is \[3.0, 3.0\]"):
    runs.train_run(other, tmp_path / "run")
