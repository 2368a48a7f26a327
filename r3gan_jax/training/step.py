"""The training step: one iteration of any algorithm, a pure function that is compiled once per run.

    step(state, batches) -> (state, metrics)

Data parallelism is explicit: under `jax.shard_map`, every device computes each phase's gradients on its part of the
batch, and one all-reduce averages them. Random draws come from per-sample keys of the *global* batch, so 1 device and 8
devices, whole batches and micro-batches train the same model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from r3gan_jax.algorithms import base
from r3gan_jax.algorithms.base import DATA_AXIS, Algorithm, Batch, Carry, Hyperparameters, Params, Phase
from r3gan_jax.algorithms.capabilities import HasPretrainedNetworks, trainable
from r3gan_jax.pretrained import PretrainedNetwork
from r3gan_jax.training.ema import updated
from r3gan_jax.training.mesh import batch_sharding, replicated
from r3gan_jax.training.state import TrainState

Batches = tuple[Batch, ...]
"""The global batches of an iteration: one per update of each phase that takes a fresh batch, in order."""


class Metrics(NamedTuple):
  """The metrics of an iteration.

  Attributes:
    values: float32 scalars by name: 'generator/loss', 'hyperparameters/gamma', ...; 0 if the phase did not run.
    ran: bools, for metrics of phases that do not run in every iteration: whether this one measured them.
  """

  values: dict[str, jax.Array]
  ran: dict[str, jax.Array]

  def not_finite(self) -> list[str]:
    """Returns the names of non-finite values, after waiting for them."""
    return sorted(name for name, value in jax.device_get(self.values).items() if not np.isfinite(value))


class TrainStep(Protocol):
  """A compiled step; the state passed in is donated."""

  def __call__(self, state: TrainState, batches: Batches) -> tuple[TrainState, Metrics]: ...

  def trace(self, state: Any, batches: Any) -> jax.stages.Traced: ...


class Trained(NamedTuple):
  """The state that a phase updates: parameters and optimiser states by network, and the carry."""

  params: dict[str, Any]
  optimizer: dict[str, Any]
  carry: dict[str, Any]


Update = Callable[[Trained, Params, Sequence[Batch], jax.Array, Hyperparameters], tuple[Trained, base.Metrics]]
"""Applies one phase: (state, pretrained networks, one batch per repetition, a key per sample, hyperparameters) ->
(state, metrics)."""


def make_train_step(algorithm: Algorithm, mesh: Mesh, micro_batches: Mapping[str, int] | None = None) -> TrainStep:
  """Returns the jitted step of `algorithm` on `mesh`; the state passed in is donated.

  Args:
    algorithm: what to train.
    mesh: the devices.
    micro_batches: phase name -> samples per device and micro-batch, over which gradients accumulate; absent: the
      device's whole part of the batch.

  Raises:
    ValueError: micro-batches of a phase that needs whole batches or, when traced, two metrics of one name.
  """
  micro_batches = micro_batches or {}
  phases = algorithm.phases
  updates = [_make_update(algorithm, phase, mesh, micro_batches.get(phase.name)) for phase in phases]

  def step_with(pretrained: Params, state: TrainState, batches: Batches) -> tuple[TrainState, Metrics]:
    hyperparameters = {name: ramp(state.images_seen) for name, ramp in algorithm.schedules.items()}
    key = jax.random.fold_in(state.rng, state.images_seen)
    dealt = _deal(phases, batches)
    images_counted = sum(_samples(given) for phase, given in zip(phases, dealt, strict=True) if phase.counts_images)
    trained = Trained(state.params, state.optimizer, state.carry)
    metrics = Metrics({f"hyperparameters/{name}": value for name, value in hyperparameters.items()}, {})

    for index, (phase, update, given) in enumerate(zip(phases, updates, dealt, strict=True)):
      # A phase begins when the one before it has ended, so that the activations of only one take memory.
      trained = trained._replace(params=lax.optimization_barrier(trained.params))
      keys = jax.random.split(jax.random.fold_in(key, index), _samples(given))
      if phase.every == 1:
        trained, measured = update(trained, pretrained, given, keys, hyperparameters)
      else:
        due = state.images_seen // images_counted % phase.every == 0
        trained, measured = lax.cond(due, update, _skipping(update), trained, pretrained, given, keys, hyperparameters)
        metrics.ran.update(dict.fromkeys(measured, due))
      if twice := metrics.values.keys() & measured.keys():
        raise ValueError(f"two phases measure {sorted(twice)}: rename one of them")
      metrics.values.update(measured)

    averageable = trained.carry | trained.params
    images_seen = state.images_seen + images_counted
    ema = {
      name: updated(average, state.ema[name], averageable[average.of], hyperparameters, images_seen, images_counted)
      for name, average in algorithm.averages.items()
    }
    return TrainState(*trained[:2], ema, trained.carry, state.rng, images_seen, state.rollbacks), metrics

  def step(state: TrainState, batches: Batches) -> tuple[TrainState, Metrics]:
    return step_with({}, state, batches)

  copied, split = replicated(mesh), batch_sharding(mesh)
  if isinstance(algorithm, HasPretrainedNetworks) and algorithm.pretrained:
    jitted = jax.jit(step_with, donate_argnums=1, in_shardings=(copied, copied, split), out_shardings=copied)
    return _StepWithPretrained(jitted, algorithm.pretrained, mesh)
  return jax.jit(step, donate_argnums=0, in_shardings=(copied, split), out_shardings=copied)


class _StepWithPretrained:
  """A `TrainStep` that passes on pretrained networks, which are copied to the devices at the first call."""

  def __init__(self, step: Any, networks: Mapping[str, PretrainedNetwork], mesh: Mesh):
    self._step, self._networks, self._mesh = step, networks, mesh

  def __call__(self, state: TrainState, batches: Batches) -> tuple[TrainState, Metrics]:
    return self._step(self._params, state, batches)

  def trace(self, state: Any, batches: Any) -> jax.stages.Traced:
    return self._step.trace(abstract_pretrained(self._networks, self._mesh), state, batches)

  @cached_property
  def _params(self) -> Params:
    return jax.device_put({name: network.read() for name, network in self._networks.items()}, replicated(self._mesh))


def abstract_pretrained(networks: Mapping[str, PretrainedNetwork], mesh: Mesh) -> Params:
  """Returns the parameters of pretrained networks as `jax.ShapeDtypeStruct`s with shardings."""
  sharding = replicated(mesh)
  return {
    name: jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), network.read())
    for name, network in networks.items()
  }


def _deal(phases: Sequence[Phase], batches: Batches) -> list[list[Batch]]:
  """Returns the batches of each phase, one per repetition."""
  remaining = iter(batches)
  dealt: list[list[Batch]] = []
  for phase in phases:
    dealt.append([next(remaining) for _ in range(phase.repeat)] if phase.fresh_batch else dealt[-1][-1:])
  return dealt


def _samples(batches: Sequence[Batch]) -> int:
  return sum(batch["image"].shape[0] for batch in batches)


def _make_update(algorithm: Algorithm, phase: Phase, mesh: Mesh, micro_batch: int | None) -> Update:
  optimizers = algorithm.optimizers
  gradients_of = global_gradients(_without_frozen(algorithm, phase), mesh, micro_batch)
  gradient_norm = "gradient_norm" if phase.every == 1 else f"gradient_norm_every_{phase.every}"

  def once(
    before: Trained, pretrained: Params, batch: Batch, keys: jax.Array, hyperparameters: Hyperparameters
  ) -> tuple[Trained, base.Metrics]:
    carry = phase.refresh(before.params, before.carry)
    gradients, carry, measured = gradients_of({**before.params, **pretrained}, carry, batch, keys, hyperparameters)
    metrics = {f"{phase.name}/{name}": value for name, value in measured.items()}
    params, optimizer = dict(before.params), dict(before.optimizer)
    updated = trainable(algorithm, before.params)
    some_are_frozen = updated is not before.params
    for network in phase.updates:
      steps, optimizer[network] = optimizers[network].update(
        gradients[network], optimizer[network], updated[network], hyperparameters=hyperparameters
      )
      changed = optax.apply_updates(updated[network], steps)
      params[network] = params[network] | changed if some_are_frozen else changed
      metrics[f"{network}/{gradient_norm}"] = optax.tree.norm(gradients[network])
    return Trained(params, optimizer, dict(carry)), metrics

  def update(
    before: Trained, pretrained: Params, batches: Sequence[Batch], keys: jax.Array, hyperparameters: Hyperparameters
  ) -> tuple[Trained, base.Metrics]:
    if phase.repeat == 1:
      return once(before, pretrained, batches[0], keys, hyperparameters)
    stacked = jax.tree.map(lambda *parts: jnp.stack(parts), *batches)
    after, metrics = lax.scan(
      lambda before, drawn: once(before, pretrained, *drawn, hyperparameters),
      before,
      (stacked, keys.reshape(phase.repeat, -1)),
    )
    return after, jax.tree.map(lambda values: jnp.mean(values, axis=0), metrics)

  return update


def _without_frozen(algorithm: Algorithm, phase: Phase) -> Phase:
  """Returns the phase without gradients of frozen layers: XLA does not compute them, and no device sends them."""

  def gradients(params: Params, carry: Carry, *given: Any) -> tuple[Params, Carry, base.Metrics]:
    found, carry, metrics = phase.gradients(params, carry, *given)
    return trainable(algorithm, found), carry, metrics

  return replace(phase, gradients=gradients)


def _skipping(update: Update) -> Update:
  """Returns what replaces `update` in iterations in which its phase does not run."""

  def skip(before: Trained, *drawn: Any) -> tuple[Trained, base.Metrics]:
    measured = jax.eval_shape(update, before, *drawn)[1]
    return before, {name: jnp.zeros(value.shape, value.dtype) for name, value in measured.items()}

  return skip


def global_gradients(
  phase: Phase, mesh: Mesh, micro_batch: int | None
) -> Callable[[Params, Carry, Batch, jax.Array, Hyperparameters], tuple[Params, Carry, base.Metrics]]:
  """Returns `phase.gradients` of the global batch: computed per device and micro-batch, then averaged."""
  if micro_batch and phase.group is None:
    raise ValueError(f"phase {phase.name!r} needs whole batches, but its micro-batch size is {micro_batch}")

  def local(
    params: Params, carry: Carry, batch: Batch, keys: jax.Array, hyperparameters: Hyperparameters
  ) -> tuple[Params, Carry, base.Metrics]:
    # Each device differentiates its own copy of the parameters; the all-reduce over devices is explicit, below.
    params = lax.pcast(params, DATA_AXIS, to="varying")
    samples = keys.shape[0]
    size = phase.micro_batch_size(samples, micro_batch)
    if size == samples:
      gradients, carry, metrics = phase.gradients(params, carry, batch, keys, hyperparameters)
    else:
      gradients, carry, metrics = _accumulate(phase, params, carry, (batch, keys), hyperparameters, samples // size)
    # The barrier keeps XLA from moving the all-reduce before a conversion from bfloat16 to float32, and merges all
    # averages into one collective.
    gradients, metrics = lax.pmean(lax.optimization_barrier((gradients, metrics)), DATA_AXIS)
    return gradients, carry, metrics

  return jax.shard_map(
    local, mesh=mesh, in_specs=(P(), P(), P(DATA_AXIS), P(DATA_AXIS), P()), out_specs=(P(), P(), P())
  )


def _accumulate(
  phase: Phase,
  params: Params,
  carry: Carry,
  samples: tuple[Batch, jax.Array],
  hyperparameters: Hyperparameters,
  parts: int,
) -> tuple[Params, Carry, base.Metrics]:
  """Returns the mean of `phase.gradients` over `parts` micro-batches, all computed from the same carry."""
  split = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), samples)

  def body(sums: Any, part: tuple[Batch, jax.Array]) -> tuple[Any, None]:
    batch, keys = part
    return jax.tree.map(jnp.add, sums, phase.gradients(params, carry, batch, keys, hyperparameters)), None

  batch, keys = jax.tree.map(lambda x: x[0], split)
  shapes = jax.eval_shape(lambda: phase.gradients(params, carry, batch, keys, hyperparameters)[::2])
  varying = jax.tree.map(lambda s: lax.pcast(jnp.zeros(s.shape, s.dtype), DATA_AXIS, to="varying"), shapes)
  sums, _ = lax.scan(body, (varying[0], jax.tree.map(jnp.zeros_like, carry), varying[1]), split)
  gradients, carry, metrics = jax.tree.map(lambda x: x / parts, sums)
  return gradients, carry, metrics
