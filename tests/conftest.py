"""A strict world: 8 devices, no silent promotion, warnings are errors (pyproject.toml).

JAX_PLATFORMS=cuda pytest -n 0 -m card    # what holds on one card, too: see benchmarks/on_gpu.py
"""

import os

if os.environ.setdefault("JAX_PLATFORMS", "cpu") == "cpu":
  # Tiny networks compile for longer than they run.
  os.environ["XLA_FLAGS"] = (
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
  )

from functools import partial

import jax
import pytest
from helpers import commands

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory):
  """A program that several tests compile is read back from a file, one directory a worker: writes are not atomic."""
  jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.getbasetemp() / "compiled_here"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
  """One device; compiled programs, and what is cached, are shared between the commands of a test session."""
  base = tmp_path_factory.getbasetemp()
  session = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
  yield os.environ | {
    "XDG_CACHE_HOME": str(base / "cache"),
    "JAX_COMPILATION_CACHE_DIR": str(session / "compiled"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "PYTHONWARNINGS": "error::DeprecationWarning:r3gan_jax,error::UserWarning",
  }
  commands.stop()


@pytest.fixture(scope="session")
def command(environment):
  """Runs main.py or another command: (name, *flags, status=0) -> what it wrote to `stdout` and `stderr`."""
  return partial(commands.run, environment)


@pytest.fixture(scope="session")
def refused(environment):
  """Runs a command on bad input: (name, *flags) -> the line that says so."""
  return partial(commands.refused, environment)
