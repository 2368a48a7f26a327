"""Traces the training step for devices that need not be present, from shapes alone."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from r3gan_jax.algorithms.base import Phase
from r3gan_jax.algorithms.capabilities import HasPretrainedNetworks
from r3gan_jax.training.loop import Experiment
from r3gan_jax.training.mesh import batch_sharding, replicated
from r3gan_jax.training.state import abstract_batches, abstract_state
from r3gan_jax.training.step import abstract_pretrained, global_gradients, make_train_step


def traced_step(
  experiment: Experiment, mesh: jax.sharding.Mesh, micro_batches: Mapping[str, int] | None = None
) -> jax.stages.Traced:
  """Traces the training step for `mesh`, whose devices need not be present; allocates nothing."""
  step = make_train_step(experiment.algorithm, mesh, micro_batches)
  state = abstract_state(experiment.algorithm, mesh)
  return step.trace(state, abstract_batches(experiment.algorithm, mesh, experiment.batch_sizes))


def traced_phase(
  experiment: Experiment, mesh: jax.sharding.Mesh, phase: Phase, images: int | None = None
) -> jax.stages.Traced:
  """Traces the gradients of one phase for a global batch of `images` (default: as configured) on `mesh`."""
  images = images or phase.batches * experiment.batch_size
  algorithm = experiment.algorithm
  state = abstract_state(algorithm, mesh)
  params = dict(state.params)
  if isinstance(algorithm, HasPretrainedNetworks):
    params |= abstract_pretrained(algorithm.pretrained, mesh)
  (batch,) = abstract_batches(algorithm, mesh, (images,))
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), images))
  keys = jax.ShapeDtypeStruct(keys.shape, keys.dtype, sharding=batch_sharding(mesh))
  hyperparameter = jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated(mesh))
  hyperparameters = dict.fromkeys(algorithm.schedules, hyperparameter)
  return jax.jit(global_gradients(phase, mesh, None)).trace(params, state.carry, batch, keys, hyperparameters)
