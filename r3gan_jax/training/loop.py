"""The training loop: steps, log lines, snapshots and checkpoints.

The loop never waits for the step that it has just started: it reads the metrics of the step before. At the first
non-finite value it stops or rolls back to the last checkpoint. Only states whose last step was finite are saved.

In order, an iteration is: step; check and collect the metrics of the step before; log if due; snapshot if due
(checkpoint, averages for cli.posthoc_ema, sample grid, scores). What is due depends on images seen alone, so a resumed
run does what an uninterrupted one does.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from etils import epath

from r3gan_jax.algorithms.base import Algorithm, Params
from r3gan_jax.data.images import CorruptImage
from r3gan_jax.data.loader import Loader
from r3gan_jax.errors import Interrupted, UserError, one_line
from r3gan_jax.training.autotuning import tune
from r3gan_jax.training.checkpoint import BEST_DIRECTORY, DIRECTORY, BestCheckpoint, Checkpoints
from r3gan_jax.training.distributed import (
  Preemption,
  Watchdog,
  from_first_process,
  is_first_process,
  on_first_process,
)
from r3gan_jax.training.logging import (
  ENDED,
  FINISHED,
  RESUMED,
  ROLLED_BACK,
  STARTED,
  MetricWriter,
  read_metrics,
  started,
)
from r3gan_jax.training.mesh import batch_sharding, make_mesh, replicated
from r3gan_jax.training.posthoc import DIRECTORY as POSTHOC_DIRECTORY
from r3gan_jax.training.posthoc import remove_averages_after, write_averages
from r3gan_jax.training.profile import Profile
from r3gan_jax.training.progress import Diverged, MetricWindow, Progress
from r3gan_jax.training.state import TrainState, abstract_batches, abstract_state, averaged, init_state
from r3gan_jax.training.step import Batches, make_train_step

Snapshot = Callable[[Params, Any, int, MetricWriter], Mapping[str, float]]
"""(averaged parameters, averaged carry, images seen, writer) -> scores by name; draws, measures and writes."""

SNAPSHOT_SECONDS = "progress/snapshot_seconds"
"""The metric that marks a complete snapshot."""


@dataclass(frozen=True)
class Experiment:
  """The GAN to train and the settings of the loop; fields named as in config.run are those settings.

  Attributes:
    algorithm: the GAN.
    batch_size: images, over all devices.
    seed: of initialisation, noise, augmentation and data order.
    total_images: images seen at the end of the run.
    log_every_images: interval of log lines.
    snapshot_every_images: interval of checkpoints, averages for cli.posthoc_ema, sample grids and scores.
    keep_checkpoints: how many of the newest are kept.
    keep_every_images: checkpoints at multiples of this are kept, too; 0: none.
    micro_batches: phase name -> images per device and micro-batch; absent: the device's whole part.
    best_metric: the score whose best checkpoint is kept as well; "": none.
    best_mode: whether its "min" or "max" is best.
    max_rollbacks: how often the run may return to its last checkpoint after a non-finite value.
    stall_seconds: an iteration that takes longer ends the process.
    autotune: whether to measure algorithms on GPUs; see `autotuning.tune`.
    profile: (first, last) iteration to trace, counted from the start of this process; (): none.
  """

  algorithm: Algorithm
  batch_size: int
  seed: int
  total_images: int
  log_every_images: int
  snapshot_every_images: int
  keep_checkpoints: int
  keep_every_images: int
  micro_batches: Mapping[str, int]
  best_metric: str
  best_mode: str
  max_rollbacks: int
  stall_seconds: float
  autotune: bool
  profile: Sequence[int]

  @property
  def images_per_iteration(self) -> int:
    """The images that an iteration adds to images seen."""
    return self.batch_size * sum(phase.repeat * phase.batches for phase in self.algorithm.phases if phase.counts_images)

  @property
  def batch_sizes(self) -> tuple[int, ...]:
    """The sizes of an iteration's global batches, in order; see `step.Batches`."""
    return tuple(
      self.batch_size * phase.batches
      for phase in self.algorithm.phases
      if phase.fresh_batch
      for _ in range(phase.repeat)
    )


@partial(jax.jit, donate_argnums=0)
def _with_other_draws(state: TrainState, rollbacks: int | jax.Array) -> TrainState:
  """Changes the PRNG key, and counts the rollback, which changes the data order."""
  return replace(
    state, rng=jax.random.fold_in(state.rng, rollbacks), rollbacks=jnp.full_like(state.rollbacks, rollbacks)
  )


