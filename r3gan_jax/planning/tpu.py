"""Plans an iteration on a TPU slice, on a machine without a TPU: libtpu contains the real compiler.

    compile_for_topology(experiment, "v5e:2x2")

Memory, FLOPs, bytes and collectives are the compiler's. The roofline time max(FLOPs / peak, bytes / bandwidth) and the
time of the all-reduces are lower bounds, from published peaks.
"""

import dataclasses
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from r3gan_jax.errors import UserError
from r3gan_jax.planning.hlo import Collective, collectives
from r3gan_jax.planning.plan import traced_phase, traced_step
from r3gan_jax.training.loop import Experiment
from r3gan_jax.training.mesh import make_mesh

GIB = 2**30


@dataclass(frozen=True)
class Chip:
  """The published peaks of one chip.

  Attributes:
    flops: bfloat16 FLOP/s.
    bandwidth: HBM, bytes/s.
    memory: HBM, bytes.
    interconnect: bytes/s that all its links together send.
    accelerator_type: Google Cloud's name of a slice.
  """

  flops: float
  bandwidth: float
  memory: float
  interconnect: float
  accelerator_type: str


CHIPS: Mapping[str, Chip] = {
  "v4": Chip(275e12, 1228e9, 32 * GIB, 300e9, "v4-8"),
  "v5e": Chip(197e12, 819e9, 16 * GIB, 200e9, "v5litepod-4"),
  "v5p": Chip(459e12, 2765e9, 95 * GIB, 600e9, "v5p-8"),
  "v6e": Chip(918e12, 1640e9, 32 * GIB, 400e9, "v6e-4"),
}
"""Name before the colon of a topology -> chip. Source: https://cloud.google.com/tpu/docs/v6e and its siblings, which
state the interconnect bandwidth of both directions together (v5e: 400 GB/s); links of v4: arXiv 2304.01433."""


@dataclass(frozen=True)
class TpuPlan:
  """One iteration, compiled for a topology; all numbers are per chip.

  Attributes:
    topology: e.g. "v5e:2x2".
    chip_count: number of chips.
    micro_batches: phase -> images per chip and micro-batch; empty: the chip's whole part of the batch.
    flops: of an iteration in which every phase runs.
    bytes_accessed: HBM traffic of the iteration, as XLA counts it.
    arguments: bytes of HBM for state and batches.
    temporaries: bytes of HBM for everything else.
    memory: bytes of HBM that the chip has.
    collectives: in program order.
    roofline_seconds: the larger of FLOPs / peak and bytes / bandwidth.
    interconnect: bytes/s that the chip's links send, all together.
    text: the compiled program.
  """

  topology: str
  chip_count: int
  micro_batches: Mapping[str, int]
  flops: float
  bytes_accessed: float
  arguments: int
  temporaries: int
  memory: float
  collectives: tuple[Collective, ...]
  roofline_seconds: float
  interconnect: float
  text: str = dataclasses.field(repr=False)

  @property
  def used(self) -> int:
    """Bytes of HBM that an iteration needs."""
    return self.arguments + self.temporaries

  @property
  def all_reduce_bytes(self) -> int:
    """Bytes that an iteration sums over all chips: gradients and metrics."""
    return sum(collective.size for collective in self.collectives if collective.kind == "all-reduce")

  @property
  def all_reduce_seconds(self) -> float:
    """The least time of the all-reduces, on rings that use every link: each chip sends 2 (n - 1) / n of the bytes."""
    return 2 * (self.chip_count - 1) / self.chip_count * self.all_reduce_bytes / self.interconnect


