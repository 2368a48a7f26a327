"""The training state: one tree of arrays, replicated over the devices."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from r3gan_jax.algorithms.base import Algorithm, Average, Carry, Params
from r3gan_jax.algorithms.capabilities import HasStandingMoments, LearnsFromUnlabelled, trainable
from r3gan_jax.training.mesh import batch_sharding, replicated


@struct.dataclass
class TrainState:
  """Everything that a resumed run needs; the position in the data follows from `images_seen`.

  Attributes:
    params: network -> parameters, float32.
    optimizer: network -> state of its optax optimiser, which does not know of frozen layers.
    ema: name of an average -> the averaged tree.
    carry: the algorithm's own state, by name.
    rng: the base key. An iteration's random draws depend on it and on `images_seen`; it changes at rollbacks only.
    images_seen: int32 scalar.
    rollbacks: int32 scalar: how often the run rolled back after a non-finite value. It also changes the data order.
  """

  params: dict[str, Any]
  optimizer: dict[str, Any]
  ema: dict[str, Any]
  carry: dict[str, Any]
  rng: jax.Array
  images_seen: jax.Array
  rollbacks: jax.Array


def init_state(algorithm: Algorithm, seed: int) -> TrainState:
  """Returns the state at the start of a run; traceable, for `jax.eval_shape` and `jax.jit(out_shardings=...)`."""
  init_key, key = jax.random.split(jax.random.key(seed))
  params, carry = algorithm.init(init_key)
  updated = trainable(algorithm, params)
  optimizer = {name: optimizer.init(updated[name]) for name, optimizer in algorithm.optimizers.items()}
  # A training step returns no weakly typed arrays, and would be compiled again for them.
  carry, optimizer = jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), (carry, optimizer))
  return TrainState(
    params=params,
    optimizer=optimizer,
    # Copies: a donated buffer cannot back two leaves.
    ema={name: jax.tree.map(jnp.copy, (params | carry)[average.of]) for name, average in algorithm.averages.items()},
    carry=carry,
    rng=key,
    images_seen=jnp.zeros((), jnp.int32),
    rollbacks=jnp.zeros((), jnp.int32),
  )


def abstract_state(algorithm: Algorithm, mesh: Mesh) -> Any:
  """Returns the state as `jax.ShapeDtypeStruct`s with shardings; allocates nothing."""
  shapes = jax.eval_shape(lambda: init_state(algorithm, seed=0))
  sharding = replicated(mesh)
  return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), shapes)


def abstract_batches(
  algorithm: Algorithm, mesh: Mesh, sizes: Sequence[int]
) -> tuple[dict[str, jax.ShapeDtypeStruct], ...]:
  """Returns global batches of so many images as `jax.ShapeDtypeStruct`s with shardings."""
  sharding = batch_sharding(mesh)
  has_labels = algorithm.num_classes or isinstance(algorithm, LearnsFromUnlabelled)

  def batch(images: int) -> dict[str, jax.ShapeDtypeStruct]:
    image = {"image": jax.ShapeDtypeStruct((images, *algorithm.input_shape), algorithm.input_dtype, sharding=sharding)}
    return image | ({"label": jax.ShapeDtypeStruct((images,), jnp.int32, sharding=sharding)} if has_labels else {})

  return tuple(map(batch, sizes))


def averaged(algorithm: Algorithm, state: TrainState) -> tuple[Params, Carry]:
  """Returns (params, carry) with each `Average` in place of what it averages, for samples and metrics."""
  averages = {
    average.of: state.ema[name] for name, average in algorithm.averages.items() if isinstance(average, Average)
  }
  params, carry = ({name: averages.get(name, tree[name]) for name in tree} for tree in (state.params, state.carry))
  if isinstance(algorithm, HasStandingMoments):
    carry = _standing(algorithm, params, carry)
  return params, carry


@partial(jax.jit, static_argnums=0)
def _standing(algorithm: HasStandingMoments, params: Params, carry: Carry) -> Carry:
  return algorithm.standing(params, carry)
