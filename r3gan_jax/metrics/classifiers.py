"""Trains small classifiers, and keeps them in files: `digits_cnn.py`, `residual_cnn.py`."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
import optax
from etils import epath
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from r3gan_jax.errors import UserError
from r3gan_jax.storage import as_path, read_npz, write_npz

COMMAND = "python -m r3gan_jax.cli.train_classifier"

_LEARNING_RATE = 2e-3


Batches = Iterable[tuple[np.ndarray, np.ndarray]]
"""Images [n, H, W, C] and labels int [n]."""


def fit(network: nn.Module, batches: Batches, steps: int, shape: tuple[int, ...], seed: int = 0) -> Any:
  """Trains with Adam, the learning rate decaying to 0 along a cosine; returns the parameters.

  Args:
    network: images -> (features, logits [n, K]).
    batches: at least `steps` of one size.
    steps: the number of updates.
    shape: (H, W, C).
    seed: for the initialisation.
  """
  params = jax.jit(network.init)(jax.random.key(seed), np.zeros((1, *shape), np.uint8))["params"]
  optimizer = optax.adam(optax.cosine_decay_schedule(_LEARNING_RATE, steps))

  @jax.jit
  def step(params: Any, state: Any, images: jax.Array, labels: jax.Array) -> tuple[Any, Any]:
    def loss(params: Any) -> jax.Array:
      logits = network.apply({"params": params}, images)[1]
      return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    updates, state = optimizer.update(jax.grad(loss)(params), state)
    return optax.apply_updates(params, updates), state

  state = optimizer.init(params)
  for _, (images, labels) in zip(range(steps), batches, strict=False):
    params, state = step(params, state, images, labels)
  return params


def save(path: epath.PathLike, params: Any, facts: Mapping[str, Any]) -> None:
  """Writes parameters and facts about them, numbers by name, as an .npz."""
  write_npz(path, flatten_dict(params, sep="/") | {name: np.asarray(value) for name, value in facts.items()})


def load(path: epath.PathLike, facts: Mapping[str, tuple[int, ...]]) -> tuple[Any, dict[str, np.ndarray]]:
  """Returns (parameters, facts) from a file that `save` wrote.

  Args:
    facts: the shape of each by name.

  Raises:
    UserError: there is no such file, it cannot be read, or it has no such facts.
  """
  file = as_path(path)
  if not file.exists():
    raise UserError(f"{path} does not exist: run {COMMAND}")
  arrays = read_npz(file, f"run {COMMAND}")
  _check(path, arrays, facts)
  found = {name: arrays.pop(name) for name in facts}
  return unflatten_dict(arrays, sep="/"), found


def check(path: epath.PathLike, params: Any, abstract: Any) -> None:
  """Raises a UserError unless the parameters from a file have the names and shapes of `abstract`."""
  shapes = {name: leaf.shape for name, leaf in flatten_dict(abstract, sep="/").items()}
  _check(path, flatten_dict(params, sep="/"), shapes)


def _check(path: epath.PathLike, arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> None:
  for name, shape in shapes.items():
    if name not in arrays or arrays[name].shape != shape:
      raise UserError(f"{path} has no {name} of shape {shape}: run {COMMAND}")
