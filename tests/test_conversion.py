"""Work directories made from official snapshots: their contents, the recipes that continue them, and the way back."""

import functools

import jax
import numpy as np
import pytest
from helpers import golden_cases, official_pickles
from ml_collections import ConfigDict

from configs import cifar10
from r3gan_jax import factory, runs, scoring
from r3gan_jax.conversion import as_snapshot, write_workdir
from r3gan_jax.errors import UserError
from r3gan_jax.interop.official import official_arrays, read_snapshot
from r3gan_jax.training.state import averaged
from r3gan_jax.training.workdir import claim_workdir, read_config


@functools.cache
def snapshot(case):
  return read_snapshot(official_pickles.path(case))


def recipe():
  """Returns CIFAR-10's recipe, changed to 8x8 images of 5 classes."""
  config = cifar10.get_config()
  config.data.update({"source": "generated", "resolution": 8, "num_classes": 5})
  config.gan.update({"widths": (32, 16), "cardinalities": (8, 4), "blocks": (2, 1)})
  config.gan.update({"noise_dim": 8, "bfloat16_stages": 0})
  return config


@golden_cases.cases
def test_its_images_are_the_official_ones(tmp_path, case):
  write_workdir(snapshot(case), tmp_path / "new" / "run")
  assert [path.name for path in (tmp_path / "new").iterdir()] == ["run"]
  _, algorithm, state = runs.open_state(tmp_path / "new" / "run")
  arrays = golden_cases.load(case).arrays
  generate = jax.jit(lambda params: algorithm.generator.apply({"params": params}, arrays["z"], arrays.get("labels")))
  for params, images in ((state.params, "fake"), (averaged(algorithm, state)[0], "ema_fake")):
    expected = arrays[images]
    np.testing.assert_allclose(generate(params["generator"]), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
  assert state.images_seen == 123456


@golden_cases.cases
def test_there_and_back_bit_for_bit(tmp_path, case):
  """The arrays are those that an independent reader finds in the official file, and no others."""
  write_workdir(snapshot(case), tmp_path / "run")
  arrays = official_arrays(as_snapshot(*runs.open_state(tmp_path / "run")[1:]))
  official = official_pickles.read(case)
  expected = {"cur_nimg": official["cur_nimg"]}
  for letter in ("G", "D", "G_ema"):
    for kind in ("_parameters", "_buffers"):
      calls = official_pickles.calls(official[letter], kind)
      expected |= {f"{letter}/{name}": official_pickles.array(call) for name, call in calls.items()}
  for letter in ("G", "D"):
    adam = official[f"{letter}_opt_state"]["state"]
    expected[f"{letter}_opt_state/step"] = official_pickles.array(adam[0]["step"])
    for index, name in enumerate(official_pickles.calls(official[letter])):
      expected[f"{letter}_opt_state/exp_avg_sq/{name}"] = official_pickles.array(adam[index]["exp_avg_sq"])
  assert arrays.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_array_equal(arrays[name], value, err_msg=name)


def test_the_first_recipe_of_the_same_networks_claims_the_directory(tmp_path):
  run = tmp_path / "run"
  write_workdir(snapshot("cond_8px"), run)
  with pytest.raises(UserError, match=r"names no data: .*main\.py --config="):
    factory.build_source(runs.open_run(run).config)

  before = read_config(run)
  other = recipe()
  other.gan.widths = (32, 32)
  with pytest.raises(UserError, match=r"was made with config\.gan\.widths = \[32, 16\], but now it is \[32, 32\]"):
    claim_workdir(run, other.to_dict())
  assert read_config(run) == before

  claim_workdir(run, recipe().to_dict())
  assert ConfigDict(read_config(run)).gan.augment_p == [0.0, 0.55]
  with pytest.raises(UserError, match=r"config\.gan\.gamma = \[0\.05, 0\.005\], but now it is \[1\.0, 0\.1\]"):
    claim_workdir(run, recipe().to_dict() | {"gan": recipe().gan.to_dict() | {"gamma": (1.0, 0.1)}})
  trained = runs.open_run(run)
  source = factory.build_source(trained.config)
  fake = scoring.fake_images(trained.algorithm, source, num_samples=8, seed=0)(trained.params, trained.carry)
  real = scoring.real_images(trained.config, source, num_samples=8)
  assert fake.images(np.arange(8)).shape == real.images(np.arange(8)).shape == (8, 8, 8, 3)


def test_embeddings_of_other_lengths(tmp_path):
  """D's embedding is a projection to 16 features."""
  official = official_pickles.read("cond_8px")
  del official["D_opt_state"], official["G_opt_state"]
  for name, call in official_pickles.calls(official["D"]).items():
    if name.endswith(("EmbeddingLayer.weight", "Layers.2.LinearLayer.weight")):
      tensor = call.arguments[0].arguments
      tensor[2] = (16, tensor[2][1])
  other = read_snapshot(official_pickles.write(official, tmp_path / "snapshot.pkl"))
  assert other.discriminator.embed_dim == 16
  with pytest.raises(UserError, match=r"embeddings have lengths \(8, 16\)"):
    write_workdir(other, tmp_path / "run")
  assert [path.name for path in tmp_path.iterdir()] == ["snapshot.pkl"]


def test_an_existing_directory_is_left_alone(tmp_path):
  (tmp_path / "thesis.tex").write_text("precious")
  with pytest.raises(OSError):
    write_workdir(snapshot("uncond_16px"), tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
  assert [path for path in tmp_path.parent.iterdir() if path.name.startswith(f"{tmp_path.name}.")] == []
