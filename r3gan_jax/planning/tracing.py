"""Traces the training step for devices that need not be present, from shapes alone."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from r3gan_jax.algorithms.base import LearnsFromUnlabelled, Phase
from r3gan_jax.training.loop import Experiment
from r3gan_jax.training.mesh import batch_sharding, replicated
from r3gan_jax.training.state import abstract_state
from r3gan_jax.training.step import global_gradients, make_train_step


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
