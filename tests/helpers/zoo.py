"""Helpers for the tests of the zoo's algorithms."""

import jax
import jax.numpy as jnp
import numpy as np

from helpers.meshes import mesh_of
from r3gan_jax.algorithms.capabilities import LearnsFromUnlabelled
from r3gan_jax.training.mesh import replicated
from r3gan_jax.training.state import init_state
from r3gan_jax.training.step import make_train_step


def data(algorithm, batch, seed=0):
  """Returns a batch of random images, with random labels if the data have classes."""
  random = np.random.default_rng(seed)
  images = {"image": random.integers(0, 256, (batch, *algorithm.input_shape), dtype=np.uint8)}
  if not algorithm.images.num_classes:
    return images
  first = -1 if isinstance(algorithm, LearnsFromUnlabelled) else 0
  return images | {"label": random.integers(first, algorithm.images.num_classes, batch, dtype=np.int32)}


def trained(algorithm, batch, iterations, devices=1, interrupted=lambda state: state):
  """Returns the state after training on random images; `interrupted`, state -> state, precedes each iteration."""
  mesh = mesh_of(devices)
  state = jax.device_put(jax.tree.map(jnp.copy, first_state(algorithm)), replicated(mesh))
  step = train_step(algorithm, mesh)
  programs = step._cache_size()
  updates = sum(phase.repeat for phase in algorithm.phases if phase.fresh_batch)
  for iteration in range(iterations):
    given = tuple(data(algorithm, batch, seed=(iteration, update)) for update in range(updates))
    state, metrics = step(interrupted(state), given)
    assert not metrics.not_finite()
  assert step._cache_size() <= programs + 1, "compiled again after the first iteration"
  return state


def train_step(algorithm, mesh):
  """Returns `make_train_step`'s result, traced once."""
  return _once((algorithm, mesh), lambda: make_train_step(algorithm, mesh))


def first_state(algorithm):
  """Returns the state at the start."""
  return _once((algorithm,), lambda: jax.jit(lambda: init_state(algorithm, 0))())


_KEPT = {}


def _once(given, make):
  """Returns make(), kept for these very objects: equal algorithms may differ in arrays, such as rGAN's T."""
  key = tuple(map(id, given))
  if key not in _KEPT:
    _KEPT[key] = given, make()  # keeps them alive, and so their ids
  return _KEPT[key][1]
