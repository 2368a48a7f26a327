"""Orbax checkpoints of the training state, named by images seen, with a checksum of every array."""

import shutil
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from r3gan_jax.errors import UserError
from r3gan_jax.storage import absolute, failing_as, is_remote
from r3gan_jax.training.distributed import from_first_process, is_first_process, on_any_process
from r3gan_jax.training.state import TrainState

DIRECTORY = "checkpoints"
BEST_DIRECTORY = "best"
"""Names in a work directory."""

_STATE, _CHECKSUMS = "state", "checksums"
_SPARE_BYTES = 64 * 2**20
_LISTINGS = 10


class Checkpoints:
  """Checkpoints under `directory`, each complete or absent.

  Saving is asynchronous: the state is copied, and written while training continues. An interrupted save leaves a
  temporary directory, which is never mistaken for a checkpoint. All processes must make every call together.

  Args:
    directory: e.g. <workdir>/checkpoints; created if it does not exist.
    keep_last: how many of the newest to keep.
    keep_every_images: the first checkpoint at or after each multiple of this is kept, too; 0: none.
  """

  def __init__(self, directory: epath.PathLike, keep_last: int = 1, keep_every_images: int = 0):
    self.directory = absolute(directory)
    self._saver = _Saver(self.directory, preservation_policy=_Preserved(keep_last, keep_every_images))
    self._manager = self._saver.manager

  def save(self, state: TrainState) -> bool:
    """Waits for an earlier save, then starts saving `state`.

    Returns:
      False if it cannot be saved, e.g. as the disk is too full. This is logged, as is an earlier save that failed.
    """
    images_seen = int(state.images_seen)
    self._saver.finish()
    is_saved = images_seen in self._manager.all_steps() or self._saver.start(images_seen, state)
    return not on_any_process(not is_saved)

  def failed(self) -> bool:
    """Returns whether the last save has failed; does not wait for one that is under way."""
    return on_any_process(not self._manager.is_saving_in_progress() and not self._saver.finish())

  def finish(self) -> bool:
    """Waits for the last save; returns whether it succeeded on all processes."""
    return not on_any_process(not self._saver.finish())

  def restore_latest(self, abstract_state: Any, images_seen: int | None = None) -> TrainState | None:
    """Returns the newest readable checkpoint whose checksums agree; None if there are no checkpoints.

    Args:
      abstract_state: the state as `jax.ShapeDtypeStruct`s with the shardings to restore to.
      images_seen: restores this checkpoint only.

    Raises:
      UserError: there are checkpoints but none can be read, or there is none at `images_seen`.
    """
    self._saver.finish()
    arguments = {_STATE: ocp.args.StandardRestore(abstract_state), _CHECKSUMS: ocp.args.JsonRestore()}
    tried: set[int] = set()
    while (step := self._newest(images_seen, tried)) is not None:
      try:
        restored = self._manager.restore(step, args=ocp.args.Composite(**arguments))
        _check(restored[_STATE], restored[_CHECKSUMS])
        return restored[_STATE]
      except Exception as error:  # a damaged file can raise anything in the layers below
        tried.add(step)
        path = self.directory / str(step)
        if path.exists():  # or a training, which goes on beside this reader, has replaced it by a newer one
          logging.warning("checkpoint %s cannot be read (%s): trying another", path, _first_line(error))
    if tried & set(checkpoint_steps(self.directory)):
      raise UserError(
        f"none of the checkpoints in {self.directory} can be read (they have not been changed): restore a backup, or "
        "use another work directory"
      )
    return None

  def _newest(self, images_seen: int | None, tried: Collection[int]) -> int | None:
    """Returns the newest of the present checkpoints that are not among `tried`, or `images_seen`; None without one."""
    present = checkpoint_steps(self.directory)
    if images_seen is not None and images_seen not in present:
      raise UserError(f"{self.directory} has no checkpoint at {images_seen} images: choose from {present}")
    return next((step for step in present if step not in tried and images_seen in (None, step)), None)

  def set_aside_after(self, images_seen: int) -> None:
    """Renames the unreadable checkpoints after `images_seen`, so that new ones can take their place."""
    newer = [step for step in self._manager.all_steps() if step > images_seen]
    if newer and is_first_process():
      for step in newer:
        names = (f"damaged-{step}{suffix}" for suffix in ("", *(f"-{n}" for n in range(2, 1000))))
        damaged = next(path for path in map(self.directory.joinpath, names) if not path.exists())
        (self.directory / str(step)).rename(damaged)
        logging.warning("the damaged checkpoint at %s images is now %s", f"{step:,}", damaged)
    multihost_utils.sync_global_devices("checkpoints set aside")
    self._manager.reload()

  def close(self) -> None:
    """Waits for the last save and frees the manager's threads."""
    self._saver.close()


