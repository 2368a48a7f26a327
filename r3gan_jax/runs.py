"""Trains runs, and opens what their work directories hold."""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from r3gan_jax import factory
from r3gan_jax.algorithms.base import Algorithm, Carry, Params
from r3gan_jax.algorithms.capabilities import HasPictures
from r3gan_jax.algorithms.conditioned import conditioned
from r3gan_jax.algorithms.decoded import Decoded
from r3gan_jax.algorithms.image_to_image import ImageToImage
from r3gan_jax.data.folder import FolderSource
from r3gan_jax.data.images import Decoder, to_8_bits
from r3gan_jax.data.loader import Loader
from r3gan_jax.errors import UserError
from r3gan_jax.locks import holder, locked
from r3gan_jax.ops.images import to_float, to_uint8
from r3gan_jax.planning.plan import fitted_to
from r3gan_jax.planning.topology import GIB
from r3gan_jax.sampling import Sampler, beside_its_channels, image_grid, save_png
from r3gan_jax.scoring import Scorer
from r3gan_jax.storage import as_path, failing_as, make_directory
from r3gan_jax.training.checkpoint import (
  BEST_DIRECTORY,
  DIRECTORY,
  Checkpoints,
  checkpoint_steps,
  has_checkpoint,
  newest_checkpoint,
)
from r3gan_jax.training.distributed import (
  Preemption,
  check_same_everywhere,
  from_first_process,
  is_first_process,
  on_first_process,
)
from r3gan_jax.training.logging import MetricWriter, make_writer
from r3gan_jax.training.loop import Experiment, Snapshot, Trainer
from r3gan_jax.training.mesh import local_copy, make_mesh, on_local_devices
from r3gan_jax.training.protocol import as_series, keep_protocol, protocol_differences
from r3gan_jax.training.state import TrainState, abstract_state, averaged
from r3gan_jax.training.transfer import transferred_state
from r3gan_jax.training.weights_and_biases import check_wandb, wandb_writer
from r3gan_jax.training.workdir import CONFIG_FILE, LOCK_FILE, check_data, claim_workdir, read_config

_SECONDS_TO_SEE = 10
_MEMORY_OF_AN_ITERATION = 0.9
"""The part of a device's memory that an iteration may take; the rest is for samples, scores and workspaces."""


