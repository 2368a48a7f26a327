"""The handling of sharded arrays that JAX has for its own operations, for ours.

Under `jit` XLA partitions its own operations, but gathers the operands of a custom kernel: `keep_batch_split`. Under
`jax.shard_map`, as in training, nothing is partitioned, but types tell what varies over devices: `match_varying_axes`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax

# Not public: primitives whose lowering calls `keep_batch_split` must be registered here.
from jax._src.dispatch import prim_requires_devices_during_lowering as needs_devices_in_lowering
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

__all__ = ["keep_batch_split", "match_varying_axes", "needs_devices_in_lowering"]


def match_varying_axes(*operands: jax.Array) -> list[jax.Array]:
  """Casts replicated operands beside sharded ones to 'varying' under `shard_map`, as lax's own operations do."""
  axes = [jax.typeof(x).mat.varying for x in operands]
  missing = [tuple(set().union(*axes) - own) for own in axes]
  return [jax.lax.pcast(x, new, to="varying") if new else x for x, new in zip(operands, missing, strict=True)]


def keep_batch_split(
  kernel: Callable[..., jax.Array], operands: Sequence[jax.Array], batch_axes: Sequence[int | None]
) -> jax.Array:
  """Returns `kernel(*operands)`, computed by each device on its own part of the batch.

  Args:
    kernel: does not couple samples.
    operands: arrays.
    batch_axes: 0 for an operand whose first axis is the batch, None for one that every device needs whole. If all have
      a batch, the result is a sum over it; otherwise the batch is the first axis of the result.
  """
  summed = None not in batch_axes
  result = jax.eval_shape(kernel, *operands)
  partitioned = custom_partitioning(lambda *operands: kernel(*operands))  # which inspects the signature

  def partition(mesh: Any, shapes: Sequence[Any], _: Any) -> tuple[Any, ...]:
    split = next((*shape.sharding.spec, None)[0] for shape, axis in zip(shapes, batch_axes, strict=True) if axis == 0)
    whole, part = NamedSharding(mesh, P()), NamedSharding(mesh, P(split))
    shardings = tuple(whole if axis is None else part for axis in batch_axes)
    if not summed:
      return mesh, kernel, part, shardings
    return mesh, lambda *parts: jax.lax.psum(kernel(*parts), split or ()), whole, shardings

  # As in an einsum: 'n' is the batch, every other axis has its own name.
  names = [
    " ".join("n" if i == axis else f"x{number}_{i}" for i in range(operand.ndim))
    for number, (operand, axis) in enumerate(zip(operands, batch_axes, strict=True))
  ]
  result_names = " ".join("n" if i == 0 and not summed else f"y_{i}" for i in range(result.ndim))
  partitioned.def_partition(partition=partition, sharding_rule=f"{', '.join(names)} -> {result_names}")
  return partitioned(*operands)
