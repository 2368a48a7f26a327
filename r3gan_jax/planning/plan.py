"""Plans a run: compiles an iteration without allocating a network, for devices that are here or for others.

    describe(experiment)                            # on the devices that are here
    compile_for_topology(experiment, "v5e:2x2")     # on TPUs or GPUs: their compilers need none

Memory and collectives are the compiler's; a TPU's FLOPs and bytes, too. XLA's GPU compiler counts neither: FLOPs are
those of the program that it is given, and bytes are added up over the kernels of the one that it makes. Times are lower
bounds, from published peaks.
"""

import dataclasses
import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import jax
from clu import parameter_overview
from jax.sharding import Mesh

from r3gan_jax.errors import UserError
from r3gan_jax.planning.hlo import Collective, GpuProgram, collectives
from r3gan_jax.planning.topology import GIB, Topology, open_mesh, parse_topology
from r3gan_jax.planning.tracing import traced_phase, traced_step
from r3gan_jax.training.loop import Experiment
from r3gan_jax.training.mesh import make_mesh
from r3gan_jax.training.state import abstract_state


@dataclass(frozen=True)
class Plan:
  """One iteration, compiled for a topology; all numbers are per device.

  Attributes:
    topology: the devices.
    iterations: of the whole run.
    every_phase: whether every phase runs in every iteration.
    micro_batches: phase -> images per device and micro-batch; empty: the device's whole part of the batch.
    flops: of an iteration in which every phase runs; on GPUs with one tile of each augmented image.
    bytes_accessed: traffic of the device's memory in that iteration.
    arguments: bytes of memory for state and batches.
    temporaries: bytes of memory for everything else. On a GPU the workspaces that cuDNN chooses on the card may add.
    collectives: in program order.
    text: the compiled program.
  """

  topology: Topology
  iterations: int
  every_phase: bool
  micro_batches: Mapping[str, int]
  flops: float
  bytes_accessed: float
  arguments: int
  temporaries: int
  collectives: tuple[Collective, ...]
  text: str = dataclasses.field(repr=False)

  @property
  def used(self) -> int:
    """Bytes of memory that an iteration needs."""
    return self.arguments + self.temporaries

  @property
  def all_reduce_bytes(self) -> int:
    """Bytes that an iteration sums over all devices: gradients and metrics."""
    return sum(collective.size for collective in self.collectives if collective.kind == "all-reduce")

  @property
  def all_reduce_seconds(self) -> float | None:
    """The least time of the all-reduces; None: unknown. See `Topology.all_reduce_seconds`."""
    return self.topology.all_reduce_seconds(self.all_reduce_bytes)

  @property
  def roofline_seconds(self) -> float:
    """The larger of FLOPs / peak and bytes / bandwidth."""
    device = self.topology.device
    return max(self.flops / device.flops, self.bytes_accessed / device.bandwidth)

  @property
  def least_hours(self) -> float | None:
    """The least time of all iterations, all-reduces hidden behind computing; None: not all are alike."""
    seconds = max(self.roofline_seconds, self.all_reduce_seconds or 0.0)
    return self.iterations * seconds / 3600 if self.every_phase else None


