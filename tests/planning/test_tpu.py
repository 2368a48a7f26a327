"""Plans for TPUs: a recipe compiled by the real compiler, and the numbers computed from a compiled program."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from configs import cifar10
from r3gan_jax import factory
from r3gan_jax.planning.hlo import Collective
from r3gan_jax.planning.tpu import CHIPS, GIB, TpuPlan, describe_plan

ROOT = Path(__file__).parent.parent.parent
# `make test` installs it here: in the virtual environment itself it would print an error at every start on a CPU.
LIBTPU = ROOT / ".venv" / "libtpu"
COMPILE = """
import json
from configs import cifar10
from r3gan_jax import factory
from r3gan_jax.planning.hlo import bfloat16_sums
from r3gan_jax.planning.tpu import compile_for_topology

plan = compile_for_topology(factory.build_experiment(cifar10.get_config("smoke"), 1, "tpu"), "v5e:2x2")
print(json.dumps({
  "collectives": [[collective.kind, collective.size] for collective in plan.collectives],
  "used": plan.used,
  "memory": plan.memory,
  "bfloat16": "bf16[" in plan.text,
  "bfloat16_sums": bfloat16_sums(plan.text),
  "pallas_calls": plan.text.count('custom_call_target="tpu_custom_call"'),
}))
"""


@pytest.mark.skipif(not LIBTPU.exists(), reason="needs libtpu: make test")
def test_the_step_compiles_for_a_tpu():
  """R3GAN's smoke recipe with augmentation, on v5e:2x2: kernels, no sums in bfloat16, one all-reduce per phase."""
  environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{LIBTPU}", "JAX_PLATFORMS": "cpu"}
  command = [sys.executable, "-c", COMPILE]
  done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  plan = json.loads(done.stdout)
  algorithm = factory.build_algorithm(cifar10.get_config("smoke"))
  params, _ = jax.eval_shape(algorithm.init, jax.random.key(0))
  gradients = [sum(4 * leaf.size for leaf in jax.tree.leaves(network)) for network in params.values()]
  assert [kind for kind, _ in plan["collectives"]] == ["all-reduce"] * 2
  sizes = sorted(size for _, size in plan["collectives"])
  for size, expected in zip(sizes, sorted(gradients), strict=True):
    assert expected <= size < expected + 64  # and a few metrics
  assert 0 < plan["used"] < plan["memory"]
  assert plan["bfloat16"] and not plan["bfloat16_sums"]
  assert plan["pallas_calls"] > 0


def plan(chip_count, collectives):
  chip = CHIPS["v5e"]
  return TpuPlan(
    topology="v5e:AxB",
    chip_count=chip_count,
    micro_batches={},
    flops=1e12,
    bytes_accessed=1e9,
    arguments=GIB,
    temporaries=3 * GIB,
    memory=chip.memory,
    collectives=collectives,
    roofline_seconds=0.25,
    interconnect=chip.interconnect,
    text="",
  )


GRADIENTS = (Collective("all-reduce", 600_000_000), Collective("all-reduce", 400_000_000))


@pytest.mark.parametrize("chips, milliseconds", [(1, 0), (2, 5), (4, 7.5), (256, 9.9609375)])
def test_seconds_of_a_ring_all_reduce(chips, milliseconds):
  """1 GB at 200 GB/s: n - 1 of n parts are sent twice, for the reduce-scatter and the all-gather."""
  assert 1e3 * plan(chips, GRADIENTS).all_reduce_seconds == pytest.approx(milliseconds)


def test_only_all_reduces_count():
  made = plan(4, (*GRADIENTS, Collective("all-gather", 10**12)))
  assert made.all_reduce_bytes == 10**9 and made.used == 4 * GIB
  text = describe_plan(made)
  assert "4.00 of 16 GiB" in text and "at least 250 ms" in text and "7.5 ms for the all-reduces" in text
