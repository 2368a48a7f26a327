"""The training loop: batches in, steps, and every now and then a line, a snapshot, a checkpoint.

The loop never waits for the step that it has just started: it reads the metrics of the step before. It stops at the
first value that is not finite, and a checkpoint is written only of a state whose last step was finite.

In order, an iteration: step; check and collect the metrics of the previous step; if due, log; if due, snapshot
(sample grid, evaluation, checkpoint). What is due follows from images seen alone, so a resumed run does what an
uninterrupted one does.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import optax
from absl import logging
from etils import epath

from r3gan_jax.algorithms.base import Algorithm, Params
from r3gan_jax.data.loader import Loader
from r3gan_jax.schedules import Schedule
from r3gan_jax.training.checkpoint import BEST_DIRECTORY, DIRECTORY, BestCheckpoint, Checkpoints
from r3gan_jax.training.logging import MetricWriter
from r3gan_jax.training.mesh import batch_sharding, make_mesh, replicated
from r3gan_jax.training.progress import MetricWindow, Progress
from r3gan_jax.training.state import TrainState, abstract_state, averaged_params, init_state
from r3gan_jax.training.step import make_train_step

Snapshot = Callable[[Params, Any, int, MetricWriter], Mapping[str, float]]
"""(EMA parameters, carry, images seen, writer) -> scores: draws, measures and writes what it is for."""


@dataclass(frozen=True)
class Experiment:
  """What is trained and how often it is looked at; built by factory.py. Intervals and sizes are in images."""

  algorithm: Algorithm
  optimizers: Mapping[str, optax.GradientTransformationExtraArgs]
  schedules: Mapping[str, Schedule]
  batch_size: int
  seed: int
  total_images: int
  log_every_images: int
  snapshot_every_images: int
  keep_checkpoints: int
  keep_every_images: int
  micro_batches: Mapping[str, int] = field(default_factory=dict)
  best_metric: str = ""
  """The score whose best checkpoint is kept beside the newest ones; "": none."""
  best_mode: str = "min"

  @property
  def images_per_iteration(self) -> int:
    return self.batch_size * sum(phase.counts_images for phase in self.algorithm.phases)

  @property
  def batch_sizes(self) -> tuple[int, ...]:
    """One global batch a phase."""
    return (self.batch_size,) * len(self.algorithm.phases)


def train(
  experiment: Experiment,
  loader: Loader,
  workdir: epath.Path,
  writer: MetricWriter,
  snapshots: Sequence[Snapshot],
) -> TrainState:
  """Trains from the newest checkpoint of `workdir`, or from scratch, to `experiment.total_images`.

  Raises:
    UserError: at the first loss or gradient that is not finite; no later state is written.
  """
  mesh = make_mesh()
  checkpoints = Checkpoints(workdir / DIRECTORY, experiment.keep_checkpoints, experiment.keep_every_images)
  best = (
    BestCheckpoint(workdir / BEST_DIRECTORY, experiment.best_metric, experiment.best_mode)
    if experiment.best_metric
    else None
  )
  try:
    state = checkpoints.restore_latest(abstract_state(experiment.algorithm, experiment.optimizers, mesh))
    if state is None:
      init = jax.jit(
        lambda: init_state(experiment.algorithm, experiment.optimizers, experiment.seed),
        out_shardings=replicated(mesh),
      )
      state = init()
    else:
      checkpoints.set_aside_after(int(state.images_seen))
      logging.info("resumed from %s at %s images", checkpoints.directory, f"{int(state.images_seen):,}")
    return _train(experiment, loader, writer, snapshots, checkpoints, best, mesh, state)
  finally:
    checkpoints.close()
    if best:
      best.close()
    writer.flush()


def _train(
  experiment: Experiment,
  loader: Loader,
  writer: MetricWriter,
  snapshots: Sequence[Snapshot],
  checkpoints: Checkpoints,
  best: BestCheckpoint | None,
  mesh: jax.sharding.Mesh,
  state: TrainState,
) -> TrainState:
  step = make_train_step(
    experiment.algorithm, experiment.optimizers, experiment.schedules, mesh, experiment.micro_batches
  )
  images_seen = int(state.images_seen)
  increment = experiment.images_per_iteration
  batches = loader.iterate(experiment.batch_sizes, images_seen // increment, batch_sharding(mesh))
  progress = Progress(images_seen, experiment.total_images)
  window = MetricWindow(
    f"The last good checkpoint is in {checkpoints.directory}: lower config.learning_rate or raise config.gamma"
  )

  def snapshot() -> None:
    params = averaged_params(experiment.algorithm, state)
    scores: dict[str, float] = {}
    for take in snapshots:
      scores |= take(params, state.carry, images_seen, writer)
    checkpoints.save(state)
    if best:
      best.offer(state, scores)
    writer.flush()

  try:
    if images_seen == 0:
      snapshot()
    while images_seen < experiment.total_images:
      state, metrics = step(state, next(batches))
      previous, images_seen = images_seen, images_seen + increment
      last = images_seen >= experiment.total_images
      snapshot_due = last or _crosses(experiment.snapshot_every_images, previous, images_seen)
      log_due = last or _crosses(experiment.log_every_images, previous, images_seen)
      window.add(images_seen, metrics)
      if log_due or snapshot_due:
        window.catch_up()
      if log_due:
        writer.write_scalars(images_seen, window.means() | progress.report(images_seen))
      if snapshot_due:
        with progress.paused():
          snapshot()
  finally:
    batches.close()  # type: ignore[attr-defined]
  return state


def _crosses(interval: int, before: int, after: int) -> bool:
  return before // interval < after // interval
