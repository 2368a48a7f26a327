"""Spectral normalisation of a network's weights (Miyato et al. 2018, arXiv 1802.05957, algorithm 1).

It maps parameters to parameters, and the network does not know of it: every array called "kernel", and no other, is
divided by an estimate of its spectral norm. As a matrix M, a kernel has its outputs as columns: a convolution's is
[k k I, O], so this is the norm of the matrix, not of the convolution. With a vector u of length 1 per kernel, [O],

    u <- M^T M u / |M^T M u|     a step of power iteration, without gradients
    sigma = |M u|                at most the largest singular value; its gradient is (M u / sigma) u^T

The vectors are state of the training, and depend on the parameters alone: equal on all devices and micro-batches.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

STEPS = 5
"""How many steps vectors take where they begin, and where they are used with other parameters."""


def initial_vectors(key: jax.Array, params: Any) -> Any:
  """Returns a vector for each kernel of `params`, from a normal start by `STEPS` steps."""
  kernels = {path: leaf for path, leaf in flatten_dict(params).items() if path[-1] == "kernel"}
  keys = jax.random.split(key, len(kernels))
  start = {
    path: _unit(jax.random.normal(key, kernels[path].shape[-1:])) for path, key in zip(kernels, keys, strict=True)
  }
  return power_iteration(params, unflatten_dict(start), STEPS)


def power_iteration(params: Any, vectors: Any, steps: int = 1) -> Any:
  """Returns `vectors` after so many steps."""
  kernels = flatten_dict(params)

  def step(_: jax.Array, vectors: dict[tuple[str, ...], jax.Array]) -> dict[tuple[str, ...], jax.Array]:
    matrices = {path: _matrix(kernels[path]) for path in vectors}
    return {path: _unit((matrices[path] @ u) @ matrices[path]) for path, u in vectors.items()}

  return unflatten_dict(jax.lax.fori_loop(0, steps, step, flatten_dict(vectors)))


def normalised(params: Any, vectors: Any) -> Any:
  """Returns `params` with each kernel that has a vector divided by its sigma."""
  leaves = flatten_dict(params)
  for path, u in flatten_dict(vectors).items():
    leaves[path] = leaves[path] / _norm(_matrix(leaves[path]) @ u)
  return unflatten_dict(leaves)


def _matrix(kernel: jax.Array) -> jax.Array:
  return kernel.reshape(-1, kernel.shape[-1])


def _norm(x: jax.Array) -> jax.Array:
  return jnp.sqrt(jnp.sum(jnp.square(x)) + 1e-24)  # sqrt has no derivative at 0


def _unit(x: jax.Array) -> jax.Array:
  return x / _norm(x)
