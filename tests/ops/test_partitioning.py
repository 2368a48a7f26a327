"""Under automatic partitioning a batch stays sharded in every derivative; no device gathers it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.meshes import mesh_of
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from r3gan_jax.ops import grouped_conv_cpu
from r3gan_jax.ops.grouped_conv import grouped_conv, pointwise_conv

GROUPS = 2


def results(x, kernel, pointwise_kernel):
  def loss(x, kernel):
    x = pointwise_conv(grouped_conv(x, kernel, GROUPS), pointwise_kernel)
    return jnp.sum(jnp.tanh(x)) / x.size

  def penalty(x, kernel):
    return jnp.sum(jax.grad(loss)(x, kernel) ** 2)

  return jax.grad(loss, (0, 1))(x, kernel), jax.grad(penalty, (0, 1))(x, kernel)


@pytest.mark.skipif(not grouped_conv_cpu.available(), reason="no C++ compiler")
def test_a_batch_stays_split():
  keys = jax.random.split(jax.random.key(0), 3)
  operands = [
    jax.random.normal(key, shape) for key, shape in zip(keys, [(16, 4, 4, 32), (3, 3, 16, 32), (32, 8)], strict=True)
  ]
  mesh = mesh_of(8)
  sharded = [
    jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(operands, [P("data"), P(), P()], strict=True)
  ]
  compiled = jax.jit(results).lower(*sharded).compile()
  alone, split = jax.jit(results)(*operands), compiled(*sharded)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max()), split, alone)
  for of_x, of_kernel in split:
    assert of_x.sharding.spec[0] == "data"
    assert of_kernel.sharding.is_fully_replicated
  found = set(re.findall(r"\b(all-gather|all-to-all|all-reduce|collective-permute)\(", compiled.as_text()))
  assert found == {"all-reduce"}
