"""The device mesh: one axis, `data`. Parameters are replicated over it, batches are split."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from r3gan_jax.algorithms.base import DATA_AXIS


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
  """Returns a mesh of one axis over `devices`; default: all devices of all processes."""
  return Mesh(np.array(jax.devices() if devices is None else devices), (DATA_AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of the training state: a copy on every device."""
  return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of arrays whose leading axis is the global batch."""
  return NamedSharding(mesh, P(DATA_AXIS))


def on_local_devices(tree: Any) -> Any:
  """Copies arrays of the host to all devices of this process, once; what is there already stays.

  A jitted function that is given arrays of the host copies them at every call.
  """
  return jax.device_put(tree, replicated(make_mesh(jax.local_devices())))


def local_copy(tree: Any) -> Any:
  """Copies replicated arrays to a mesh of this process's devices, so that it can compute with them alone."""
  return on_local_devices(jax.tree.map(lambda array: array.addressable_data(0), tree))
