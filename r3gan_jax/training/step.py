"""The training step: one iteration of any algorithm, pure, jitted once for the whole run.

    step(state, batches) -> (state, metrics)

Data parallelism is explicit: each phase's gradients are computed under `jax.shard_map` on every device's part of
the batch and averaged once. All random draws come from per-sample keys made for the *global* batch and then split,
so 1 device and 8 devices, whole batches and micro-batches, train the same model.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from r3gan_jax.algorithms.base import DATA_AXIS, Algorithm, Batch, Phase
from r3gan_jax.training.ema import ema_decay, update_ema
from r3gan_jax.training.mesh import batch_sharding, replicated
from r3gan_jax.training.state import TrainState

Batches = tuple[Batch, ...]
"""One global batch for each phase of the iteration that takes a fresh one, in order."""

Metrics = dict[str, jax.Array]
"""float32 scalars by name: 'generator/loss', 'knobs/gamma', ...; 'finite' is 0 where a gradient or loss is not.

Those of a phase that was skipped are NaN; what is not a number in one that ran is infinite here.
"""


class TrainStep(Protocol):
  """A jitted step; the state passed in is donated."""

  def __call__(self, state: TrainState, batches: Batches) -> tuple[TrainState, Metrics]: ...

  def lower(self, state: Any, batches: Any) -> jax.stages.Lowered: ...

  def trace(self, state: Any, batches: Any) -> jax.stages.Traced: ...


def make_train_step(algorithm: Algorithm, mesh: Mesh, micro_batches: Mapping[str, int] | None = None) -> TrainStep:
  """The jitted step of `algorithm` on `mesh`; the state passed in is donated.

  Args:
    algorithm: what to train.
    mesh: the devices.
    micro_batches: phase name -> samples a device handles at a time (gradients accumulate over them); a phase not
      named here handles its whole part of the batch at once.
  """
  micro_batches = micro_batches or {}

  def step(state: TrainState, batches: Batches) -> tuple[TrainState, Metrics]:
    knobs = {name: ramp(state.images_seen) for name, ramp in algorithm.ramps.items()}
    rng = jax.random.fold_in(state.rng, state.images_seen)
    params, optimizer, carry = dict(state.params), dict(state.optimizer), state.carry
    metrics: Metrics = {f"knobs/{name}": value for name, value in knobs.items()}
    phases = list(zip(algorithm.phases, _dealt(algorithm, batches), strict=True))
    images_counted = sum(batch["image"].shape[0] * phase.counts_images for phase, batch in phases)
    finite = jnp.array(True)

    for index, (phase, batch) in enumerate(phases):
      rngs = jax.random.split(jax.random.fold_in(rng, index), batch["image"].shape[0])
      gradients_of = global_gradients(phase, mesh, micro_batches.get(phase.name))
      update = partial(_update, phase, gradients_of, algorithm.optimizers, dict(params), batch, rngs, knobs)
      before = (_of(phase, params), _of(phase, optimizer), carry)
      if phase.every == 1:
        after, phase_metrics = update(before)
      else:
        due = state.images_seen // images_counted % phase.every == 0
        skip = partial(_skip, jax.eval_shape(update, before)[1])
        after, phase_metrics = lax.cond(due, update, skip, before)
      params |= after[0]
      optimizer |= after[1]
      carry = after[2]
      metrics |= phase_metrics
      for value in phase_metrics.values():
        finite &= ~jnp.isinf(value)

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


def _dealt(algorithm: Algorithm, batches: Batches) -> list[Batch]:
  """The batch of each phase."""
  remaining = iter(batches)
  dealt: list[Batch] = []
  for phase in algorithm.phases:
    dealt.append(next(remaining) if phase.fresh_batch else dealt[-1])
  return dealt


def _of(phase: Phase, by_network: dict[str, Any]) -> dict[str, Any]:
  """The part of the networks that a phase updates."""
  return {name: by_network[name] for name in phase.updates}


_Trained = tuple[dict[str, Any], dict[str, Any], Any]
"""(parameters, optimisers) of the networks that a phase updates, and the carry."""


def _update(
  phase: Phase,
  gradients_of: Callable[..., tuple[Any, Any, Metrics]],
  optimizers: Mapping[str, optax.GradientTransformationExtraArgs],
  params: Any,
  batch: Batch,
  rngs: jax.Array,
  knobs: Any,
  before: _Trained,
) -> tuple[_Trained, Metrics]:
  """What one phase makes of `before`, and its metrics; `params` are those of all networks."""
  updated, optimizer, carry = before
  gradients, carry, phase_metrics = gradients_of(params | updated, carry, batch, rngs, knobs)
  updated, optimizer, metrics = dict(updated), dict(optimizer), {}
  for name in phase.updates:
    updates, optimizer[name] = optimizers[name].update(gradients[name], optimizer[name], updated[name], knobs=knobs)
    updated[name] = optax.apply_updates(updated[name], updates)
    which = "gradient_norm" if phase.every == 1 else f"gradient_norm_every_{phase.every}"
    metrics[f"{name}/{which}"] = optax.tree.norm(gradients[name])
  metrics |= {f"{phase.name}/{name}": value for name, value in phase_metrics.items()}
  return (updated, optimizer, carry), {name: jnp.where(jnp.isnan(v), jnp.inf, v) for name, v in metrics.items()}


def _skip(metrics: Metrics, before: _Trained) -> tuple[_Trained, Metrics]:
  """`before` as it is, and NaN for each of `metrics`."""
  return before, {name: jnp.full(value.shape, jnp.nan, value.dtype) for name, value in metrics.items()}


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
  """The mean of `phase.gradients` over `parts` micro-batches, one after the other, all from the same carry."""
  split = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), samples)

  def body(sums: Any, part: tuple[Batch, jax.Array]) -> tuple[Any, None]:
    batch, rngs = part
    return jax.tree.map(jnp.add, sums, phase.gradients(params, carry, batch, rngs, knobs)), None

  batch, rngs = jax.tree.map(lambda x: x[0], split)
  shapes = jax.eval_shape(lambda: phase.gradients(params, carry, batch, rngs, knobs)[::2])
  varying = jax.tree.map(lambda s: lax.pcast(jnp.zeros(s.shape, s.dtype), DATA_AXIS, to="varying"), shapes)
  sums, _ = lax.scan(body, (varying[0], jax.tree.map(jnp.zeros_like, carry), varying[1]), split)
  gradients, carry, metrics = jax.tree.map(lambda x: x / parts, sums)
  return gradients, carry, metrics