class Trainer:
  """Trains an experiment in a work directory; a context manager that finishes all writes on exit.

  Args:
    experiment: what to train.
    loader: the data.
    workdir: the run's directory.
    writer: for metrics and sample grids.
    snapshots: called, in order, at every snapshot.
    preemption: tells when to stop.
  """

  def __init__(
    self,
    experiment: Experiment,
    loader: Loader,
    workdir: epath.Path,
    writer: MetricWriter,
    snapshots: Sequence[Snapshot],
    preemption: Preemption,
  ):
    self._experiment, self._loader, self._workdir = experiment, loader, workdir
    self._writer, self._snapshots, self._preemption = writer, snapshots, preemption
    self._mesh = make_mesh()
    self._step = make_train_step(experiment.algorithm, self._mesh, experiment.micro_batches)
    self._iteration = 0  # since the start of this process
    self._images_seen = 0  # at the last step
    self._checkpoints = Checkpoints(workdir / DIRECTORY, experiment.keep_checkpoints, experiment.keep_every_images)
    self._best = None
    if experiment.best_metric:
      self._best = BestCheckpoint(workdir / BEST_DIRECTORY, experiment.best_metric, experiment.best_mode)
    self._watchdog = Watchdog(
      experiment.stall_seconds,
      f"no iteration has finished for {experiment.stall_seconds:g} seconds (config.run.stall_seconds), so this process "
      "or another one hangs: the same command resumes from the last checkpoint",
    )
    self._profile = Profile(workdir / "profile", experiment.profile)

  def __enter__(self) -> "Trainer":
    return self

  def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
    if self._iteration:
      reason = one_line(error) if error else FINISHED
      self._writer.write_texts(self._images_seen, {"event": ENDED, "reason": reason})
    self._watchdog.close()
    self._profile.close()
    self._checkpoints.close()
    if self._best:
      self._best.close()
    self._writer.flush()

  def train(self, start: TrainState | None = None) -> TrainState:
    """Trains from the newest checkpoint, or from `start`, or from scratch, to `total_images`.

    Args:
      start: the state of a run without a checkpoint, on `make_mesh()`; it is donated.

    Raises:
      Diverged: a loss or gradient is not finite, and no rollback is left; no later state has been written.
      Interrupted: after a signal; the state of the last iteration has been saved.
    """
    experiment = self._experiment
    state = self._restore()
    event = STARTED if state is None else RESUMED
    if state is not None and int(state.images_seen) >= experiment.total_images:
      logging.warning(
        "this run is finished, at %s images: to train on, raise config.run.total_images = %s",
        f"{int(state.images_seen):,}",
        f"{experiment.total_images:,}",
      )
    elif state is not None:
      logging.info("resumed from %s at %s images", self._checkpoints.directory, f"{int(state.images_seen):,}")
    elif start is not None:
      state = start
    else:
      init = partial(init_state, experiment.algorithm, experiment.seed)
      state = jax.jit(init, out_shardings=replicated(self._mesh))()
    if experiment.autotune:
      tune(self._traced, self._mesh.local_devices[0], stopped=lambda: self._preemption.signalled)
    if self._preemption.signalled:  # while the run started
      raise Interrupted(
        f"stopped by {self._preemption.signal} at {int(state.images_seen):,} images: the same command resumes"
      )
    if int(state.images_seen) < experiment.total_images:
      self._writer.write_texts(int(state.images_seen), started(event))
    while True:
      rollbacks = int(state.rollbacks) + 1
      try:
        return self._train_from(state)
      except Diverged as error:
        state = self._restore() if rollbacks <= experiment.max_rollbacks else None
        if state is None:
          raise
        logging.warning("%s", error)
        images_seen = f"{int(state.images_seen):,}"
        logging.warning("rolling back to %s images (%d of %d)", images_seen, rollbacks, experiment.max_rollbacks)
        self._writer.write_texts(int(state.images_seen), {"event": ROLLED_BACK, "reason": str(error)})
        state = _with_other_draws(state, rollbacks)

  def _traced(self) -> jax.stages.Traced:
    algorithm, mesh = self._experiment.algorithm, self._mesh
    return self._step.trace(
      abstract_state(algorithm, mesh), abstract_batches(algorithm, mesh, self._experiment.batch_sizes)
    )

  def _restore(self) -> TrainState | None:
    """Returns the newest readable checkpoint, after setting aside later ones and removing later averages."""
    experiment = self._experiment
    state = self._checkpoints.restore_latest(abstract_state(experiment.algorithm, self._mesh))
    if state is not None:
      self._checkpoints.set_aside_after(int(state.images_seen))
    images_seen = 0 if state is None else int(state.images_seen)
    on_first_process(lambda: remove_averages_after(self._workdir / POSTHOC_DIRECTORY, images_seen))
    return state

  def _train_from(self, state: TrainState) -> TrainState:
    """Trains from `state` to the end of the run."""
    experiment, watchdog, preemption = self._experiment, self._watchdog, self._preemption
    images_seen = int(state.images_seen)
    increment = experiment.images_per_iteration
    batches = self._loader.iterate(
      experiment.batch_sizes, images_seen // increment, batch_sharding(self._mesh), int(state.rollbacks)
    )
    progress = Progress(images_seen, experiment.total_images)
    window = MetricWindow(
      f"The last good checkpoint is in {self._checkpoints.directory}: to continue from it with a lower learning rate "
      "or a stronger penalty, add --change_settings; or see config.run.on_nonfinite"
    )
    is_saved = True
    try:
      if self._snapshot_is_missing(images_seen):
        is_saved = self._snapshot(state)
      watchdog.reset()
      while images_seen < experiment.total_images:
        self._profile.before(self._iteration)
        state, metrics = self._step(state, self._next(batches, state, window))
        self._profile.after(self._iteration, metrics)
        self._iteration += 1
        previous, images_seen = images_seen, images_seen + increment
        self._images_seen = images_seen
        last = images_seen >= experiment.total_images
        snapshot_due = last or _crosses(experiment.snapshot_every_images, previous, images_seen)
        log_due = last or _crosses(experiment.log_every_images, previous, images_seen)
        interrupted = preemption.requested(self._iteration)
        window.add(images_seen, metrics)
        watchdog.reset()
        if log_due or snapshot_due or interrupted:
          window.check_pending()
        is_saved = is_saved and not (log_due and self._checkpoints.failed())
        if log_due:
          self._writer.write_scalars(images_seen, window.means() | progress.report(images_seen))
        if snapshot_due:
          watchdog.pause()
          with progress.paused():
            is_saved = self._snapshot(state)
          watchdog.reset()
        elif interrupted or (log_due and not is_saved):
          is_saved = self._checkpoints.save(state)
        if interrupted and not last:
          lost = "" if is_saved and self._checkpoints.finish() else ", which could not be saved"
          raise Interrupted(f"stopped by {preemption.signal} at {images_seen:,} images{lost}: the same command resumes")
      if not (is_saved and self._checkpoints.finish()):
        raise UserError(
          f"the end of the run, at {images_seen:,} images, could not be saved in {self._checkpoints.directory}: make "
          "room; the same command continues from the last checkpoint"
        )
    finally:
      watchdog.pause()
      batches.close()  # type: ignore[attr-defined]
    return state

  def _next(self, batches: Iterator[Batches], state: TrainState, window: MetricWindow) -> Batches:
    """Returns the batches of the next iteration; saves `state` if they cannot be read."""
    try:
      return next(batches)
    except UserError as error:
      if jax.process_count() > 1:  # the other processes would not take part in the save
        raise
      window.check_pending()
      was_saved = "was saved" if self._checkpoints.save(state) else "could not be saved"
      cure = ": to skip such images, add --config.run.on_corrupt_image=skip"
      raise UserError(
        f"{error} (the run {was_saved} at {int(state.images_seen):,} images{cure * isinstance(error, CorruptImage)})"
      ) from None

  def _snapshot(self, state: TrainState) -> bool:
    """Saves `state` and its averages, draws and scores; returns whether it could be saved."""
    began, images_seen = time.perf_counter(), int(state.images_seen)
    is_saved = self._checkpoints.save(state)
    params, carry = averaged(self._experiment.algorithm, state)
    scores: dict[str, float] = {}
    with _going_on(images_seen):
      if is_first_process():
        write_averages(self._workdir / POSTHOC_DIRECTORY, self._experiment.algorithm, state)
    for snapshot in self._snapshots:
      with _going_on(images_seen):
        scores |= snapshot(params, carry, images_seen, self._writer)
    if self._best and is_saved:
      self._best.offer(state, scores)
    self._writer.write_scalars(images_seen, {SNAPSHOT_SECONDS: time.perf_counter() - began})
    self._writer.flush()
    return is_saved

  def _snapshot_is_missing(self, images_seen: int) -> bool:
    """Returns whether a snapshot is due at the state from which the run resumes but was not completed."""
    experiment = self._experiment
    due = images_seen >= experiment.total_images or _crosses(
      experiment.snapshot_every_images, images_seen - experiment.images_per_iteration, images_seen
    )
    there = images_seen in read_metrics(self._workdir).get(SNAPSHOT_SECONDS, ((), ()))[0]
    return due and not from_first_process(there)


@contextmanager
def _going_on(images_seen: int) -> Iterator[None]:
  """Logs a failure to write: neither averages nor pictures may end a training."""
  try:
    yield
  except OSError as error:
    logging.error("a snapshot at %s images could not be written (%s): training continues", images_seen, error)


def _crosses(interval: int, before: int, after: int) -> bool:
  return before // interval < after // interval
