"""The device mesh: one axis, `data`. Parameters are replicated over it, batches split."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from r3gan_jax.algorithms.base import DATA_AXIS


def make_mesh(device_count: int | None = None) -> Mesh:
  """A mesh of the first `device_count` devices of all processes (default: all)."""
  devices = np.array(jax.devices()[:device_count])
  return Mesh(devices, (DATA_AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding of the training state."""
  return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The sharding of anything whose leading axis is the global batch."""
  return NamedSharding(mesh, P(DATA_AXIS))