@dataclass(frozen=True)
class _Preserved:
  """Orbax's policy: the newest checkpoints, and the first at or after each multiple of `interval` images."""

  newest: int
  interval: int

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
    """Returns for each checkpoint, in order, whether it is kept. The first after a multiple stays the first."""
    steps = [checkpoint.step for checkpoint in checkpoints]
    newest = steps[-self.newest :]
    firsts = {
      step
      for before, step in zip([0, *steps], steps, strict=False)
      if self.interval and step // self.interval > before // self.interval
    }
    return [step in newest or step in firsts for step in steps]


def has_checkpoint(directory: epath.PathLike) -> bool:
  """Returns whether there is a checkpoint under `directory`; all processes get process 0's answer."""
  return bool(from_first_process(newest_checkpoint(directory) is not None))


def newest_checkpoint(directory: epath.PathLike) -> int | None:
  """Returns the images seen of the newest checkpoint under `directory`, readable or not; None if there is none."""
  return next(iter(checkpoint_steps(directory)), None)


def checkpoint_steps(directory: epath.PathLike) -> list[int]:
  """Returns the images seen of all checkpoints under `directory`, readable or not, from the newest to the oldest."""
  path = absolute(directory)
  with failing_as(f"cannot read {path}", path):
    return sorted(ocp.utils.checkpoint_steps(path), reverse=True) if path.exists() else []


class BestCheckpoint:
  """Keeps the checkpoint with the best score so far, with all its scores; `Checkpoints` can read it.

  Args:
    directory: e.g. <workdir>/best.
    metric: the name of the score.
    mode: whether its "min" or "max" is best.
  """

  def __init__(self, directory: epath.PathLike, metric: str, mode: str):
    self._metric, self._mode = metric, mode
    self._worst = float("inf") if mode == "min" else -float("inf")
    # `self._score`, because the checkpoint kept by a resumed run may lack this score.
    self._saver = _Saver(absolute(directory), max_to_keep=1, best_mode=mode, best_fn=self._score)
    self._manager = self._saver.manager

  def offer(self, state: TrainState, scores: Mapping[str, float]) -> None:
    """Starts saving `state` if its score is the best so far; the old best is removed once the new one is complete.

    Waits for an earlier save first. One that failed is logged, and does not count.
    """
    self._saver.finish()
    images_seen, score = int(state.images_seen), scores[self._metric]
    kept = self._manager.best_step()
    best = self._worst if kept is None else self._score(self._manager.metrics(kept) or {})
    if not (score < best if self._mode == "min" else score > best):
      return
    if images_seen in self._manager.all_steps():
      return
    logging.info("the best %s so far: %g, at %s images", self._metric, score, f"{images_seen:,}")
    # `force`, because a run that resumes from an older checkpoint may be behind the best one.
    self._saver.start(images_seen, state, metrics=dict(scores), force=True)

  def close(self) -> None:
    """Waits for the last save and frees the manager's threads."""
    self._saver.close()

  def _score(self, scores: Mapping[str, float]) -> float:
    return scores.get(self._metric, self._worst)