def train_run(config: ConfigDict, workdir: epath.PathLike, change_settings: bool = False) -> None:
  """Trains `config` in `workdir`, from the newest checkpoint if there is one.

  Args:
    change_settings: a run that resumes may have other settings; config.json records them under "history".

  Raises:
    UserError: a setting, the data or the work directory is not usable; nothing has been changed then.
    Diverged, Interrupted: see `training.loop.Trainer.train`.
  """
  workdir = as_path(workdir)
  config = factory.with_numbers(config)
  experiment = factory.build_experiment(config, jax.device_count())
  check_same_everywhere("the configuration", config.to_dict())
  if config.run.wandb:
    on_first_process(lambda: check_wandb(config.run.wandb))
  source = factory.build_source(config)
  if jax.process_count() > 1:
    some = source[np.array([0, len(source) // 2, len(source) - 1])]["image"]
    check_same_everywhere("the data", [len(source), *source.classes, some.tolist()], "give all the same data")
  loader = factory.build_loader(config, source)
  drawing, besides = factory.drawing(config, experiment.algorithm)
  scorer = None
  if config.run.metrics:
    of_images = factory.of_images(config)
    scorer = Scorer(of_images, drawing, source if of_images is config else factory.build_source(of_images), title=None)
  start = build_start(config, experiment, workdir)

  def claim() -> None:
    for name, (kept, now) in protocol_differences(workdir, scorer.protocol).items() if scorer else ():
      raise UserError(
        f"the scores in {workdir} were computed with {name} = {kept!r}, but now it is {now!r}: keep the setting, or "
        "leave config.run.metrics empty and score with cli.evaluate, which keeps series apart"
      )
    with failing_as(f"cannot write to the work directory {workdir}", workdir, "choose another --workdir"):
      held.enter_context(locked(workdir / LOCK_FILE, f"the work directory {workdir}"))
    images_seen = _check_changes(workdir, experiment) if change_settings else None
    claim_workdir(workdir, factory.checked(config.to_dict()), factory.completed, images_seen)
    check_data(workdir, len(source), source.classes)
    if newest_checkpoint(workdir / DIRECTORY) is None and (workdir / BEST_DIRECTORY).exists():
      (workdir / BEST_DIRECTORY).rmtree()  # of a run whose checkpoints have been deleted
    if scorer and scorer.protocol:
      keep_protocol(workdir, scorer.protocol)

  with ExitStack() as held:
    preemption = held.enter_context(Preemption().watched())
    on_first_process(claim)
    check_same_everywhere(
      f"the work directory {workdir}",
      _seen_by_all(workdir),
      "several processes need one directory that all of them see",
    )
    logging.info("training %s on %d x %s in %s", config.name, jax.device_count(), jax.devices()[0].device_kind, workdir)
    if config.run.fit_memory:
      experiment = _fitted(experiment)
    snapshots = build_snapshots(config, drawing, besides, loader, workdir, scorer)
    services: list[MetricWriter] = []
    if config.run.wandb:
      opened = wandb_writer(config.run.wandb, workdir, factory.checked(config.to_dict()))
      on_first_process(lambda: services.append(held.enter_context(opened)))
    with Trainer(experiment, loader, workdir, make_writer(workdir, *services), snapshots, preemption) as trainer:
      trainer.train(start)


def _fitted(experiment: Experiment) -> Experiment:
  """Returns `experiment` with micro-batches that fit the GPUs or TPUs here; on CPUs, unchanged."""
  statistics = jax.local_devices()[0].memory_stats() or {}
  there = int(from_first_process(statistics.get("bytes_limit", 0)))
  if not there:
    return experiment
  fitted = fitted_to(make_mesh(), experiment, _MEMORY_OF_AN_ITERATION * there)
  sizes = ", ".join(f"config.run.micro_batch.{phase}={size}" for phase, size in fitted.micro_batches.items())
  logging.info("to fit %.3g GiB of a device: %s", there / GIB, sizes or "no micro-batches are needed")
  return fitted


def _seen_by_all(workdir: epath.Path) -> str:
  """Returns the lock of the work directory, which other hosts may see some seconds late."""
  for _ in range(_SECONDS_TO_SEE):
    if held_by := holder(workdir / LOCK_FILE):
      return held_by
    time.sleep(1)
  return ""


def _check_changes(workdir: epath.Path, experiment: Experiment) -> int | None:
  """Returns the images seen of the newest checkpoint, which the changed run resumes; None if there is none.

  Raises:
    UserError: the state of the changed run would have other arrays.
  """
  newest = newest_checkpoint(workdir / DIRECTORY)
  if newest is None:
    return None
  before = factory.build_algorithm(ConfigDict(factory.completed(read_config(workdir))))
  mesh = make_mesh()
  if abstract_state(before, mesh) != abstract_state(experiment.algorithm, mesh):
    raise UserError(
      f"--change_settings: the networks in {workdir} have other parameters, averages or frozen stages: start a new "
      f"run with --config.init_from={workdir}"
    )
  return newest


@dataclass(frozen=True)
class TrainedRun:
  """A checkpoint of a work directory, with averaged parameters and carry, ready to sample from; `title` names it."""

  config: ConfigDict
  algorithm: Algorithm
  params: Params
  carry: Any
  images_seen: int
  title: str


def open_run(workdir: epath.PathLike, checkpoint: str = "") -> TrainedRun:
  """Reads the averaged networks of a work directory; arguments and errors are those of `open_state`."""
  return drawing_images(averaged_run(workdir, *open_state(workdir, checkpoint)))


def drawing_images(trained: TrainedRun) -> TrainedRun:
  """Returns a run on latents as one on the images that they are of, with the decoder; others as they are.

  Raises:
    UserError: see `factory.drawing`.
  """
  algorithm, besides = factory.drawing(trained.config, trained.algorithm)
  config = factory.of_images(trained.config)
  return replace(trained, config=config, algorithm=algorithm, params={**trained.params, **besides})


def on_conditions(trained: TrainedRun, path: epath.PathLike) -> TrainedRun:
  """Returns an image-to-image run as one that draws from the images in a directory or zip, its classes, by name.

  Raises:
    UserError: the run draws from noise alone, there are no images, or one has another size than the run's conditions.
  """
  algorithm = trained.algorithm
  if not isinstance(algorithm, ImageToImage):
    raise UserError(f"--condition={path}: {trained.config.algorithm} draws from noise alone: leave it out")
  *size, channels = algorithm.condition_shape
  # Alpha is the last of them: grey with alpha is read as RGBA.
  decoder = Decoder(4 if channels == 2 else channels)
  try:
    files = FolderSource(str(path), (size[0], size[1]), decoder, num_classes=0)
    images = files[np.arange(len(files))]["image"]
  except UserError as error:
    raise UserError(f"--condition={path}: the run draws from images of {size[1]}x{size[0]}: {error}") from None
  drawing, besides = conditioned(algorithm, images[..., -channels:])
  return replace(trained, algorithm=drawing, params={**trained.params, **on_local_devices(besides)})


def averaged_run(workdir: epath.PathLike, config: ConfigDict, algorithm: Algorithm, state: TrainState) -> TrainedRun:
  """Returns the averaged networks of a state that `open_state` has read in `workdir`.

  Raises:
    UserError: a weight is not finite.
  """
  params, carry = local_copy(averaged(algorithm, state))
  images_seen = int(state.images_seen)
  title = f"the checkpoint at {images_seen:,} images in {workdir}"
  if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((params, carry))):
    others = [step for step in checkpoint_steps(as_path(workdir) / DIRECTORY) if step != images_seen]
    cure = f"choose another --checkpoint, from {others}" if others else "it is the only one: train the run anew"
    raise UserError(f"{title} has weights that are not finite (NaN or infinity): {cure}")
  return TrainedRun(config, algorithm, params, carry, images_seen, title)


def open_state(workdir: epath.PathLike, checkpoint: str = "") -> tuple[ConfigDict, Algorithm, TrainState]:
  """Reads a checkpoint of a work directory and changes nothing in it.

  Args:
    workdir: where the run is.
    checkpoint: its images seen, or "best"; default: the newest.

  Raises:
    UserError: there is no such checkpoint, or none that can be read.
  """
  config = factory.opened(read_config(workdir), as_path(workdir) / CONFIG_FILE)
  if not (checkpoint in ("", "best") or checkpoint.isdecimal()):
    raise UserError(f"--checkpoint={checkpoint} is neither a number of images seen nor 'best'")
  directory = as_path(workdir) / (BEST_DIRECTORY if checkpoint == "best" else DIRECTORY)
  algorithm = factory.build_algorithm(config)
  if not directory.exists():
    if checkpoint == "best":
      raise UserError(f"{workdir} holds no best checkpoint yet: train with config.run.best_metric")
    raise UserError(f"{workdir} holds no checkpoint yet: train first")
  checkpoints = Checkpoints(directory)
  abstract = abstract_state(algorithm, make_mesh())
  state = checkpoints.restore_latest(abstract, int(checkpoint) if checkpoint.isdecimal() else None)
  checkpoints.close()
  if state is None:
    raise UserError(f"{directory} holds no checkpoint yet: train first")
  return config, algorithm, state


def build_start(config: ConfigDict, experiment: Experiment, workdir: epath.PathLike) -> TrainState | None:
  """Returns the state that config.init_from gives a new run in `workdir`; None without it, or if the run resumes.

  Logs which parameters are transferred. Changes nothing in either work directory.

  Raises:
    UserError: config.init_from has no readable checkpoint, or nothing in it fits.
  """
  if not config.init_from or has_checkpoint(as_path(workdir) / DIRECTORY):
    return None
  try:
    there, algorithm, source = open_state(config.init_from)
    if there.algorithm != config.algorithm:
      raise UserError(f"it was trained with config.algorithm = {there.algorithm!r}, not {config.algorithm!r}")
    parts = (experiment.algorithm, experiment.seed, make_mesh())
    start, table = transferred_state(*parts, algorithm, source)
  except UserError as error:
    raise UserError(f"config.init_from = {config.init_from!r}: {error}") from None
  logging.info("from %s at %s images:\n%s", config.init_from, f"{int(source.images_seen):,}", table)
  return start


def build_pictures(algorithm: HasPictures) -> Callable[[Params, Carry, np.ndarray], dict[str, np.ndarray]]:
  """Returns (averaged params, carry, real images) -> the algorithm's own pictures by name; all are uint8."""
  draw = jax.jit(algorithm.pictures)

  def pictures(params: Params, carry: Carry, reals: np.ndarray) -> dict[str, np.ndarray]:
    drawn = draw(params, carry, to_float(jnp.asarray(reals)))
    return {name: np.asarray(to_uint8(images)) for name, images in drawn.items()}

  return pictures


def save_grid(config: ConfigDict, path: epath.Path, images: np.ndarray) -> np.ndarray:
  """Writes [n, H, W, C], uint8 or uint16, as a grid of 8 bits, as config.run says; returns it."""
  images = to_8_bits(images)
  image = image_grid(beside_its_channels(images) if config.run.grid_channels else images, config.run.grid[0])
  save_png(path, image, config.run.grid_scale)
  return image


def build_snapshots(
  config: ConfigDict,
  algorithm: Algorithm,
  besides: Params,
  loader: Loader,
  workdir: epath.Path,
  scorer: Scorer | None,
) -> list[Snapshot]:
  """Returns what happens at every snapshot: a grid of samples, the algorithm's own pictures, and the scores.

  `algorithm` and `besides` are those of `factory.drawing`.
  """
  quantised_in = factory.quantised_in(config, algorithm)
  columns, rows = config.run.grid
  seeds = np.arange(columns * rows)
  # With classes, each row of the grid is one class.
  labels = np.arange(len(seeds), dtype=np.int32) // columns % algorithm.num_classes if algorithm.num_classes else None
  directory = workdir / "samples"
  pictures = build_pictures(algorithm) if isinstance(algorithm, HasPictures) else None
  reals = shown = loader.examples(seeds)["image"]
  if isinstance(algorithm, ImageToImage):  # a sample of the condition of each of the reals
    shown = algorithm.true(reals)
    made = jax.jit(algorithm.conditions)(reals, jax.random.split(jax.random.key(0), len(reals)))
    algorithm, besides = conditioned(algorithm, np.asarray(made))
    labels = seeds
  sampler = Sampler(algorithm, make_mesh(jax.local_devices()), quantised_in=quantised_in, title=None)
  if is_first_process():
    make_directory(directory)
    if isinstance(algorithm, Decoded):
      shown = np.asarray(to_uint8(jax.jit(algorithm.decode)(besides, reals)))
    save_grid(config, directory / "reals.png", shown)

  def grid(params: Params, carry: Carry, images_seen: int, writer: MetricWriter) -> Mapping[str, float]:
    if not is_first_process():
      return {}
    params, carry = local_copy((params, carry))
    drawn = sampler({**params, **besides}, carry, seeds, labels)
    image = save_grid(config, directory / f"fakes_{images_seen:010}.png", drawn)
    writer.write_images(images_seen, {"samples": image[None]})
    if pictures:
      for name, picture in pictures(params, carry, reals).items():
        save_grid(config, directory / f"{name}_{images_seen:010}.png", picture)
    return {}

  if scorer is None:
    return [grid]

  def score(params: Params, carry: Carry, images_seen: int, writer: MetricWriter) -> Mapping[str, float]:
    scores: dict[str, float] = {}
    params, carry = local_copy((params, carry))
    for _, part in scorer({**params, **besides}, carry):
      writer.write_scalars(images_seen, as_series(part, {}))
      scores |= part
    return scores

  return [grid, score]