def compile_for_topology(
  experiment: Experiment, topology_name: str, compiler_options: Mapping[str, bool | int] | None = None
) -> Plan:
  """Compiles a whole iteration for TPUs or GPUs, and halves the micro-batches of every phase until it fits.

  Args:
    experiment: its algorithm is built for the topology's platform.
    topology_name: see `parse_topology`.
    compiler_options: XLA's, besides those that planning needs.

  Raises:
    UserError: the topology is unknown, its compiler is missing, or the iteration does not fit.
  """
  topology = parse_topology(topology_name)
  if experiment.batch_size % topology.size:
    raise UserError(
      f"config.batch_size = {experiment.batch_size} is not a multiple of the {topology.size} devices of "
      f"{topology_name}: change one of them"
    )
  # Autotuning would time kernels on a card.
  options: dict[str, bool | int] = {"xla_gpu_autotune_level": 0} if topology.device.platform == "gpu" else {}
  mesh = open_mesh(topology)
  options |= compiler_options or {}
  compiled, micro_batches = _compile_to_fit(experiment, mesh, topology.usable_memory, topology_name, options)
  memory, text = compiled.memory_analysis(), compiled.as_text()
  assert memory and text, "both compilers state both"
  if topology.device.platform == "gpu":
    # XLA counts for devices that are here. FLOPs of one device's part of the batch are the same there.
    part = dataclasses.replace(experiment, batch_size=experiment.batch_size // topology.size)
    flops = _iteration_flops(part, make_mesh(jax.devices("cpu")[:1]))
    accessed: float = GpuProgram(text).bytes_accessed()
  else:
    flops, accessed = _tpu_cost(experiment, mesh, compiled, micro_batches)
  return Plan(
    topology=topology,
    iterations=math.ceil(experiment.total_images / experiment.images_per_iteration),
    every_phase=all(phase.every == 1 for phase in experiment.algorithm.phases),
    micro_batches=micro_batches,
    flops=flops,
    bytes_accessed=accessed,
    arguments=memory.argument_size_in_bytes,
    temporaries=memory.temp_size_in_bytes,
    collectives=collectives(text),
    text=text,
  )


def describe_plan(plan: Plan) -> str:
  """Returns the plan as readable lines."""
  topology = plan.topology
  kind, device = {"tpu": ("TPU", "chip"), "gpu": ("GPU", "card")}[topology.device.platform]
  micro_batches = ", ".join(f"config.run.micro_batch.{name}={size}" for name, size in plan.micro_batches.items())
  all_reduce = plan.all_reduce_seconds
  sending = "an unknown time" if all_reduce is None else f"{1e3 * all_reduce:.1f} ms"
  lines = [
    f"one iteration on {topology.name} ({topology.size} {device}s), per {device}, as XLA compiles it for the {kind}:",
    f"  memory: {plan.used / GIB:.2f} of {topology.usable_memory / GIB:.1f} GiB: {plan.arguments / GIB:.2f} for state "
    f"and batches, {plan.temporaries / GIB:.2f} for temporaries",
  ]
  if topology.usable_memory != topology.device.memory:
    lines += [
      f"    of the card's {topology.device.memory / GIB:.1f} GiB JAX takes "
      f"{topology.usable_memory / topology.device.memory:.0%} (XLA_PYTHON_CLIENT_MEM_FRACTION)"
    ]
  lines += [
    f"  micro-batches: {micro_batches or 'none needed'}",
    f"  FLOPs: {plan.flops:.4g}",
    f"  memory traffic: {plan.bytes_accessed / 1e9:.1f} GB",
    f"  at least {1e3 * plan.roofline_seconds:.0f} ms by the {device}'s published peaks, and {sending} for the "
    "all-reduces",
  ]
  if plan.least_hours is not None:
    lines += [f"  at least {plan.least_hours:.3g} hours for the {plan.iterations:,} iterations of the run"]
  if topology.device.platform == "gpu":
    program = GpuProgram(plan.text)
    lines += [f"  {program.cudnn_convolutions()} convolutions are calls of cuDNN"]
    lines += [f"  not a call of cuDNN: {name}" for name in program.other_convolutions()]
  for (name, size), count in sorted(Counter((c.kind, c.size) for c in plan.collectives).items()):
    lines += [f"  {count} x {name} of {size:,} bytes"]
  return "\n".join(lines)


def describe(experiment: Experiment) -> str:
  """Returns parameter tables, and memory and FLOPs per device of one iteration on the available devices."""
  mesh = make_mesh()
  state = abstract_state(experiment.algorithm, mesh)
  lines = [parameter_overview.get_parameter_overview(params, include_stats=False) for params in state.params.values()]
  for name, params in state.params.items():
    lines += [f"{name} parameters: {sum(leaf.size for leaf in jax.tree.leaves(params))}"]

  compiled = traced_step(experiment, mesh, experiment.micro_batches).lower().compile()
  devices = f"{mesh.size} x {mesh.devices[0].device_kind}"
  lines += [f"one iteration of {experiment.batch_size} images on {devices}, per device, as XLA states it:"]
  if memory := compiled.memory_analysis():
    lines += [f"  state and batches: {memory.argument_size_in_bytes / GIB:.2f} GiB"]
    lines += [f"  temporaries: {memory.temp_size_in_bytes / GIB:.2f} GiB"]
    needed, there = memory.argument_size_in_bytes + memory.temp_size_in_bytes, memory_bytes(mesh.devices.flat[0])
    if needed > there:
      phases = dict.fromkeys(phase.name for phase in experiment.algorithm.phases)
      names = ", ".join(f"--config.run.micro_batch.{phase}=N" for phase in phases)
      lines += [
        f"  this is more than the {there / GIB:.1f} GiB of a device here: use smaller micro-batches ({names}), or "
        "more devices (--topology=v5e:4x4 or h100:1x8 plans for TPUs or GPUs)"
      ]
  if flops := _iteration_flops(experiment, mesh):
    lines += [f"  FLOPs: {flops:.4g}"]
  return "\n".join(lines)


def multiply_adds_per_image(experiment: Experiment) -> float:
  """Returns half of XLA's count of FLOPs of training, per image seen; allocates nothing.

  It is a mean over iterations, as some phases do not run in all of them: their gradients count by their share. Nothing
  depends on the devices that are here.
  """
  mesh = make_mesh(jax.devices("cpu")[:1])
  flops = _iteration_flops(experiment, mesh)
  for phase in experiment.algorithm.phases:
    if phase.every > 1:
      flops -= (1 - 1 / phase.every) * _flops(traced_phase(experiment, mesh, phase))
  return flops / 2 / experiment.images_per_iteration


def memory_bytes(device: jax.Device) -> int:
  """Returns the memory of a device in bytes; of a CPU, that of the machine."""
  statistics = device.memory_stats() or {}
  return statistics.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def fitted_to(mesh: Mesh, experiment: Experiment, memory: float) -> Experiment:
  """Returns `experiment` with the largest micro-batches, halved from its own, that fit `memory` bytes of a device.

  Raises:
    UserError: none do.
  """
  micro_batches = _compile_to_fit(experiment, mesh, memory, f"{memory / GIB:.3g} GiB of a device here", {})[1]
  return dataclasses.replace(experiment, micro_batches=micro_batches)


def _compile_to_fit(
  experiment: Experiment, mesh: Mesh, limit: float, where: str, options: Mapping[str, bool | int]
) -> tuple[jax.stages.Compiled, dict[str, int]]:
  """Returns the compiled step, and the micro-batches with which it fits `limit` bytes of each device."""
  micro_batches = dict(experiment.micro_batches)
  divisible = {phase.name: phase.group for phase in experiment.algorithm.phases if phase.group}
  size = min([experiment.batch_size // mesh.size, *micro_batches.values()])
  while True:
    memory = None
    try:
      compiled = traced_step(experiment, mesh, micro_batches).lower().compile(dict(options))
      memory = compiled.memory_analysis()
      assert memory, "both compilers state it"
      if memory.argument_size_in_bytes + memory.temp_size_in_bytes <= limit:
        return compiled, micro_batches
    except jax.errors.JaxRuntimeError as error:
      # How the TPU compiler refuses what does not fit. The GPU compiler does not: there it would be a kernel's fault.
      if mesh.devices.flat[0].platform == "gpu" or "RESOURCE_EXHAUSTED" not in str(error):
        raise
    before, size = size, size // 2
    if memory:  # temporaries shrink at most in proportion: what would be too large even so is not compiled
      room = limit - memory.argument_size_in_bytes
      while size and memory.temp_size_in_bytes * size / before > room:
        size //= 2
    if not divisible or size < max(divisible.values()):
      raise UserError(f"an iteration does not fit {where}, even in the smallest micro-batches: use larger devices")
    micro_batches = dict.fromkeys(divisible, size)


def _iteration_flops(experiment: Experiment, mesh: Mesh) -> float:
  """Returns XLA's count of FLOPs per device of an iteration in which every phase runs; 0 if it has none."""
  # XLA counts the body of a loop once. In this lowering repeated updates are loops; micro-batches and groups are not.
  flops = _flops(traced_step(experiment, mesh))
  if flops:
    repeated = [phase for phase in experiment.algorithm.phases if phase.repeat > 1]
    flops += sum((phase.repeat - 1) * _flops(traced_phase(experiment, mesh, phase)) for phase in repeated)
  return flops


def _flops(program: jax.stages.Traced) -> float:
  """Returns XLA's count of FLOPs per device; 0 if it has none."""
  cost = program.lower(lowering_platforms=("cuda",)).cost_analysis()
  return cost["flops"] if cost else 0.0


def _tpu_cost(
  experiment: Experiment, mesh: Mesh, compiled: jax.stages.Compiled, micro_batches: Mapping[str, int]
) -> tuple[float, float]:
  """Returns (FLOPs, bytes accessed) per chip of an iteration in which every phase runs, as XLA counts them."""
  flops, accessed = _counted(compiled)
  for phase in experiment.algorithm.phases:  # XLA counts the body of a loop once
    of_phase = phase.batches * experiment.batch_size // mesh.size
    size = phase.micro_batch_size(of_phase, micro_batches.get(phase.name))
    times = phase.repeat * of_phase // size
    if times > 1:
      of_body = _counted(traced_phase(experiment, mesh, phase, size * mesh.size).lower().compile())
      flops += (times - 1) * of_body[0]
      accessed += (times - 1) * of_body[1]
  return flops, accessed


def _counted(compiled: jax.stages.Compiled) -> tuple[float, float]:
  """Returns (FLOPs, bytes accessed)."""
  cost = compiled.cost_analysis()
  assert cost, "libtpu counts both"
  return cost["flops"], cost["bytes accessed"]
