"""Orbax checkpoints of the training state, named by images seen."""

from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from r3gan_jax.errors import UserError
from r3gan_jax.storage import absolute, failing_as
from r3gan_jax.training.state import TrainState

DIRECTORY = "checkpoints"
BEST_DIRECTORY = "best"
"""Of a work directory."""


class Checkpoints:
  """Checkpoints under `directory`, each complete or absent.

  Saving is asynchronous: the state is copied, and written while training goes on. A save that is cut off leaves a
  temporary directory that is never taken for a checkpoint.

  Args:
    directory: e.g. <workdir>/checkpoints; made where it does not exist.
    keep_last: how many of the newest to keep.
    keep_every_images: also keep those at multiples of this many images; 0: none.
  """

  def __init__(self, directory: epath.PathLike, keep_last: int = 1, keep_every_images: int = 0):
    self.directory = absolute(directory)
    options = ocp.CheckpointManagerOptions(max_to_keep=keep_last, keep_period=keep_every_images or None)
    with failing_as(f"cannot use {self.directory}", self.directory):
      self._manager = ocp.CheckpointManager(self.directory, options=options)

  def save(self, state: TrainState) -> None:
    """Starts saving `state`; waits for an earlier save to end first."""
    images_seen = int(state.images_seen)
    if images_seen in self._manager.all_steps():
      return
    if not self._manager.save(images_seen, args=ocp.args.StandardSave(state)):
      raise RuntimeError(f"checkpoint {images_seen} was not saved: {self.directory} holds newer ones")

  def restore_latest(self, abstract_state: Any, images_seen: int | None = None) -> TrainState | None:
    """The newest checkpoint that can be read, or None where there is none at all.

    Args:
      abstract_state: the state as `jax.ShapeDtypeStruct`s with the shardings to restore to.
      images_seen: that checkpoint and no other.

    Raises:
      UserError: where checkpoints exist but none can be read, or there is none of `images_seen`.
    """
    steps = sorted(self._manager.all_steps(), reverse=True)
    if images_seen is not None:
      if images_seen not in steps:
        raise UserError(f"{self.directory} has no checkpoint of {images_seen} images: choose from {steps}")
      steps = [images_seen]
    for step in steps:
      try:
        state = self._manager.restore(step, args=ocp.args.StandardRestore(abstract_state))
        jax.block_until_ready(state)
      except Exception as error:  # whatever the many layers below raise for a damaged file
        reason = str(error).strip().split("\n")[0][:200]
        logging.warning(
          "checkpoint %s cannot be read, trying the one before it (%s)", self.directory / str(step), reason
        )
        continue
      return state
    if steps:
      raise UserError(
        f"none of the checkpoints in {self.directory} can be read; they were left as they are: restore a backup, "
        "or start again in another --workdir"
      )
    return None

  def set_aside_after(self, images_seen: int) -> None:
    """Renames checkpoints newer than `images_seen`, which could not be read, so that they can be saved anew."""
    for newer in self._manager.all_steps():
      if newer > images_seen:
        damaged = self.directory / f"damaged-{newer}"
        (self.directory / str(newer)).rename(damaged)
        logging.warning("the damaged checkpoint of %s images is now %s", f"{newer:,}", damaged)
    self._manager.reload()

  def close(self) -> None:
    """Waits, and frees the manager's threads."""
    self._manager.close()


class BestCheckpoint:
  """The checkpoint with the best score so far, under `directory`, as `Checkpoints` reads it; with all its scores.

  Args:
    directory: e.g. <workdir>/best.
    metric: the name of the score that decides.
    mode: which of its values is best, "min" or "max".
  """

  def __init__(self, directory: epath.PathLike, metric: str, mode: str):
    self._metric, self._mode = metric, mode
    worst = float("inf") if mode == "min" else -float("inf")
    self._manager = ocp.CheckpointManager(
      absolute(directory),
      options=ocp.CheckpointManagerOptions(
        max_to_keep=1,
        best_mode=mode,
        # A run that was resumed may have chosen by another score before.
        best_fn=lambda scores: scores.get(metric, worst),
      ),
    )
    kept = self._manager.best_step()
    self._best = worst if kept is None else (self._manager.metrics(kept) or {}).get(metric, worst)

  def offer(self, state: TrainState, scores: Mapping[str, float]) -> None:
    """Starts saving `state` if its score is better than the one kept, which is removed when the new one is complete."""
    images_seen, score = int(state.images_seen), scores[self._metric]
    if not (score < self._best if self._mode == "min" else score > self._best):
      return
    self._best = score
    if images_seen in self._manager.all_steps():
      return  # chosen by another score before
    logging.info("the best %s so far: %g, at %s images", self._metric, score, f"{images_seen:,}")
    # By force: a run that goes on from an older checkpoint may be behind the one that is kept.
    self._manager.save(images_seen, args=ocp.args.StandardSave(state), metrics=dict(scores), force=True)

  def close(self) -> None:
    """Waits, and frees the manager's threads."""
    self._manager.close()
