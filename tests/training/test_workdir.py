"""Work directories: claimed by one configuration, and their records of configuration and data."""

import json
import os

import pytest

from r3gan_jax.errors import UserError
from r3gan_jax.training.workdir import check_data, claim_workdir, read_config

CONFIG = {"name": "x", "gamma": (1.0, 0.1), "data": {"name": "mnist"}, "run": {"total_images": 8}}


def test_created_and_claimed_again(tmp_path):
  workdir = tmp_path / "deep" / "run"
  claim_workdir(workdir, CONFIG)
  assert read_config(workdir) == json.loads(json.dumps(CONFIG))
  claim_workdir(workdir, CONFIG)


def test_settings_of_the_run_may_change(tmp_path):
  claim_workdir(tmp_path, CONFIG)
  claim_workdir(tmp_path, CONFIG | {"run": {"total_images": 16}})
  assert read_config(tmp_path)["run"]["total_images"] == 16


@pytest.mark.parametrize(
  "change, message",
  [
    ({"gamma": (2.0, 0.1)}, r"config.gamma = \[1.0, 0.1\], but now it is \[2.0, 0.1\]"),
    ({"data": {"name": "cifar10"}}, "config.data.name = 'mnist', but now it is 'cifar10'"),
    ({"data": {}}, "config.data.name = 'mnist', but now it is '\\(absent\\)'"),
  ],
)
def test_another_configuration_is_refused(tmp_path, change, message):
  claim_workdir(tmp_path, CONFIG)
  with pytest.raises(UserError, match=message):
    claim_workdir(tmp_path, CONFIG | change)
  assert read_config(tmp_path) == json.loads(json.dumps(CONFIG))


def test_missing_settings_are_added_once(tmp_path):
  claim_workdir(tmp_path, {"data": {}, "gamma": (1.0, 0.1)})
  claim_workdir(tmp_path, CONFIG)
  assert read_config(tmp_path) == json.loads(json.dumps(CONFIG))
  with pytest.raises(UserError, match=r"config\.data\.name = 'mnist', but now it is 'cifar10'"):
    claim_workdir(tmp_path, CONFIG | {"data": {"name": "cifar10"}})


def test_runs_from_before_label_settings_have_clean_labels(tmp_path):
  before = CONFIG | {"data": {"source": "tfds"}}
  labels = {"labelled_images": 0, "label_noise": 0.0, "label_noise_pairs": ()}
  claim_workdir(tmp_path, before)
  with pytest.raises(UserError, match=r"config\.data\.label_noise = 0\.0, but now it is 0\.5"):
    claim_workdir(tmp_path, before | {"data": {"source": "tfds"} | labels | {"label_noise": 0.5}})
  claim_workdir(tmp_path, before | {"data": {"source": "tfds"} | labels})


def test_a_foreign_directory_is_refused(tmp_path):
  (tmp_path / "thesis.tex").write_text("precious")
  with pytest.raises(UserError, match="is not empty"):
    claim_workdir(tmp_path, CONFIG)
  assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_unwritable_path(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="cannot write to the work directory"):
    claim_workdir(tmp_path / "file" / "run", CONFIG)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_directory(tmp_path):
  tmp_path.chmod(0o500)
  with pytest.raises(UserError, match="cannot write to the work directory"):
    claim_workdir(tmp_path / "run", CONFIG)


def test_a_damaged_config(tmp_path):
  claim_workdir(tmp_path, CONFIG)
  (tmp_path / "config.json").write_text("{")
  with pytest.raises(UserError, match="cannot be read"):
    read_config(tmp_path)
  with pytest.raises(UserError, match="not a work directory"):
    read_config(tmp_path / "elsewhere")


def test_classes_keep_their_numbers(tmp_path, caplog):
  check_data(tmp_path, 10, ("cat", "dog"))
  assert json.loads((tmp_path / "data.json").read_text()) == {"images": 10, "classes": ["cat", "dog"]}
  check_data(tmp_path, 10, ("cat", "dog"))
  for classes, message in (
    (("Dog", "cat"), "class 0 was 'cat' .* is 'Dog' now: restore"),
    (("cat", "dog", "fish"), "class 2 was None .* is 'fish' now"),
    ((), "class 0 was 'cat' .* is None now"),
  ):
    with pytest.raises(UserError, match=message):
      check_data(tmp_path, 10, classes)
  assert not caplog.records
  check_data(tmp_path, 12, ("cat", "dog"))
  check_data(tmp_path, 12, ("cat", "dog"))
  assert caplog.text.count("the data have 12 images; they had 10") == 2


@pytest.mark.parametrize("content", [b"", b"5", b"\xff", b"{}", b'{"images": null, "classes": 3}'])
def test_a_damaged_record_of_the_data_is_rewritten(tmp_path, content):
  (tmp_path / "data.json").write_bytes(content)
  check_data(tmp_path, 3, ())
  assert json.loads((tmp_path / "data.json").read_text()) == {"images": 3, "classes": []}


@pytest.mark.parametrize("content", ["5", "[]", "null"])
def test_a_config_that_is_not_an_object(tmp_path, content):
  (tmp_path / "config.json").write_text(content)
  with pytest.raises(UserError, match=r"config\.json is not a JSON object: restore it"):
    read_config(tmp_path)
