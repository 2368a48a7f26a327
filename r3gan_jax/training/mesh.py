"""The device mesh: one axis, `data`. Parameters are replicated over it, batches split."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from r3gan_jax.algorithms.base import DATA_AXIS


def make_mesh(device_count: int | None = None) -> Mesh:
  """A mesh of the first `device_count` devices of all processes (default: all)."""
  return _mesh(jax.devices()[:device_count])


def make_local_mesh() -> Mesh:
  """A mesh of this process's devices."""
  return _mesh(jax.local_devices())


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding of the training state."""
  return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The sharding of anything whose leading axis is the global batch."""
  return NamedSharding(mesh, P(DATA_AXIS))


def local_copy(tree: Any) -> Any:
  """Arrays that every device of every process holds in full -> the same on `make_local_mesh()`."""
  sharding = replicated(make_local_mesh())
  return jax.tree.map(lambda array: jax.device_put(array.addressable_data(0), sharding), tree)


def _mesh(devices: Sequence[jax.Device]) -> Mesh:
  return Mesh(np.array(devices), (DATA_AXIS,), axis_types=(AxisType.Auto,))
