"""The presets have topologies to be planned for; compiling one is tested in tests/planning."""

import math
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.gpu import PUBLISHED
from benchmarks.iteration import PRESETS, load_recipe
from r3gan_jax.planning.topology import parse_topology

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("recipe", PRESETS)
def test_a_preset_can_be_split_over_the_cards_of_its_paper(recipe):
  assert load_recipe(recipe).batch_size % math.prod(parse_topology(PUBLISHED[recipe]).shape) == 0


@pytest.mark.skipif(find_spec("jax_cuda13_plugin") is not None, reason="needs a machine without XLA's GPU compiler")
def test_without_the_compiler_an_error_names_it():
  environment = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "PYTHONPATH")}
  command = [
    sys.executable,
    "-m",
    "benchmarks.gpu",
    "--configs",
    "configs/cifar10.py:smoke",
    "--topologies",
    "h100:1x1",
  ]
  run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
  assert run.returncode == 1
  assert run.stderr.startswith("error: ") and ".[gpu-compiler]" in run.stderr
