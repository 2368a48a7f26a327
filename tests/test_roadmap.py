"""The roadmap's recipes through the commands: smoke variants, with smaller images."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.commands import call
from jax import export
from PIL import Image

from r3gan_jax import runs
from r3gan_jax.cli.export import exported_generator

NAMES = ("b", "c1", "c2", "d1", "d2", "e1", "e2")
SMALL = (
  "--config.data.resolution=8",
  *(f"--config.gan.{setting}" for setting in ("widths=(16,16)", "blocks=(1,1)", "bfloat16_stages=0")),
  "--config.run.grid=(2,2)",
)


def flags(name, run, total, init_from=""):
  recipe = (f"--config=configs/roadmap.py:{name}_smoke", *SMALL, f"--config.run.total_images={total}")
  groups = "(2,2)" if name in ("e1", "e2") else "(1,1)"
  return (*recipe, f"--config.gan.cardinalities={groups}", f"--config.init_from={init_from}", f"--workdir={run}")


@pytest.fixture(scope="module")
def trained(environment, tmp_path_factory):
  """The work directories' parent. C1 begins from B, of the same networks, and D2 from D1, as far as they are."""
  directory = tmp_path_factory.mktemp("roadmap")
  calls = [flags(name, directory / name, 8) for name in ("b", "c2", "d1", "e1", "e2")]
  calls += [flags(name, directory / name, 8, directory / other) for name, other in (("c1", "b"), ("d2", "d1"))]
  calls += [flags(name, directory / name, 16) for name in ("b", "d1")]
  calls.append(flags("e2", directory / "none", 8, directory / "b"))
  *went_well, last = call(environment, "main", calls)
  assert not any(went_well), went_well
  assert "no layer of its discriminator fits" in last
  return directory


@pytest.mark.parametrize("name", NAMES)
def test_training_changes_every_network(trained, name):
  end = 16 if name in ("b", "d1") else 8
  states = [runs.open_state(trained / name, str(images))[2] for images in (end - 8, end)]
  assert [int(state.images_seen) for state in states] == [end - 8, end]
  for network in ("generator", "discriminator"):
    before, after = (jax.tree.leaves(state.params[network]) for state in states)
    assert any((a != b).any() for a, b in zip(before, after, strict=True))
    assert all(jnp.isfinite(leaf).all() for leaf in after)


@pytest.mark.parametrize("name, other, layers", [("c1", "b", 6), ("d2", "d1", 3)])
def test_a_run_is_initialised_from_another(trained, name, other, layers):
  """Every layer of G, except for the output skips of d1."""
  _, _, source = runs.open_state(trained / other, "8")
  _, _, start = runs.open_state(trained / name, "0")
  shared = source.ema["generator"].keys() & start.ema["generator"].keys()
  assert len(shared) == layers
  for layer in shared:
    jax.tree.map(np.testing.assert_array_equal, start.ema["generator"][layer], source.ema["generator"][layer])


def test_a_work_directory_from_before_there_was_a_choice_of_networks(trained, tmp_path):
  """It has no config.gan.network, and an integer for the expansion."""
  shutil.copytree(trained / "e2", tmp_path / "old")
  settings = json.loads((tmp_path / "old" / "config.json").read_text())
  gan = settings.pop("gan")
  in_network = ("widths", "cardinalities", "blocks", "noise_dim", "bfloat16_stages", "bfloat16", "grouped_conv")
  settings["network"] = {name: gan.pop(name) for name in in_network} | {"expansion": 2}
  settings |= {name: value for name, value in gan.items() if name not in ("network", "expansion")}
  (tmp_path / "old" / "config.json").write_text(json.dumps(settings))
  old, new = (runs.open_run(run) for run in (tmp_path / "old", trained / "e2"))
  assert old.algorithm == new.algorithm
  jax.tree.map(np.testing.assert_array_equal, old.params, new.params)


def test_it_samples(environment, trained, tmp_path):
  names = ("b", "d1", "e1")
  sample = [(f"--workdir={trained / name}", "--seeds=0-3", f"--out={tmp_path / name}.png") for name in names]
  assert call(environment, "sample", sample) == [None] * len(names)
  for name in names:
    with Image.open(tmp_path / f"{name}.png") as grid:
      assert grid.size == (18, 18) and np.asarray(grid).std() > 1


@pytest.mark.parametrize("name", ["b", "d1", "e1"])
def test_it_is_exported(trained, name):
  run = runs.open_run(trained / name)
  exported = export.deserialize(exported_generator(run).serialize())
  noise = np.random.default_rng(0).standard_normal((3, 64), np.float32)
  images = jax.jit(lambda z: run.algorithm.generate(run.params, run.carry, z, None))(noise)
  np.testing.assert_allclose(exported.call(noise), images, rtol=1e-4, atol=1e-4)


def test_only_r3gans_own_networks_have_official_names(environment, trained, tmp_path):
  convert = [(f"--workdir={trained / name}", f"--out={tmp_path / name}.npz") for name in ("d1", "e2")]
  refused, converted = call(environment, "convert", convert)
  assert "only R3GAN's own networks have official names" in refused
  assert converted is None and [path.name for path in tmp_path.iterdir()] == ["e2.npz"]
