"""Plans a run: traces and compiles its step without allocating a network."""

import os
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from clu import parameter_overview

from r3gan_jax.algorithms.base import LearnsFromUnlabelled, Phase
from r3gan_jax.training.loop import Experiment
from r3gan_jax.training.mesh import batch_sharding, make_mesh, replicated
from r3gan_jax.training.state import abstract_state
from r3gan_jax.training.step import global_gradients, make_train_step


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
    lines += [f"  state and batches: {memory.argument_size_in_bytes / 2**30:.2f} GiB"]
    lines += [f"  temporaries: {memory.temp_size_in_bytes / 2**30:.2f} GiB"]
    needed, there = memory.argument_size_in_bytes + memory.temp_size_in_bytes, memory_bytes(mesh.devices.flat[0])
    if needed > there:
      phases = dict.fromkeys(phase.name for phase in experiment.algorithm.phases)
      names = ", ".join(f"--config.run.micro_batch.{phase}=N" for phase in phases)
      lines += [
        f"  this is more than the {there / 2**30:.1f} GiB of a device here: use smaller micro-batches ({names}), or "
        "more devices (--tpu_topology=v5e:4x4 plans for a TPU)"
      ]
  # XLA counts the body of a loop once. In this lowering repeated updates are loops; micro-batches and groups are not.
  if flops := _flops(traced_step(experiment, mesh)):
    repeated = [phase for phase in experiment.algorithm.phases if phase.repeat > 1]
    flops += sum((phase.repeat - 1) * _flops(traced_phase(experiment, mesh, phase)) for phase in repeated)
    lines += [f"  FLOPs: {flops:.4g}"]
  return "\n".join(lines)


def memory_bytes(device: jax.Device) -> int:
  """Returns the memory of a device in bytes; of a CPU, that of the machine."""
  statistics = device.memory_stats() or {}
  return statistics.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _flops(program: jax.stages.Traced) -> float:
  """Returns XLA's count of FLOPs per device; 0 if it has none."""
  cost = program.lower(lowering_platforms=("cuda",)).cost_analysis()
  return cost["flops"] if cost else 0.0


def traced_step(
  experiment: Experiment, mesh: jax.sharding.Mesh, micro_batches: Mapping[str, int] | None = None
) -> jax.stages.Traced:
  """Traces the training step for `mesh`, whose devices need not be present; allocates nothing."""
  step = make_train_step(experiment.algorithm, mesh, micro_batches)
  state = abstract_state(experiment.algorithm, mesh)
  return step.trace(state, abstract_batches(experiment, mesh))


def traced_phase(
  experiment: Experiment, mesh: jax.sharding.Mesh, phase: Phase, images: int | None = None
) -> jax.stages.Traced:
  """Traces the gradients of one phase for a global batch of `images` (default: as configured) on `mesh`."""
  images = images or phase.batches * experiment.batch_size
  state = abstract_state(experiment.algorithm, mesh)
  batch = abstract_batch(experiment, mesh, images)
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), images))
  keys = jax.ShapeDtypeStruct(keys.shape, keys.dtype, sharding=batch_sharding(mesh))
  hyperparameter = jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated(mesh))
  hyperparameters = dict.fromkeys(experiment.algorithm.schedules, hyperparameter)
  return jax.jit(global_gradients(phase, mesh, None)).trace(state.params, state.carry, batch, keys, hyperparameters)


def abstract_batches(experiment: Experiment, mesh: jax.sharding.Mesh) -> tuple[dict[str, jax.ShapeDtypeStruct], ...]:
  """Returns one iteration's batches as `jax.ShapeDtypeStruct`s."""
  return tuple(abstract_batch(experiment, mesh, size) for size in experiment.batch_sizes)


def abstract_batch(experiment: Experiment, mesh: jax.sharding.Mesh, images: int) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns one batch of `images` images as `jax.ShapeDtypeStruct`s."""
  sharding = batch_sharding(mesh)
  shape = (images, *experiment.algorithm.image_shape)
  image = {"image": jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=sharding)}
  if not (experiment.algorithm.num_classes or isinstance(experiment.algorithm, LearnsFromUnlabelled)):
    return image
  return image | {"label": jax.ShapeDtypeStruct((images,), jnp.int32, sharding=sharding)}
