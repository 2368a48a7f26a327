"""Meshes of some of the 8 fake devices of the tests."""

import jax
import pytest

from r3gan_jax.training.mesh import make_mesh


def mesh_of(count):
  """Returns a mesh of the first `count` devices; skips the test where there are fewer, as on a card."""
  if count > len(jax.devices()):
    pytest.skip(f"needs {count} devices")
  return make_mesh(jax.devices()[:count])
