"""Logs a run to Weights & Biases (W&B), through its own library, which writes and uploads in a process of its own.

All processes of a run, before and after a preemption, are one run of W&B: its id is kept in the work directory.
W&B's own steps count calls, because they cannot go back as a run does that resumes or rolls back; the axis of all its
charts is images seen.
"""

import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Literal

import numpy as np
from absl import logging
from etils import epath

from r3gan_jax.errors import UserError, one_line
from r3gan_jax.storage import failing_as, is_remote, write_whole
from r3gan_jax.training.logging import MetricWriter, ScalarsAndImagesWriter

ID_FILE = "wandb_id"
_STEP = "images_seen"
_FINISH_SECONDS = 30  # to upload the rest; with the process that was preempted, it would be killed soon


class WandbWriter(ScalarsAndImagesWriter):
  """Hands scalars and uint8 images [N, H, W, C] to an open W&B run, without waiting for the network.

  Failures are logged, once in a row: training must not end for its log.
  """

  def __init__(self, run: Any):
    self._run = run
    self._failing = False
    self._try(lambda: (run.define_metric(_STEP), run.define_metric("*", step_metric=_STEP)))

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    self._log(step, lambda: {name: float(value) for name, value in scalars.items()})

  def write_images(self, step: int, images: Mapping[str, Any]) -> None:
    from wandb import Image

    self._log(step, lambda: {name: [Image(np.asarray(one)) for one in batch] for name, batch in images.items()})

  def _log(self, step: int, values: Callable[[], dict[str, Any]]) -> None:
    self._try(lambda: self._run.log({_STEP: step} | values()))

  def _try(self, action: Callable[[], object]) -> None:
    try:
      action()
      self._failing = False
    except Exception as error:  # its process has ended, or a picture does not fit on the disk
      if not self._failing:
        logging.error("Weights & Biases cannot log (%s): training continues without it", one_line(error))
      self._failing = True


def check_wandb(project: str) -> None:
  """Checks, without a question to the user, that W&B can be used; in its offline mode needs no account.

  Args:
    project: config.run.wandb, for the message.

  Raises:
    UserError: the package is not installed, or there is no key of an account.
  """
  try:
    import wandb
  except ImportError:
    raise UserError(
      f"config.run.wandb = {project!r} needs the package wandb: pip install -e '.[wandb]', or set it to ''"
    ) from None
  if wandb.setup().settings.mode != "online":
    return
  with suppress(wandb.errors.CommError):  # a key that cannot be verified now: see `wandb_writer`
    if not wandb.login(prompt=False):
      raise UserError(
        f"config.run.wandb = {project!r}, but this machine is not logged in to Weights & Biases: run `wandb login` or "
        "set WANDB_API_KEY; or set WANDB_MODE=offline, and upload later with `wandb sync`"
      )


@contextmanager
def wandb_writer(project: str, workdir: epath.Path, config: Mapping[str, Any]) -> Iterator[MetricWriter]:
  """Opens the W&B run of a work directory, which may exist, and finishes it at the end of the context.

  If W&B does not answer, or refuses, the run is written offline, for `wandb sync`: training must not wait for it.

  Args:
    project: "PROJECT" or "ENTITY/PROJECT".
    workdir: where W&B keeps its files, too, below wandb/; those of a run in an object store are in ./wandb.
    config: all settings; they may have changed since the run was last open.

  Raises:
    UserError: the id cannot be kept in the work directory, or W&B's library cannot use its own settings.
  """
  import wandb

  entity, _, name = project.rpartition("/")
  path = workdir / ID_FILE
  with failing_as(f"cannot keep the id of the Weights & Biases run in {path}", path):
    if not path.exists():
      write_whole(path, uuid.uuid4().hex + "\n")
    run_id = path.read_text().strip()

  def opened(mode: Literal["offline"] | None) -> Any:
    return wandb.init(
      entity=entity or None,
      project=name,
      id=run_id,
      name=str(workdir),
      dir=None if is_remote(workdir) else str(workdir),
      config=dict(config),
      allow_val_change=True,
      resume="allow",
      reinit="create_new",
      mode=mode,
      settings=wandb.Settings(finish_timeout=_FINISH_SECONDS),
    )

  try:
    try:
      run = opened(None)
    except wandb.errors.CommError as error:
      logging.error(
        "Weights & Biases cannot be reached (%s): this run is written offline, for `wandb sync`", one_line(error)
      )
      wandb.teardown()  # its process still holds the id
      run = opened("offline")
  except wandb.Error as error:
    raise UserError(f"config.run.wandb = {project!r}: {one_line(error)}") from None
  exit_code = 1
  try:
    yield WandbWriter(run)
    exit_code = 0
  finally:
    try:
      run.finish(exit_code)
    except Exception as error:  # its process has ended: what it wrote is on the disk
      logging.error("the Weights & Biases run could not be finished (%s)", one_line(error))
