"""What is worked out from a program that was compiled for TPUs. Compiling itself needs libtpu: benchmarks/tpu.py."""

import pytest

from r3gan_jax.planning.hlo import Collective
from r3gan_jax.planning.tpu import CHIPS, GIB, TpuPlan, describe_plan


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
def test_a_ring_sends_each_byte_nearly_twice(chips, milliseconds):
  """1 GB through 200 GB/s: n - 1 of n parts, once to sum them and once to hand the sums out."""
  assert 1e3 * plan(chips, GRADIENTS).all_reduce_seconds == pytest.approx(milliseconds)


def test_only_all_reduces_count():
  made = plan(4, (*GRADIENTS, Collective("all-gather", 10**12)))
  assert made.all_reduce_bytes == 10**9 and made.used == 4 * GIB
  text = describe_plan(made)
  assert "4.00 of 16 GiB" in text and "at least 250 ms" in text and "7.5 ms for the all-reduces" in text
