"""The presets have topologies to be planned for; compiling one is tested in tests/planning."""

import sys

import pytest

from benchmarks import gpu
from benchmarks.iteration import PRESETS, load_recipe
from r3gan_jax.planning import topology


@pytest.mark.parametrize("recipe", PRESETS)
def test_a_preset_can_be_split_over_the_cards_of_its_paper(recipe):
  assert load_recipe(recipe).batch_size % topology.parse_topology(gpu.published_topology(recipe)).size == 0


@pytest.mark.parametrize(
  "recipe, message", [("configs/cifar10.py", r"error: .*\.\[gpu-compiler\]"), ("configs/zoo/dcgan.py", "--topologies")]
)
def test_an_error_names_the_cure(monkeypatch, recipe, message):
  monkeypatch.setattr(topology, "find_spec", lambda name: None)
  monkeypatch.setattr(sys, "argv", ["gpu", "--configs", recipe])
  with pytest.raises(SystemExit, match=message):
    gpu.main()
