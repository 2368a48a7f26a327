"""The exported file, loaded and run where r3gan_jax cannot be imported."""

import json
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers import official_pickles

from r3gan_jax import runs
from r3gan_jax.conversion import write_workdir
from r3gan_jax.interop.official import read_snapshot
from r3gan_jax.ops.images import to_uint8
from r3gan_jax.sampling import Sampler
from r3gan_jax.training.mesh import make_mesh

CASES = ("cond_8px", "uncond_16px")

ELSEWHERE = """
import json, sys
import jax, numpy

sys.modules["r3gan_jax"] = None
try:
  import r3gan_jax.ops
except ImportError:
  pass
else:
  sys.exit("r3gan_jax can be imported")
for case in json.loads(sys.argv[1]):
  exported = jax.export.deserialize(bytearray(open(f"{case}.stablehlo", "rb").read()))
  with numpy.load(f"{case}_inputs.npz") as inputs:
    inputs = [inputs[name] for name in inputs]
  numpy.savez(f"{case}_results.npz", *(exported.call(*(array[:batch] for array in inputs)) for batch in (1, 5)))
"""


@pytest.fixture(scope="module")
def artefacts(command, refused, tmp_path_factory):
  """A directory with each case's work directory, below runs/, and exported file, below new/."""
  directory = tmp_path_factory.mktemp("export")
  for case in CASES:
    write_workdir(read_snapshot(official_pickles.path(case)), directory / "runs" / case)
    command("export", f"--workdir={directory / 'runs' / case}", f"--out={directory / 'new' / case}.stablehlo")
  error = refused("export", f"--workdir={directory / 'runs' / CASES[0]}", f"--out={directory}")
  assert f"--out={directory} is a directory" in error
  return directory


def test_without_the_package_it_draws_the_images_of_the_sampler(environment, artefacts):
  elsewhere = artefacts / "new"
  expected = {}
  for case in CASES:
    trained = runs.open_run(artefacts / "runs" / case)
    sampler = Sampler(trained.algorithm, make_mesh(jax.local_devices()), batch_per_device=1)
    seeds = np.arange(5)
    inputs = {"noise": sampler.noise(seeds)}
    if trained.algorithm.num_classes:
      inputs["labels"] = np.array([4, 0, 2, 2, 1], np.int32)
    np.savez(elsewhere / f"{case}_inputs.npz", **inputs)
    expected[case] = sampler(trained.params, trained.carry, seeds, inputs.get("labels"))

  bare = {name: value for name, value in environment.items() if name != "PYTHONPATH"}
  command = [sys.executable, "-P", "-c", ELSEWHERE, json.dumps(CASES)]
  done = subprocess.run(command, cwd=elsewhere, env=bare, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  for case, images in expected.items():
    with np.load(elsewhere / f"{case}_results.npz") as drawn:
      assert [len(batch) for batch in drawn.values()] == [1, 5]
      for batch in drawn.values():
        assert batch.dtype == np.float32
        difference = np.asarray(to_uint8(batch)).astype(int) - images[: len(batch)]
        assert np.abs(difference).max() <= 1 and np.mean(difference != 0) < 0.01


def test_it_is_for_all_platforms_and_has_no_custom_kernels(artefacts):
  for case, expected in (
    ("cond_8px", ["float32[b,8]", "int32[b]", "float32[b,8,8,3]"]),
    ("uncond_16px", ["float32[b,8]", "float32[b,16,16,3]"]),
  ):
    exported = jax.export.deserialize(bytearray((artefacts / "new" / f"{case}.stablehlo").read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert [array.str_short() for array in (*exported.in_avals, *exported.out_avals)] == expected
    # JAX's own check of the batch size.
    assert set(re.findall(r"custom_call @(\w+)", exported.mlir_module())) <= {"shape_assertion"}
