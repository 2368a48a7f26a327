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


def changed(tmp_path, **changes):
  """A copy whose config.json has other values, by "section.name"; None removes one."""
  shutil.copytree(OLD, tmp_path / "run")
  config = runs.open_run(OLD).config.to_dict()
  for name, value in changes.items():
    *section, name = name.split("__")
    part = config[section[0]] if section else config
    part.pop(name) if value is None else part.update({name: value})
  (tmp_path / "run" / "config.json").write_text(json.dumps(config))
  return tmp_path / "run"


def test_settings_that_are_missing_or_unknown_are_one_warning(tmp_path, caplog):
  run = changed(tmp_path, gan__gamma=None, run=None, seed=None, data__colour="red", mood=3)
  caplog.clear()
  assert runs.open_run(run).images_seen == 32
  (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
  for name in ("config.gan.gamma", "config.seed", "config.data.colour", "config.mood", "config.run.grid"):
    assert name in warning


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"algorithm": None}, "names no algorithm"),
    ({"algorithm": 5}, "names no algorithm"),
    ({"algorithm": "vae"}, "config.algorithm = 'vae' is unknown"),
    ({"data": 5}, "config.data = 5 must be a mapping"),
    ({"gan": None, "network": {}, "run": []}, "must be a mapping"),
    ({"gan__widths": "wide"}, "config.gan.widths"),
    ({"data__resolution": "8"}, "config.data.resolution: '8' must be of type int"),
  ],
)
def test_a_configuration_that_cannot_be_used_is_one_line(tmp_path, changes, message):
  with pytest.raises(UserError, match=r"config\.json") as error:
    runs.open_run(changed(tmp_path, **changes))
  assert message in str(error.value) and "\n" not in str(error.value)


def test_weights_that_are_not_finite(tmp_path, monkeypatch):
  """One line names the checkpoint, for every command that opens a run."""
  restored = runs.open_state(OLD)
  params = jax.tree.map(lambda leaf: leaf * np.float32(np.nan), restored[2].ema)
  monkeypatch.setattr(runs, "open_state", lambda *_: (*restored[:2], restored[2].replace(ema=params)))
  with pytest.raises(UserError, match=r"the checkpoint at 32 images in .+ weights that are not finite .*the only one"):
    runs.open_run(OLD)


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