class _Saver:
  """Saves by Orbax's `manager`. Failures are logged, once in a row, and leave nothing behind."""

  def __init__(self, directory: epath.Path, **options: Any):
    self._directory = directory
    self._started = self._failing = False
    self._writes = False  # or it reads, perhaps beside a training that has unfinished saves of its own
    with failing_as(f"cannot use {directory}", directory):
      self.manager = _opened(directory, ocp.CheckpointManagerOptions(**options))

  def start(self, images_seen: int, state: TrainState, **options: Any) -> bool:
    """Starts to save `state`; returns False if this fails. No earlier save may be under way."""
    self._writes = True
    self._remove_unfinished()  # e.g. of a process that was killed
    if missing := _missing_room(self._directory, state):
      self._report(missing)
      return False
    try:
      self._started = True
      return self.manager.save(images_seen, args=_saved(state), **options)
    except Exception as error:  # the layers below can raise anything
      self._clean_up(error)
      return False

  def finish(self) -> bool:
    """Waits for the save that is under way; returns False if it failed."""
    try:
      self.manager.wait_until_finished()
    except Exception as error:  # the layers below can raise anything
      self._clean_up(error)
      return False
    if self._started:
      self._started = self._failing = False
    return True

  def close(self) -> None:
    """Waits for the save that is under way and frees the manager's threads."""
    self.finish()
    self.manager.close()
    if self._writes:
      self._remove_unfinished()

  def _clean_up(self, error: Exception) -> None:
    self._started = False
    self._report(_first_line(error))
    self._remove_unfinished()
    self.manager.reload()

  def _report(self, why: str) -> None:
    if not self._failing:
      logging.error("no checkpoint was written to %s (%s): training continues and will retry", self._directory, why)
    self._failing = True

  def _remove_unfinished(self) -> None:
    if is_first_process():
      for unfinished in self._directory.glob("*.orbax-checkpoint-tmp*"):
        with suppress(Exception):  # threads of a save that has failed may still write
          unfinished.rmtree()


def _opened(directory: epath.Path, options: ocp.CheckpointManagerOptions) -> ocp.CheckpointManager:
  for _ in range(_LISTINGS - 1):
    with suppress(FileNotFoundError, NotADirectoryError):  # a training removed a checkpoint while it was listed
      return ocp.CheckpointManager(directory, options=options, item_names=(_STATE, _CHECKSUMS))
  return ocp.CheckpointManager(directory, options=options, item_names=(_STATE, _CHECKSUMS))


def _saved(state: TrainState) -> ocp.args.Composite:
  return ocp.args.Composite(**{_STATE: ocp.args.StandardSave(state), _CHECKSUMS: ocp.args.JsonSave(_checksums(state))})


def _checksums(state: TrainState) -> dict[str, int]:
  """Returns a checksum of every array by name; a change of any single bit changes it."""
  names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(state)]
  return dict(zip(names, np.asarray(_checksums_of_leaves(state)).tolist(), strict=True))


@jax.jit
def _checksums_of_leaves(state: TrainState) -> jax.Array:
  def checksum(leaf: jax.Array) -> jax.Array:
    bits = jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    bits = jax.lax.bitcast_convert_type(bits, f"uint{8 * bits.dtype.itemsize}").astype(jnp.uint32).ravel()
    return jnp.sum(bits * (2 * jnp.arange(bits.size, dtype=jnp.uint32) + 1), dtype=jnp.uint32)

  return jnp.stack([checksum(leaf) for leaf in jax.tree.leaves(state)])


def _check(state: TrainState, checksums: Mapping[str, int]) -> None:
  """Raises a ValueError if `state` is not what was saved."""
  for name, checksum in _checksums(state).items():
    if checksums.get(name) != checksum:
      raise ValueError(f"{name} differs from what was saved")


def _missing_room(directory: epath.Path, state: TrainState) -> str:
  """Returns what to say if `state` does not fit on the disk, else ""; remote storage is taken to have room."""
  needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + _SPARE_BYTES
  free = needed if is_remote(directory) else shutil.disk_usage(directory).free
  fits = from_first_process(free >= needed)
  return "" if fits else f"it needs {needed / 2**30:.2f} GiB, {free / 2**30:.2f} are free"


def _first_line(error: Exception) -> str:
  return str(error).strip().split("\n")[0][:200]
