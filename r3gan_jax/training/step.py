"""The training step: one iteration of any algorithm, pure, jitted once for the whole run.

    step(state, batches) -> (state, metrics)

Data parallelism is explicit: each phase's gradients are computed under `jax.shard_map` on every device's part of
the batch and averaged once. All random draws come from per-sample keys made for the *global* batch and then split,
so 1 device and 8 devices, whole batches and micro-batches, train the same model.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from r3gan_jax.algorithms.base import DATA_AXIS, Algorithm, Batch, Phase
from r3gan_jax.schedules import Schedule
from r3gan_jax.training.ema import ema_decay, update_ema
from r3gan_jax.training.mesh import batch_sharding, replicated
from r3gan_jax.training.state import TrainState

Batches = tuple[Batch, ...]
"""One fresh global batch for each phase of the iteration, in order."""

Metrics = dict[str, jax.Array]
"""float32 scalars by name: 'generator/loss', 'knobs/gamma', ...; 'finite' is 0 where a gradient or loss is not."""


class TrainStep(Protocol):
  """A jitted step; the state passed in is donated."""

  def __call__(self, state: TrainState, batches: Batches) -> tuple[TrainState, Metrics]: ...

  def lower(self, state: Any, batches: Any) -> jax.stages.Lowered: ...

  def trace(self, state: Any, batches: Any) -> jax.stages.Traced: ...


def make_train_step(
  algorithm: Algorithm,
  optimizers: Mapping[str, optax.GradientTransformationExtraArgs],
  schedules: Mapping[str, Schedule],
  mesh: Mesh,
  micro_batches: Mapping[str, int] | None = None,
) -> TrainStep:
  """The jitted step of `algorithm` on `mesh`; the state passed in is donated.

  Args:
    algorithm: what to train.
    optimizers: network -> its optimiser, whose `update` takes `knobs`.
    schedules: knob -> its value as a function of images seen; evaluated inside the step.
    mesh: the devices.
    micro_batches: phase name -> samples a device handles at a time (gradients accumulate over them); a phase not
      named here handles its whole part of the batch at once.
  """
  micro_batches = micro_batches or {}

  def step(state: TrainState, batches: Batches) -> tuple[TrainState, Metrics]:
    knobs = {name: schedule(state.images_seen) for name, schedule in schedules.items()}
    rng = jax.random.fold_in(state.rng, state.images_seen)
    params, optimizer, carry = dict(state.params), dict(state.optimizer), state.carry
    metrics: Metrics = {f"knobs/{name}": value for name, value in knobs.items()}
    finite = jnp.array(True)
    images_counted = 0

    for index, (phase, batch) in enumerate(zip(algorithm.phases, batches, strict=True)):
      batch_size = batch["image"].shape[0]
      rngs = jax.random.split(jax.random.fold_in(rng, index), batch_size)
      gradients, carry, phase_metrics = global_gradients(phase, mesh, micro_batches.get(phase.name))(
        params, carry, batch, rngs, knobs
      )
      for name in phase.updates:
        updates, optimizer[name] = optimizers[name].update(gradients[name], optimizer[name], params[name], knobs=knobs)
        params[name] = optax.apply_updates(params[name], updates)
        norm = optax.tree.norm(gradients[name])
        finite &= jnp.isfinite(norm)
        metrics[f"{name}/gradient_norm"] = norm
      for name, value in phase_metrics.items():
        finite &= jnp.isfinite(value)
        metrics[f"{phase.name}/{name}"] = value
      images_counted += batch_size * phase.counts_images

    ema = {
      name: update_ema(
        state.ema[name], params[average.network], ema_decay(knobs[average.half_life_knob], images_counted)
      )
      for name, average in algorithm.averages.items()
    }
    metrics["finite"] = finite.astype(jnp.float32)
    images_seen = state.images_seen + images_counted
    return TrainState(params, optimizer, ema, carry, state.rng, images_seen, state.rollbacks), metrics

  return jax.jit(
    step,
    donate_argnums=0,
    in_shardings=(replicated(mesh), batch_sharding(mesh)),
    out_shardings=replicated(mesh),
  )


def global_gradients(phase: Phase, mesh: Mesh, micro_batch: int | None) -> Callable[..., tuple[Any, Any, Metrics]]:
  """`phase.gradients` of the global batch: per device and micro-batch, then averaged."""

  def local(params: Any, carry: Any, batch: Batch, rngs: jax.Array, knobs: Any) -> tuple[Any, Any, Metrics]:
    # Each device differentiates its own copy of the parameters: the one average over devices is ours, below.
    params = lax.pcast(params, DATA_AXIS, to="varying")
    samples = rngs.shape[0]
    size = min(micro_batch or samples, samples)
    if size == samples:
      gradients, carry, metrics = phase.gradients(params, carry, batch, rngs, knobs)
    else:
      gradients, carry, metrics = _accumulate(phase, params, carry, (batch, rngs), knobs, samples // size)
    # The barrier keeps XLA from averaging in bfloat16 what is converted to float32 just before, and makes the
    # average one collective.
    gradients, metrics = lax.pmean(lax.optimization_barrier((gradients, metrics)), DATA_AXIS)
    return gradients, carry, metrics

  return jax.shard_map(
    local, mesh=mesh, in_specs=(P(), P(), P(DATA_AXIS), P(DATA_AXIS), P()), out_specs=(P(), P(), P())
  )


def _accumulate(
  phase: Phase, params: Any, carry: Any, samples: tuple[Batch, jax.Array], knobs: Any, parts: int
) -> tuple[Any, Any, Metrics]:
  """The mean of `phase.gradients` over `parts` micro-batches, one after the other."""
  split = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), samples)

  def body(accumulator: Any, part: tuple[Batch, jax.Array]) -> tuple[Any, None]:
    sums, carry = accumulator
    batch, rngs = part
    gradients, carry, metrics = phase.gradients(params, carry, batch, rngs, knobs)
    return (jax.tree.map(jnp.add, sums, (gradients, metrics)), carry), None

  batch, rngs = jax.tree.map(lambda x: x[0], split)
  shapes = jax.eval_shape(lambda: phase.gradients(params, carry, batch, rngs, knobs)[::2])
  zeros = jax.tree.map(lambda s: lax.pcast(jnp.zeros(s.shape, s.dtype), DATA_AXIS, to="varying"), shapes)
  (sums, carry), _ = lax.scan(body, (zeros, carry), split)
  gradients, metrics = jax.tree.map(lambda x: x / parts, sums)
  return gradients, carry, metrics
