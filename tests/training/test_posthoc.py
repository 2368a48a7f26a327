"""Averages of any length from stored ones, against those that were tracked."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from configs import stacked_digits
from r3gan_jax import factory
from r3gan_jax.errors import UserError
from r3gan_jax.training.ema import power_exponent
from r3gan_jax.training.posthoc import (
  Profile,
  coefficients,
  reconstructed,
  remove_averages_after,
  stored_averages,
  write_averages,
)
from r3gan_jax.training.state import init_state

STEPS = 3200
WALK = np.cumsum(np.random.default_rng(0).standard_normal((STEPS, 16)), axis=0)


def tracked(profile):
  """The average as training tracks it, in float64: see test_ema.py. A step is one image."""
  edges = np.arange(profile.images_seen + 1) / profile.images_seen
  return np.diff(edges ** (power_exponent(profile.std) + 1)) @ WALK[: profile.images_seen]


def stored(snapshots, stds=(0.01, 0.05, 0.1)):
  return [Profile(STEPS * i // snapshots, std) for i in range(1, snapshots + 1) for std in stds]


def combined(profiles, wanted):
  return coefficients(profiles, wanted)[0] @ np.stack([*map(tracked, profiles)])


def error(profiles, wanted):
  expected = tracked(wanted)
  return np.linalg.norm(combined(profiles, wanted) - expected) / np.linalg.norm(expected)


def test_coefficients():
  """Recorded from EDM2's code."""
  profiles = [Profile(time, std) for time in (10**6, 2 * 10**6) for std in (0.05, 0.1)]
  found, _ = coefficients(profiles, Profile(2 * 10**6, 0.07))
  np.testing.assert_allclose(found, [8.878e-05, -2.1808e-03, 0.43915790, 0.56293416], rtol=1e-4, atol=5e-9)
  assert abs(found.sum() - 1) < 1e-12


@pytest.mark.parametrize("snapshots, limit", [(8, 1e-3), (32, 1e-5), (128, 5e-8)])
def test_it_comes_closer_with_more_snapshots(snapshots, limit):
  """As does the distance of the profiles, of which the error of a random walk is a part."""
  profiles, wanted = stored(snapshots), Profile(STEPS, 0.07)
  assert limit / 100 < error(profiles, wanted) < limit
  distance = coefficients(profiles, wanted)[1]
  assert limit < distance < 100 * limit
  assert distance < coefficients(profiles[:-3], wanted)[1], "without the newest snapshot"


@pytest.mark.parametrize("wanted", [Profile(STEPS, 0.05), Profile(STEPS, 0.1), Profile(STEPS // 4, 0.01)])
def test_a_stored_one_is_exact(wanted):
  profiles = stored(32)
  np.testing.assert_allclose(combined(profiles, wanted), tracked(wanted), rtol=1e-10)
  assert coefficients(profiles, wanted)[1] < 1e-6


@pytest.fixture(scope="module")
def algorithm():
  config = stacked_digits.get_config("smoke")
  config.gan.update({"widths": (4, 4), "ema_stds": (0.05, 0.1)})
  return factory.build_algorithm(config)


@pytest.fixture(scope="module")
def states(algorithm):
  """The states after 1, 2, 3 steps of 100 images, with made-up averages."""
  state, random = jax.jit(lambda: init_state(algorithm, 0))(), np.random.default_rng(0)

  def made_up(leaf):
    return jnp.asarray(random.standard_normal(leaf.shape), jnp.float32)

  return [replace(state, images_seen=jnp.int32(100 * i), ema=jax.tree.map(made_up, state.ema)) for i in (1, 2, 3)]


@pytest.fixture
def directory(algorithm, states, tmp_path):
  directory = epath.Path(tmp_path / "posthoc")
  for state in states:
    write_averages(directory, algorithm, state)
  return directory


def test_files_are_combined_by_the_coefficients(algorithm, states, directory):
  """Up to the wanted images; other averages become those of that time, and the rest of the state stays."""
  made, distance = reconstructed(directory, algorithm, states[2], Profile(200, 0.07))
  found, expected_distance = coefficients([Profile(t, s) for t in (100, 200) for s in (0.05, 0.1)], Profile(200, 0.07))
  names = ("generator_0.05", "generator_0.1")
  for path, leaf in jax.tree.leaves_with_path(made.ema["generator"]):
    parts = [np.asarray(dict(jax.tree.leaves_with_path(s.ema[n]))[path], float) for s in states[:2] for n in names]
    np.testing.assert_allclose(leaf, np.tensordot(found, np.stack(parts), 1), rtol=1e-6, atol=1e-6)
    assert leaf.dtype == jnp.float32
  for name in names:
    jax.tree.map(np.testing.assert_array_equal, made.ema[name], states[1].ema[name])
  assert made.images_seen == 200 and distance == expected_distance and made.params is states[2].params


def test_no_future_of_a_discarded_run_and_no_parts_of_files_are_left(directory):
  (directory / ".0000000400.npz.0123.tmp").write_bytes(b"half")
  remove_averages_after(directory, 200)
  assert stored_averages(directory) == [100, 200] and len([*directory.iterdir()]) == 2
  remove_averages_after(directory / "none", 0)


def test_without_such_averages_nothing_is_written(algorithm, states, tmp_path):
  plain = replace(algorithm, ema_stds=())
  write_averages(epath.Path(tmp_path / "posthoc"), plain, states[0])
  write_averages(epath.Path(tmp_path / "posthoc"), algorithm, replace(states[0], images_seen=jnp.int32(0)))
  assert not (tmp_path / "posthoc").exists()


@pytest.mark.parametrize("images_seen", [0, 150, 400])
def test_images_without_a_snapshot(algorithm, states, directory, images_seen):
  with pytest.raises(UserError, match=rf"no averages at {images_seen} images: choose from its 3 snapshots, 100 to 300"):
    reconstructed(directory, algorithm, states[2], Profile(images_seen, 0.07))


def test_one_average_is_too_few(algorithm, states, directory):
  of_one = replace(algorithm, ema_stds=(0.05,))
  reconstructed(directory, of_one, states[2], Profile(200, 0.07))
  with pytest.raises(UserError, match="one average up to 100 images"):
    reconstructed(directory, of_one, states[2], Profile(100, 0.07))
  with pytest.raises(UserError, match=r"holds no averages: train with config\.gan\.ema_stds"):
    reconstructed(directory / "none", algorithm, states[2], Profile(100, 0.07))


@pytest.mark.parametrize("damage", ["cut", "flipped", "other"])
def test_a_damaged_file_is_named(algorithm, states, directory, damage):
  file = directory / "0000000200.npz"
  data = bytearray(file.read_bytes())
  if damage == "cut":
    del data[len(data) // 2 :]
  if damage == "flipped":
    data[len(data) // 2] ^= 1
  file.write_bytes(bytes(data))
  if damage == "other":
    with np.load(directory / "0000000100.npz") as arrays:
      np.savez(file, **{name: array[None] for name, array in arrays.items()})
  with pytest.raises(UserError, match=r"0000000200\.npz (cannot be read|has averages of other networks).*: remove it"):
    reconstructed(directory, algorithm, states[2], Profile(300, 0.07))
