"""Training states as arrays, to be compared bit for bit."""

import jax
import numpy as np

from r3gan_jax import runs


def arrays_of(state):
  """Returns the tree of a state's arrays on the host; keys become their data."""
  return jax.tree.map(np.asarray, state.replace(rng=jax.random.key_data(state.rng)))


def final_state(workdir):
  """Returns `arrays_of` the newest checkpoint of a work directory."""
  return arrays_of(runs.open_state(workdir)[2])
