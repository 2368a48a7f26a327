"""Faults of a run: non-finite values, full disks, interrupted snapshots, corrupt images."""

import dataclasses
import shutil
import signal
import subprocess
from contextlib import suppress

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging
from etils import epath

from configs import stacked_digits
from r3gan_jax import factory
from r3gan_jax.data.images import CorruptImage
from r3gan_jax.data.loader import Loader
from r3gan_jax.errors import UserError
from r3gan_jax.training.distributed import Preemption
from r3gan_jax.training.logging import JsonLinesWriter, make_writer, metric_writers, read_events, read_metrics
from r3gan_jax.training.loop import SNAPSHOT_SECONDS, Trainer
from r3gan_jax.training.progress import Diverged


@dataclasses.dataclass(frozen=True)
class Faulty:
  """R3GAN with NaN in G's gradient in one of `one_in` iterations, drawn from the first sample's key."""

  algorithm: object
  one_in: int

  def __getattr__(self, name):
    return getattr(self.algorithm, name)

  @property
  def phases(self):
    discriminator, generator = self.algorithm.phases

    def gradients(params, carry, batch, keys, hyperparameters):
      gradients, carry, metrics = generator.gradients(params, carry, batch, keys, hyperparameters)
      fault = jax.lax.pmean(jax.random.randint(keys[0], (), 0, self.one_in) == 0, "data") > 0
      return jax.tree.map(lambda g: jnp.where(fault, jnp.nan, g), gradients), carry, metrics

    return discriminator, dataclasses.replace(generator, gradients=gradients)


def run(workdir, writer=None, snapshots=(), one_in=0, loader=None, ema_stds=(), **changes):
  config = stacked_digits.get_config("smoke")
  config.gan.ema_stds = ema_stds
  experiment = factory.build_experiment(config, jax.device_count())
  if one_in:
    changes["algorithm"] = Faulty(experiment.algorithm, one_in)
  changes = {"snapshot_every_images": 16, "keep_checkpoints": 100} | changes
  experiment = dataclasses.replace(experiment, **changes)
  workdir = epath.Path(workdir)
  loader = loader or factory.build_loader(config, factory.build_source(config))
  writer = writer or metric_writers.MultiWriter([])
  with Trainer(experiment, loader, workdir, writer, snapshots, Preemption()) as trainer:
    return trainer.train()


def saved(workdir):
  return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal())


def test_rollbacks_get_past_a_fault_and_are_logged(tmp_path, caplog):
  """The fault depends on the draws: with others, and another data order, the run reaches its end."""
  asked = []
  config = stacked_digits.get_config("smoke")
  loader = factory.build_loader(config, factory.build_source(config))
  examples = loader.examples
  loader.examples = lambda samples, order=0: asked.append((order, samples)) or examples(samples, order)
  with caplog.at_level("WARNING"), pytest.raises(Diverged, match=r"generator/gradient_norm.* not finite.*on_nonfinite"):
    run(tmp_path / "stop", one_in=40, writer=JsonLinesWriter(epath.Path(tmp_path / "stop/metrics.jsonl")))
  assert "rolling back" not in caplog.text
  (_, start), (_, end) = read_events(tmp_path / "stop")
  assert (start["event"], end["event"]) == ("started", "ended") and end["reason"].startswith("training diverged at ")
  stopped_after = saved(tmp_path / "stop")[-1]
  logging.use_absl_handler()
  with caplog.at_level("WARNING", logger="absl"):
    state = run(
      tmp_path / "back",
      JsonLinesWriter(epath.Path(tmp_path / "back/metrics.jsonl")),
      one_in=40,
      max_rollbacks=20,
      loader=loader,
    )
  assert int(state.images_seen) == 64
  events = [(images_seen, texts["event"]) for images_seen, texts in read_events(tmp_path / "back")]
  assert events[1] == (stopped_after, "rolled back") and events[-1] == (64, "ended")
  assert len(events) == int(state.rollbacks) + 2 and read_events(tmp_path / "back")[-1][1]["reason"] == "finished"
  assert f"rolling back to {stopped_after} images (1 of 20)" in caplog.text
  assert f"({int(state.rollbacks)} of 20)" in caplog.text
  assert {order for order, _ in asked} == set(range(int(state.rollbacks) + 1))
  assert np.isfinite(state.params["generator"]["to_image"]["kernel"]).all()
  indices = [loader.indices(np.arange(50), order) for order in (0, 1, 2)]
  assert (indices[0] != indices[1]).any() and (indices[1] != indices[2]).any()


def test_max_rollbacks(tmp_path):
  with pytest.raises(Diverged):
    run(tmp_path, one_in=1, max_rollbacks=2)
  assert saved(tmp_path) == [0]


