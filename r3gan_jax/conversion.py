"""Writes states and official snapshots as work directories, and converts training states to official snapshots."""

import errno
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp

from r3gan_jax.algorithms.base import Algorithm
from r3gan_jax.algorithms.r3gan import R3GAN
from r3gan_jax.errors import UserError
from r3gan_jax.interop.official import Snapshot, settings_of
from r3gan_jax.networks.r3gan import Discriminator, Generator
from r3gan_jax.optimizers import AdamState
from r3gan_jax.training.checkpoint import DIRECTORY, Checkpoints
from r3gan_jax.training.state import TrainState
from r3gan_jax.training.workdir import claim_workdir

_SEED = 0
"""The seed of training after a conversion; snapshots do not record the official one."""


def write_workdir(snapshot: Snapshot, path: Path) -> None:
  """Writes a snapshot as the work directory `path`; see `write_state`.

  Raises:
    UserError: no configuration expresses the snapshot.
    OSError: the directory cannot be written, or exists and is not empty.
  """
  write_state({"seed": _SEED} | settings_of(snapshot), _train_state(snapshot), path)


def write_state(config: Mapping[str, Any], state: TrainState, path: Path) -> None:
  """Writes a configuration and a state as the work directory `path`, whole or not at all.

  Raises:
    OSError: the directory cannot be written, or exists and is not empty.
  """
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


def _train_state(snapshot: Snapshot) -> TrainState:
  moments = snapshot.second_moments
  state = TrainState(
    params=snapshot.params,
    optimizer={name: AdamState(jnp.int32(snapshot.updates[name]), moments[name]) for name in moments},
    ema={"generator": snapshot.ema},
    carry={},
    rng=jax.random.key(_SEED),
    images_seen=jnp.int32(snapshot.images_seen),
    rollbacks=jnp.int32(0),
  )
  return jax.device_put(state)


def as_snapshot(algorithm: Algorithm, state: TrainState) -> Snapshot:
  """Returns a training state as a snapshot; the inverse of `write_workdir`.

  Raises:
    UserError: the networks are not R3GAN's, so they have no official names.
  """
  if not (isinstance(algorithm, R3GAN) and type(algorithm.generator) is Generator):
    raise UserError("only R3GAN's own networks have official names: use cli.export, which exports any generator")
  return Snapshot(
    algorithm.generator,
    cast(Discriminator, algorithm.discriminator),
    params=state.params,
    ema=state.ema["generator"],
    second_moments={name: adam.second_moment for name, adam in state.optimizer.items()},
    updates={name: int(adam.updates) for name, adam in state.optimizer.items()},
    images_seen=int(state.images_seen),
  )
