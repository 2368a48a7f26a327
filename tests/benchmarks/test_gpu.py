"""Presets compile for a GPU, augmentation included; XLA's CUDA plugin needs no card."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

PLUGIN = find_spec("jax_cuda12_plugin") is not None
ROOT = Path(__file__).parent.parent.parent


def compiled(*options):
  environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
  command = [sys.executable, "-m", "benchmarks.gpu", "--configs", "configs/cifar10.py:smoke", *options]
  return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.skipif(not PLUGIN, reason="needs jax-cuda12-plugin: see benchmarks/gpu.py")
def test_with_triton_and_without(tmp_path):
  """The tiny network has the presets' augmentation, which once made XLA's Triton fusions fail."""
  run = compiled("--gpus", "1", "--json", str(tmp_path / "table.json"))
  assert run.returncode == 0, run.stderr
  (rows,) = json.loads((tmp_path / "table.json").read_text())["tables"].values()
  assert [row["matrix products"] for row in rows] == ["Triton", "cuBLAS"]
  assert [row["sums in bfloat16"] for row in rows] == [0, 0]
  assert all(row["cuDNN calls"] for row in rows)


@pytest.mark.skipif(PLUGIN, reason="needs a machine without jax-cuda12-plugin")
def test_without_the_plugin_an_error_names_it():
  run = compiled()
  assert run.returncode == 1
  assert run.stderr == "error: compiling for a GPU needs jax-cuda12-plugin: see the top of benchmarks/gpu.py\n"