def test_a_full_disk_does_not_end_a_training(tmp_path, caplog):
  """Logs, pictures and checkpoints are tried again, and the log is whole in the end. Only the last state must be saved.

  The disk is a real file system of 100 MB, which only root can mount.
  """
  mounted = tmp_path / "small"
  mounted.mkdir()
  if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", mounted], capture_output=True).returncode:
    pytest.skip("mounting a small file system needs root")
  try:
    ballast = mounted / "ballast"
    workdir = epath.Path(mounted / "run")
    run(workdir, total_images=16)

    def fill():
      with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(b"x" * 2**20):
          pass

    def snapshot(params, carry, images_seen, writer):
      if images_seen == 16:
        fill()
      if images_seen == 48:
        ballast.unlink()
      (workdir / f"{images_seen}.png").write_bytes(b"x" * 10_000)
      return {}

    def train(total_images):
      writer = make_writer(workdir)
      return run(workdir, writer, [snapshot], total_images=total_images, log_every_images=8)

    with caplog.at_level("ERROR", logger="absl"):
      assert int(train(64).images_seen) == 64
    assert "no checkpoint was written" in caplog.text and "are free" in caplog.text
    # It is retried at every log line.
    assert saved(workdir) == [0, 16, 56, 64]
    assert read_metrics(workdir)["generator/loss"][0].tolist() == list(range(24, 65, 8))
    fill()
    with pytest.raises(UserError, match=r"the end of the run, at 72 images, could not be saved in .*checkpoints: make"):
      train(72)
    ballast.unlink()
    assert int(train(72).images_seen) == 72 and saved(workdir)[-1] == 72
  finally:
    subprocess.run(["umount", mounted], check=True)


def test_an_interrupted_snapshot_is_repeated_when_the_run_resumes(tmp_path):
  seen = []

  def cut_off(params, carry, images_seen, writer):
    seen.append(images_seen)
    if seen == [0, 16, 32]:
      raise KeyboardInterrupt
    return {}

  tmp_path = epath.Path(tmp_path)
  with pytest.raises(KeyboardInterrupt):
    run(tmp_path, make_writer(tmp_path), [cut_off])
  assert saved(tmp_path) == [0, 16, 32]  # saved before scoring
  run(tmp_path, make_writer(tmp_path), [cut_off])
  assert seen == [0, 16, 32, 32, 48, 64]
  run(tmp_path, make_writer(tmp_path), [cut_off])
  assert seen == [0, 16, 32, 32, 48, 64]
  assert read_metrics(tmp_path)[SNAPSHOT_SECONDS][0].tolist() == [0, 16, 32, 48, 64]


def test_averages_of_a_future_that_is_lost_are_removed(tmp_path):
  """Here all, as the run begins anew; and what a kill left of a file."""

  def stored(total_images):
    run(tmp_path, total_images=total_images, ema_stds=(0.05, 0.1))
    return sorted(path.name for path in (tmp_path / "posthoc").iterdir())

  assert stored(48) == ["0000000016.npz", "0000000032.npz", "0000000048.npz"]
  (tmp_path / "posthoc" / ".0000000048.npz.0123.tmp").touch()
  shutil.rmtree(tmp_path / "checkpoints")
  assert stored(8) == ["0000000008.npz"]


def test_ctrl_c_twice_ends_at_once():
  with Preemption().watched() as preemption:
    assert not preemption.requested(1)
    signal.raise_signal(signal.SIGINT)
    assert preemption.requested(2) and preemption.signal == "SIGINT"
    with pytest.raises(KeyboardInterrupt):
      signal.raise_signal(signal.SIGINT)
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_trace_is_written_on_request(command, tmp_path):
  """In a process of its own: beside the threads of other tests, JAX's profiler has crashed."""
  size = ("--config.batch_size=2", "--config.run.total_images=8", "--config.run.profile=(1,2)")
  command("main", "--config=configs/cifar10.py:smoke", f"--workdir={tmp_path}", *size)
  names = {path.name for path in (tmp_path / "profile").rglob("*") if path.is_file()}
  assert "perfetto_trace.json.gz" in names and any(name.endswith(".xplane.pb") for name in names)


class Corrupt:
  """A source with a corrupt image."""

  def __init__(self, source, index):
    self._source, self._index = source, index
    self.classes = source.classes

  def __len__(self):
    return len(self._source)

  def __getitem__(self, indices):
    if self._index in indices:
      raise CorruptImage(f"image {self._index} is damaged")
    return self._source[indices]


def test_a_run_saves_its_state_before_a_corrupt_image_ends_it(tmp_path):
  """The state after the last complete iteration, although no snapshot is due; the run can resume from it."""
  config = stacked_digits.get_config("smoke")
  good = factory.build_source(config)
  order = Loader(good, config.seed, config.data.x_flip).indices(np.arange(80))
  # Of the fourth iteration, of 16 samples, and of none before it.
  index = next(index for index in order[48:64] if index not in order[:48])
  loader = Loader(Corrupt(good, index), config.seed, config.data.x_flip)
  with pytest.raises(
    UserError, match=f"image {index} is damaged .the run was saved at 24 images: .*on_corrupt_image=skip"
  ):
    run(tmp_path / "run", loader=loader, snapshot_every_images=64)
  assert saved(tmp_path / "run") == [0, 24]
  state = run(tmp_path / "run", snapshot_every_images=64)
  expected = run(tmp_path / "expected", snapshot_every_images=64)
  jax.tree.map(np.testing.assert_array_equal, state.params, expected.params)
