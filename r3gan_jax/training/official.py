"""A work directory from a snapshot of the official implementation, and official arrays from a state of training."""

import errno
import os
import tempfile
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from r3gan_jax.algorithms.base import Algorithm
from r3gan_jax.algorithms.r3gan import R3GAN
from r3gan_jax.errors import UserError
from r3gan_jax.interop.official import Snapshot, resampling_kernels, to_state_dict
from r3gan_jax.networks.r3gan import Discriminator, Generator
from r3gan_jax.optimizers import AdamState
from r3gan_jax.training.checkpoint import DIRECTORY, Checkpoints
from r3gan_jax.training.state import TrainState
from r3gan_jax.training.workdir import claim_workdir

_SEED = 0
"""Of what training draws from here on; the official one is not in the snapshot."""


def write_workdir(snapshot: Snapshot, path: Path) -> None:
  """Makes the work directory `path`, whole or not at all.

  Raises:
    UserError: no configuration says what the snapshot is.
    OSError: it cannot be written, or there is something already.
  """
  config, state = configuration(snapshot), train_state(snapshot)
  path.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(prefix=f"{path.name}.", dir=path.parent) as directory:
    workdir = Path(directory) / path.name
    claim_workdir(workdir, config)
    checkpoints = Checkpoints(workdir / DIRECTORY)
    saved = checkpoints.save(state)
    checkpoints.close()
    if not saved:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    workdir.rename(path)


def configuration(snapshot: Snapshot) -> dict[str, Any]:
  """The settings that a snapshot fixes, by their names in configs/common.py.

  Raises:
    UserError: its class embeddings have lengths that no setting says.
  """
  generator, discriminator = snapshot.generator, snapshot.discriminator
  found, expected = (generator.embed_dim, discriminator.embed_dim), (generator.noise_dim, generator.widths[0])
  if generator.num_classes and found != expected:
    raise UserError(
      f"the snapshot's class embeddings have the lengths {found}, not {expected}, noise_dim and widths[0], as "
      "config.gan has it: use it through interop.official.read_snapshot"
    )
  shape = ("widths", "cardinalities", "blocks", "expansion", "noise_dim", "bfloat16_stages")
  return {
    "seed": _SEED,
    "algorithm": "r3gan",
    "data": {
      "resolution": 4 * 2 ** (len(generator.widths) - 1),
      "channels": generator.image_channels,
      "num_classes": generator.num_classes,
    },
    "gan": {"network": "r3gan"} | {name: getattr(generator, name) for name in shape},
  }


def train_state(snapshot: Snapshot) -> TrainState:
  """The state that training goes on from."""
  adams = {
    name: AdamState(jnp.int32(snapshot.updates[name]), moments) for name, moments in snapshot.second_moments.items()
  }
  return jax.device_put(
    TrainState(
      params=snapshot.params,
      optimizer=adams,
      ema={"generator": snapshot.ema},
      carry={},
      rng=jax.random.key(_SEED),
      images_seen=jnp.int32(snapshot.images_seen),
      rollbacks=jnp.int32(0),
    )
  )


def official_arrays(algorithm: Algorithm, state: TrainState) -> dict[str, np.ndarray]:
  """A state in PyTorch's layout.

  For each N of G, D and G_ema `N/NAME`, for NAME in its official state dict; for each N of G and D Adam's
  `N_opt_state/exp_avg_sq/NAME` and `N_opt_state/step`; and `cur_nimg`.

  Raises:
    UserError: the networks are not R3GAN's, and so have no official names.
  """
  if not (isinstance(algorithm, R3GAN) and type(algorithm.generator) is Generator):
    raise UserError("only R3GAN's own networks have official names, which this run has not; cli.export takes any")
  arrays: dict[str, np.ndarray] = {"cur_nimg": np.asarray(state.images_seen)}

  def add(title: str, state_dict: dict[str, np.ndarray]) -> None:
    arrays.update({f"{title}/{name}": value for name, value in state_dict.items()})

  generator, discriminator = algorithm.generator, cast(Discriminator, algorithm.discriminator)
  add("G_ema", to_state_dict(generator, state.ema["generator"]) | resampling_kernels(generator))
  network: Generator | Discriminator
  for letter, name, network in (("G", "generator", generator), ("D", "discriminator", discriminator)):
    add(letter, to_state_dict(network, state.params[name]) | resampling_kernels(network))
    adam = state.optimizer[name]
    add(f"{letter}_opt_state/exp_avg_sq", to_state_dict(network, adam.second_moment))
    arrays[f"{letter}_opt_state/step"] = np.asarray(adam.updates)
  return arrays