def compile_for_topology(experiment: Experiment, topology_name: str) -> TpuPlan:
  """Compiles a whole iteration for a TPU slice, and halves the micro-batches of every phase until it fits.

  Args:
    experiment: its algorithm is built for the platform "tpu".
    topology_name: a chip of `CHIPS`, a colon and the shape of the slice, e.g. "v5e:2x2" or "v4:4x4x4".

  Raises:
    UserError: libtpu is missing, the topology is unknown, or the iteration does not fit at one image per chip.
  """
  chip = CHIPS.get(topology_name.partition(":")[0])
  if chip is None:
    raise UserError(f"unknown topology {topology_name!r}: give a chip of {sorted(CHIPS)} and a shape, e.g. v5e:2x2")
  mesh = topology_mesh(topology_name)
  if experiment.batch_size % mesh.size:
    raise UserError(
      f"config.batch_size = {experiment.batch_size} is not a multiple of the {mesh.size} chips of {topology_name}: "
      "change one of them"
    )
  per_chip = experiment.batch_size // mesh.size
  micro_batches = dict(experiment.micro_batches)
  while True:
    try:
      compiled = _compile(experiment, mesh, micro_batches)
      break
    except jax.errors.JaxRuntimeError as error:
      if "RESOURCE_EXHAUSTED" not in str(error):
        raise
    smaller = min([per_chip, *micro_batches.values()]) // 2
    divisible = {phase.name: phase.group for phase in experiment.algorithm.phases if phase.group}
    if smaller < max(divisible.values(), default=per_chip):
      raise UserError(
        f"the iteration does not fit {topology_name}, even in the smallest micro-batches: use larger chips"
      ) from None
    micro_batches = dict.fromkeys(divisible, smaller)

  memory, text = compiled.memory_analysis(), compiled.as_text()
  assert memory and text, "libtpu states both"
  flops, accessed = _cost(compiled)
  for phase in experiment.algorithm.phases:  # XLA counts the body of a loop once
    of_phase = phase.batches * per_chip
    size = phase.micro_batch_size(of_phase, micro_batches.get(phase.name))
    times = phase.repeat * of_phase // size
    if times > 1:
      body_flops, body_accessed = _cost(traced_phase(experiment, mesh, phase, size * mesh.size).lower().compile())
      flops += (times - 1) * body_flops
      accessed += (times - 1) * body_accessed
  return TpuPlan(
    topology=topology_name,
    chip_count=mesh.size,
    micro_batches=micro_batches,
    flops=flops,
    bytes_accessed=accessed,
    arguments=memory.argument_size_in_bytes,
    temporaries=memory.temp_size_in_bytes,
    memory=chip.memory,
    collectives=collectives(text),
    roofline_seconds=max(flops / chip.flops, accessed / chip.bandwidth),
    interconnect=chip.interconnect,
    text=text,
  )


def describe_plan(plan: TpuPlan) -> str:
  """Returns the plan as readable lines."""
  micro_batches = ", ".join(f"config.run.micro_batch.{name}={size}" for name, size in plan.micro_batches.items())
  lines = [
    f"one iteration on {plan.topology} ({plan.chip_count} chips), per chip, as the TPU compiler states it:",
    f"  HBM: {plan.used / GIB:.2f} of {plan.memory / GIB:.0f} GiB: {plan.arguments / GIB:.2f} for state and batches, "
    f"{plan.temporaries / GIB:.2f} for temporaries",
    f"  micro-batches: {micro_batches or 'none needed'}",
    f"  FLOPs: {plan.flops:.4g}",
    f"  HBM traffic: {plan.bytes_accessed / 1e9:.1f} GB",
    f"  at least {1e3 * plan.roofline_seconds:.0f} ms by the chip's published peaks, and "
    f"{1e3 * plan.all_reduce_seconds:.1f} ms for the all-reduces",
  ]
  for (kind, size), count in sorted(Counter((c.kind, c.size) for c in plan.collectives).items()):
    lines += [f"  {count} x {kind} of {size:,} bytes"]
  return "\n".join(lines)


def topology_mesh(topology_name: str) -> Mesh:
  """Returns the mesh of a TPU slice; raises a UserError if libtpu is missing or the shape is unknown."""
  if find_spec("libtpu") is None:
    raise UserError("compiling for a TPU needs libtpu: pip install -e '.[tpu]'")
  # libtpu reads these when it loads; without them it waits for a TPU's metadata server.
  chip = CHIPS[topology_name.partition(":")[0]]
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("TPU_ACCELERATOR_TYPE", chip.accelerator_type)
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  os.environ.setdefault("TPU_WORKER_ID", "0")
  try:
    topology = topologies.get_topology_desc(platform="tpu", topology_name=topology_name)
  except (jax.errors.JaxRuntimeError, RuntimeError) as error:
    raise UserError(f"libtpu rejects the topology {topology_name!r}: {str(error).splitlines()[0]}") from error
  return make_mesh(topology.devices)


def _compile(experiment: Experiment, mesh: Mesh, micro_batches: Mapping[str, int]) -> jax.stages.Compiled:
  return traced_step(experiment, mesh, micro_batches).lower().compile()


def _cost(compiled: jax.stages.Compiled) -> tuple[float, float]:
  """Returns (FLOPs, bytes accessed)."""
  cost = compiled.cost_analysis()
  assert cost, "libtpu counts both"
  return cost["flops"], cost["bytes accessed"]
