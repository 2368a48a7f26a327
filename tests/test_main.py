"""The user's commands, run as a user runs them."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.commands import Command, call
from helpers.image_files import write_idx_files
from helpers.states import final_state
from ml_collections import ConfigDict
from PIL import Image

from r3gan_jax import factory
from r3gan_jax.errors import INTERRUPTED
from r3gan_jax.metrics import digits_cnn
from r3gan_jax.runs import build_start
from r3gan_jax.training.logging import read_metrics
from r3gan_jax.training.workdir import read_config

ROOT = Path(__file__).parent.parent
SMOKE = "--config=configs/stacked_digits.py:smoke"
ROADMAP_A = "--config=configs/roadmap.py:a_smoke"


@pytest.fixture(scope="module")
def finished(command, tmp_path_factory):
  """The smoke run at its end, 64 images; its work directory was relative. Not to be trained on."""
  workdir = tmp_path_factory.mktemp("finished")
  command("main", SMOKE, f"--workdir={os.path.relpath(workdir, ROOT)}")
  return workdir


def picture_size(path):
  with Image.open(path) as picture:
    return picture.size


def assert_bitwise_equal(actual, expected):
  jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize(
  "name",
  ["cifar10", "ffhq64", "ffhq256", "imagenet256", "imagenet512", "stacked_mnist", "stacked_digits", "fashion_mnist"],
)
def test_every_smoke_variant_trains(command, tmp_path, name):
  size = ("--config.batch_size=2", "--config.run.total_images=4")
  done = command("main", f"--config=configs/{name}.py:smoke", f"--workdir={tmp_path}", *size)
  assert re.search(r"4 of 4 images \| \S+ s/kimg \| \d+ images/s \| ETA 0:00:00 \| \S+ GiB", done.stderr)
  side = factory.build_algorithm(ConfigDict(read_config(tmp_path))).image_shape[0]
  for picture in ("reals.png", "fakes_0000000000.png", "fakes_0000000004.png"):
    assert (picture_size(tmp_path / "samples" / picture)[0]) % (4 * side + 3 * 2 * max(1, side // 64)) == 0
  lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert [line.get("event") for line in lines] == ["started", None, None, None, "ended"]
  assert [(line["images_seen"], len(line) > 2) for line in lines[1:4]] == [(0, False), (4, True), (4, False)]
  for metric in (
    "discriminator/r1",
    "discriminator/r2",
    "generator/loss",
    "hyperparameters/gamma",
    "progress/images_per_second",
  ):
    assert np.isfinite(lines[2][metric])
  assert list((tmp_path / "tensorboard").iterdir())


@pytest.mark.parametrize("name, data", [("stacked_mnist", "mnist"), ("fashion_mnist", "fashion_mnist")])
def test_training_on_prepared_data(command, tmp_path, name, data):
  write_idx_files(tmp_path)
  prepare = ("--idx", tmp_path, "--name", data, "--data_dir", tmp_path)
  assert "17 images in " in command("prepare_data", *prepare).stdout
  source = "stacked_mnist" if name == "stacked_mnist" else "tfds"
  train = (f"--config=configs/{name}.py:smoke", f"--config.data.source={source}", f"--workdir={tmp_path / 'run'}")
  train += ("--config.gan.augment_p=(0.0,0.0)",)
  command("main", *train, f"--config.run.data_path={tmp_path}", "--config.run.total_images=16")
  done = command("main", *train, f"--config.run.data_path={tmp_path / data / '3.0.1'}", "--config.run.total_images=24")
  assert "at 16 images" in done.stderr  # the data may have moved meanwhile


def test_stacked_mnist_is_measured_by_its_classifier(command, refused, environment, tmp_path):
  """Modes and KL, of the real data too, and the FID of the classifier's features; here one of random weights."""
  write_idx_files(tmp_path)
  command("prepare_data", "--idx", tmp_path, "--name=mnist", "--data_dir", tmp_path)
  blank = np.zeros((1, digits_cnn.SIDE, digits_cnn.SIDE, 1), np.uint8)
  params = jax.jit(digits_cnn.DigitsCNN().init)(jax.random.key(0), blank)["params"]
  classifier = Path(environment["XDG_CACHE_HOME"]) / "r3gan_jax" / "digits-cnn-mnist.npz"
  run = tmp_path / "run"
  train = ("--config=configs/stacked_mnist.py:smoke", "--config.data.source=stacked_mnist", f"--workdir={run}")
  size = ("--config.run.total_images=8", "--config.run.metric_samples=40", "--config.run.metrics=('modes','fid')")
  digits_cnn.save(classifier, params, 0.98)
  assert "98.0%" in refused("main", *train, *size, f"--config.run.data_path={tmp_path}") and not run.exists()
  digits_cnn.save(classifier, params, 0.995)
  done = command("main", *train, *size, f"--config.run.data_path={tmp_path}")
  assert "digit classifier: 99.5 %" in done.stderr
  metrics = read_metrics(run)
  assert metrics["metrics/modes_samples"][1].tolist() == [40, 40]
  assert metrics["metrics/num_real"][1].tolist() == [40, 40]
  assert (metrics["metrics/fid"][1] > 0).all()

  # cli.evaluate has the run's own settings: the same numbers. Those of another protocol are series of their own.
  evaluate = (f"--workdir={run}", "--checkpoint=8")
  command("evaluate", *evaluate)
  command("evaluate", *evaluate, "--num_samples=30", "--metrics=fid")
  again = read_metrics(run)
  for name, (images_seen, values) in metrics.items():
    np.testing.assert_array_equal(again[name], (images_seen, values), err_msg=name)
  assert again["metrics/fid (num_samples=30)"][1] != metrics["metrics/fid"][1][-1]
  assert again.keys() - metrics.keys() == {
    f"metrics/{name} (num_samples=30)" for name in ("fid", "num_real", "num_fake")
  }
  more = ("--config.run.total_images=16", "--config.run.metric_samples=30", f"--config.run.data_path={tmp_path}")
  assert "num_samples = 40, but now it is 30" in refused("main", *train, *size, *more)


def test_the_best_checkpoint_is_kept_beside_the_last(command, refused, tmp_path):
  """By its score, which `cli.evaluate` finds again; going on, it gives way only to a better one."""
  run = tmp_path / "run"
  train = ("--config=configs/stacked_digits.py", f"--workdir={run}", "--config.batch_size=8")
  train += ("--config.gan.widths=(16,16)", "--config.gan.cardinalities=(2,2)")
  train += ("--config.run.metric_samples=60", "--config.run.snapshot_every_images=8", "--config.run.keep_checkpoints=1")
  for total, direction, choose in ((40, "modes_kl", np.argmin), (48, "modes_kl", np.argmin), (56, "modes", np.argmax)):
    command("main", *train, f"--config.run.total_images={total}", f"--config.run.best_metric={direction}")
    images_seen, values = read_metrics(run)[f"metrics/{direction}"]
    (best,) = (int(path.name) for path in (run / "best").iterdir())
    assert values[list(images_seen).index(best)] == values[choose(values)]
  arguments = ("--metrics=modes", "--num_samples=60", f"--json={tmp_path / 'scores.json'}", "--checkpoint=best")
  shown = command("evaluate", f"--workdir={run}", *arguments).stdout
  (scores,) = json.loads((tmp_path / "scores.json").read_text())
  assert scores["modes"] == values.max() and scores["real_modes"] > scores["modes"]
  assert re.search(rf"images_seen +{best}\n", shown)
  done = command("sample", f"--workdir={run}", "--checkpoint=best", "--seeds=0", f"--out={tmp_path}/x.png")
  assert f"checkpoint at {best} images" in done.stdout
  error = refused("sample", f"--workdir={run}", "--checkpoint=last", f"--out={tmp_path}/x.png")
  assert "--checkpoint=last is neither a number of images seen nor 'best'" in error


@pytest.mark.card
def test_resumed_equals_uninterrupted_bitwise(command, tmp_path):
  """6 iterations, then 4 more, against 10 at once; with averages of all kinds, in the state and as files."""
  train = (SMOKE, "--config.gan.ema_stds=(0.05,0.1)")
  command("main", *train, f"--workdir={tmp_path}/parts", "--config.run.total_images=48")
  done = command("main", *train, f"--workdir={tmp_path}/parts", "--config.run.total_images=80")
  assert "resumed from" in done.stderr and "at 48 images" in done.stderr
  command("main", *train, f"--workdir={tmp_path}/whole", "--config.run.total_images=80")
  parts, whole = final_state(tmp_path / "parts"), final_state(tmp_path / "whole")
  assert whole.images_seen == 80 and whole.ema.keys() == {"generator", "generator_0.05", "generator_0.1"}
  assert_bitwise_equal(parts, whole)
  stored = {file.name: file.read_bytes() for file in (tmp_path / "whole" / "posthoc").iterdir()}
  assert stored.keys() == {"0000000032.npz", "0000000064.npz", "0000000080.npz"}
  assert {name: (tmp_path / "parts" / "posthoc" / name).read_bytes() for name in stored} == stored


def test_stylegan2_trains_resumes_and_samples(command, environment, refused, tmp_path):
  """By the same commands as R3GAN, which but for one take it."""
  train = (ROADMAP_A, "--config.run.snapshot_every_images=40")
  train += ("--config.data.resolution=8", "--config.gan.widths=(16,8)")
  command("main", *train, f"--workdir={tmp_path}/parts", "--config.run.total_images=40")
  done = command("main", *train, f"--workdir={tmp_path}/parts", "--config.run.total_images=48")
  assert "at 40 images" in done.stderr
  command("main", *train, f"--workdir={tmp_path}/whole", "--config.run.total_images=48")
  parts, whole = final_state(tmp_path / "parts"), final_state(tmp_path / "whole")
  assert [int(whole.optimizer[network].updates) for network in ("generator", "discriminator")] == [6 + 2, 6 + 1]
  assert np.abs(whole.carry["w"]).max() > 0 and whole.carry["path_length"] > 0
  assert_bitwise_equal(parts, whole)
  metrics = read_metrics(tmp_path / "whole")
  assert (metrics["generator/path_length"][1] > 0).all() and (metrics["discriminator/r1"][1] > 0).all()

  workdir = f"--workdir={tmp_path}/whole"
  draws = [(workdir, "--seeds=0-3", f"--truncation={psi}", f"--out={tmp_path}/{psi}.npz") for psi in (1, 0)]
  assert call(environment, "sample", draws) == [None, None]
  trained, alike = (np.load(tmp_path / f"{psi}.npz")["images"] for psi in (1, 0))
  assert (alike == alike[0]).all() and len(np.unique(trained, axis=0)) == 4

  command("export", workdir, f"--out={tmp_path}/generator.stablehlo")
  exported = jax.export.deserialize(bytearray((tmp_path / "generator.stablehlo").read_bytes()))
  noise = np.stack([jax.random.normal(jax.random.key(seed), (16,)) for seed in range(4)])
  drawn = np.clip(np.asarray(exported.call(noise)) * 127.5 + 128, 0, 255).astype(int)
  assert np.abs(drawn - trained.astype(int)).max() <= 1
  error = refused("convert", workdir, f"--out={tmp_path}/x.npz")
  assert "only R3GAN's own networks have official names" in error
  assert not (tmp_path / "x.npz").exists()

  again = ConfigDict(read_config(tmp_path / "whole"))
  again.init_from = str(tmp_path / "whole")
  start = build_start(again, factory.build_experiment(again, 1), tmp_path / "again")
  assert start.images_seen == 0
  assert_bitwise_equal(start.params, whole.params)


def test_killed_at_random_moments_it_goes_on_from_the_last_complete_checkpoint(command, environment, tmp_path):
  frequent = ("--config.run.snapshot_every_images=8", "--config.run.total_images=240")
  command("main", SMOKE, f"--workdir={tmp_path}/whole", *frequent)
  killed = tmp_path / "killed"
  moments = random.Random(0)
  for attempt in range(4):
    process = Command(environment, "main", SMOKE, f"--workdir={killed}", *frequent)
    already = len(list(killed.glob("samples/fakes*")))
    while process.poll() is None and len(list(killed.glob("samples/fakes*"))) <= already:
      time.sleep(0.01)  # it trains, and saves at every iteration
    time.sleep(moments.uniform(0, 0.25))
    process.send_signal(signal.SIGTERM if attempt % 2 else signal.SIGKILL)
    assert process.finish().returncode == (INTERRUPTED if attempt % 2 else -signal.SIGKILL)
  command("main", SMOKE, f"--workdir={killed}", *frequent)
  assert_bitwise_equal(final_state(killed), final_state(tmp_path / "whole"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_saves_and_ends_and_nobody_else_trains_there(refused, environment, tmp_path, number):
  train = ("main", SMOKE, f"--workdir={tmp_path}", "--config.run.total_images=1000000")
  process = Command(environment, *train)
  while process.poll() is None and not (tmp_path / "samples" / "fakes_0000000064.png").exists():
    time.sleep(0.01)
  if number == signal.SIGINT:
    assert f"{tmp_path} is in use by process {process.pid} on " in refused(*train)
  process.send_signal(number)
  done = process.finish()
  assert done.returncode == INTERRUPTED, done.stderr
  (images_seen,) = re.search(rf"stopped by {number.name} at ([\d,]+) images", done.stderr).groups()
  assert (tmp_path / "checkpoints" / images_seen.replace(",", "")).exists() and not (tmp_path / "lock").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_it_starts(environment, tmp_path, number):
  process = Command(environment, "main", SMOKE, f"--workdir={tmp_path}", "--config.run.total_images=1000000")
  while process.poll() is None and not (tmp_path / "lock").exists():
    time.sleep(0.01)
  process.send_signal(number)
  done = process.finish()
  assert done.returncode == INTERRUPTED and "Traceback" not in done.stderr, done.stderr
  assert "stopped by " in done.stderr.splitlines()[-1] and not (tmp_path / "lock").exists()


def test_a_run_that_begins_anew_forgets_its_best(command, finished, tmp_path):
  shutil.copytree(finished, tmp_path / "run")
  shutil.move(tmp_path / "run" / "checkpoints", tmp_path / "run" / "best")
  command("main", SMOKE, f"--workdir={tmp_path}/run")
  assert not (tmp_path / "run" / "best").exists()
  done = command("main", SMOKE, f"--workdir={tmp_path}/run", "--config.run.total_images=32")
  assert "this run is finished, at 64 images" in done.stderr


def test_a_truncated_newest_checkpoint_falls_back(command, finished, tmp_path):
  shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
  for file in (tmp_path / "checkpoints" / "64").rglob("*"):
    if file.is_file():
      file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
  done = command("main", SMOKE, f"--workdir={tmp_path}")
  assert "checkpoints/64 cannot be read" in done.stderr
  assert "at 32 images" in done.stderr
  assert_bitwise_equal(final_state(tmp_path), final_state(finished))


DCGAN = "--config=configs/zoo/dcgan.py:smoke"
REFUSED = [
  ((SMOKE, "--config.run.micro_batch.generator=3"), "config.run.micro_batch.generator = 3 does not divide the 8"),
  ((SMOKE, "--config.batch_size=many"), "batch_size"),
  ((SMOKE, "--config.batch_size=0"), "config.batch_size = 0 must be positive"),
  (("--config=configs/no_such.py",), "no_such.py"),
  ((SMOKE, "--process_id=0"), "--coordinator, --num_processes and --process_id"),
  ((), "--config"),
  ((SMOKE, "--config.gan.loss=hinge"), "config.gan.loss = 'hinge' is unknown: choose from"),
  ((SMOKE, "--config.data.resolution=16"), "config.data.resolution = 16"),
  ((SMOKE, "--config.init_from=/nowhere"), "config.init_from = '/nowhere': /nowhere/config.json not found"),
  ((SMOKE, "--config.gan.cardinalities=(3,3)"), "config.gan.cardinalities: 3 groups"),
  ((SMOKE, "--config.gan.penalties=('r3',)"), "config.gan.penalties = ('r3',): 'r3' is unknown"),
  ((SMOKE, "--config.run.total_images=3000000000"), "config.run.total_images"),
  ((SMOKE, "--topology=v5e:2x2"), "--dry_run"),
  ((SMOKE, "--dry_run", "--topology=v9:2x2"), "unknown topology 'v9:2x2'"),
  ((SMOKE, "surplus"), "unexpected arguments ['surplus']"),
  (("--config=configs/cifar10.py:no_such",), "no variant 'no_such': choose from ['smoke', 'unconditional']"),
  (("--config=configs/imagenet64.py", "--config.run.data_path=/nowhere"), "is not prepared under"),
  (
    (SMOKE, "--config.gan.augment_p=(0.0,1.5)"),
    "config.gan.augment_p = (0.0, 1.5): 1.5 must lie between 0 and 1",
  ),
  (
    (SMOKE, "--config.gan.augment_p=(0.0,0.5)", "--config.gan.augment.hue=-1.0"),
    "-1.0 must not be negative",
  ),
  (
    (SMOKE, "--config.gan.augment_p=(0.0,0.5)", "--config.data.channels=2"),
    "config.data.channels = 2: images have 1, 3 or 4 (RGBA) channels",
  ),
  ((SMOKE, "--config.run.metrics=('sharpness',)"), "'sharpness' is unknown: choose from ['authenticity',"),
  ((SMOKE, "--config.run.best_metric=fid"), "config.run.best_metric = 'fid' needs 'fid' in config.run.metrics"),
  ((SMOKE, "--config.run.on_nonfinite=ignore"), "config.run.on_nonfinite = 'ignore' is unknown: choose from"),
  ((SMOKE, "--config.run.profile=(3,1)"), "config.run.profile = (3, 1): give the first and the last iteration"),
  ((SMOKE, "--config.run.stall_seconds=0.0"), "config.run.stall_seconds = 0.0 must be positive"),
  ((ROADMAP_A, "--config.data.num_classes=10"), "config.data.num_classes = 10: stylegan2 takes no classes"),
  ((ROADMAP_A, "--config.gan.loss=relativistic"), "loss"),
  ((ROADMAP_A, "--config.gan.augment_p=(0.0,0.5)"), "augment_p"),
  ((ROADMAP_A, "--config.data.resolution=64"), "config.gan.widths = (16, 16, 16, 16) has 4 entries"),
  ((SMOKE, "--config.gan.gamma=-1"), "config.gan.gamma = (-1.0, -1.0): -1.0 must not be negative"),
  ((SMOKE, "--config.gan.gamma=(1.0,2.0,3.0)"), "config.gan.gamma = (1.0, 2.0, 3.0): give (from, to), or one number"),
  ((SMOKE, "--config.gan.beta2=(0.9,1.5)"), "config.gan.beta2 = (0.9, 1.5): 1.5 must lie from 0 to below 1"),
  (
    (SMOKE, "--config.gan.ema_stds=(0.1,0.3)"),
    "config.gan.ema_stds = (0.1, 0.3): 0.3 must be positive and below 0.2887, 1 / sqrt(12)",
  ),
  ((SMOKE, "--config.gan.ema_stds=(0.1,0.1)"), "config.gan.ema_stds = (0.1, 0.1) names one twice"),
  (
    (SMOKE, "--config.gan.learning_rate_schedule=inverse_sqrt"),
    "config.gan.learning_rate_schedule = 'inverse_sqrt' give one number",
  ),
  ((SMOKE, "--config.gan.widths=(0,8)"), "config.gan.widths = (0, 8): 0 must be positive"),
  ((SMOKE, "--config.gan.burn_in_images=0"), "config.gan.burn_in_images = 0 must be positive"),
  ((SMOKE, "--config.seed=-1"), "config.seed = -1 must be from 0 to"),
  ((SMOKE, "--config.run.grid=(4,)"), "config.run.grid = (4,): give 2 values"),
  ((SMOKE, "--config.run.grid=(4,0)"), "config.run.grid = (4, 0): 0 must be positive"),
  ((SMOKE, "--config.run.log_every_images=-1"), "config.run.log_every_images = -1 must be positive"),
  ((SMOKE, "--config.run.keep_every_images=-1"), "config.run.keep_every_images = -1 must not be negative"),
  ((SMOKE, "--config.run.cache_gib=inf"), "config.run.cache_gib = inf must be a finite number"),
  ((SMOKE, "--config.data.resolution=0"), "config.data.resolution = 0 must be positive"),
  ((SMOKE, "--config.data.fit=stretch"), "config.data.fit = 'stretch' is unknown: choose from"),
  ((SMOKE, "--config.run.on_corrupt_image=ignore"), "config.run.on_corrupt_image = 'ignore' is unknown: choose from"),
  ((SMOKE, "--config.data.source=stacked_digits", "--config.data.num_classes=10"), "config.data.num_classes = 10"),
  ((ROADMAP_A, "--config.batch_size=6"), "config.batch_size: 6 images at a time"),
  ((ROADMAP_A, "--config.run.micro_batch.generator=2"), "config.run.micro_batch.generator: 2 images"),
  ((SMOKE, "--config.data.label_noise=0.5"), "config.data.num_classes = 0: config.data.labelled_images"),
  ((SMOKE, "--config.data.labelled_images=20"), "labelled_images = 20: r3gan cannot learn"),
  ((DCGAN, "--config.run.micro_batch.generator=2"), "micro_batch.generator = 2: dcgan needs whole batches"),
  ((DCGAN, "--config.gan.gamma=1"), "gamma"),
  ((SMOKE, "--config.run.best_metric=is"), "config.run.best_metric = 'is' is unknown: choose from ["),
  ((SMOKE, "--config.run.metrics=('fid',)"), "put https://github.com/mseitzer/pytorch-fid"),
]


@pytest.mark.parametrize("flags, message", REFUSED)
def test_bad_input_is_one_line_that_names_the_cure(refused, tmp_path, flags, message):
  assert message in refused("main", *flags, f"--workdir={tmp_path / 'run'}")
  assert not (tmp_path / "run").exists()


def test_bad_input_as_python_says_it(environment):
  """Without the detour of fork_server.py."""
  program = [sys.executable, "main.py", SMOKE, "--config.batchsize=8"]
  done = subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True)
  assert done.returncode == 2 and done.stdout == ""
  (line,) = done.stderr.splitlines()
  assert line.startswith("error: ") and "batchsize" in line


def test_another_configuration_is_refused(refused, finished):
  error = refused("main", SMOKE, f"--workdir={finished}", "--config.gan.gamma=(3.0,0.3)")
  assert "was made with config.gan.gamma = [0.3, 0.3], but now it is [3.0, 0.3]" in error


def test_divergence_stops_the_run_and_keeps_the_last_good_checkpoint(refused, tmp_path):
  error = refused("main", SMOKE, f"--workdir={tmp_path}", "--config.gan.learning_rate=(1e30,1e30)")
  assert re.search(r"training diverged at \d+ images: .* not finite.*last good checkpoint", error)
  assert np.isfinite(final_state(tmp_path).params["generator"]["to_image"]["kernel"]).all()


def test_rollbacks_come_to_an_end(command, tmp_path):
  diverging = ("--config.gan.learning_rate=(1e30,1e30)", "--config.run.on_nonfinite=rollback")
  done = command("main", SMOKE, f"--workdir={tmp_path}", *diverging, "--config.run.max_rollbacks=2", status=2)
  assert re.search(r"\(1 of 2\)(.|\n)*\(2 of 2\)(.|\n)*error: training diverged", done.stderr)


def test_a_hang_ends_with_the_reason(command, tmp_path):
  """Here compiling the first iteration takes longer than allowed."""
  done = command("main", SMOKE, f"--workdir={tmp_path}", "--config.run.stall_seconds=0.1", status=INTERRUPTED)
  assert "for 0.1 seconds (config.run.stall_seconds)" in done.stderr.splitlines()[-1]


def test_dry_run_prints_counts_memory_and_flops_and_touches_nothing(command, tmp_path):
  done = command("main", "--config=configs/cifar10.py", f"--workdir={tmp_path / 'run'}", "--dry_run")
  assert "generator parameters: 20781952" in done.stdout
  assert "discriminator parameters: 21280512" in done.stdout
  assert re.search(r"temporaries: [\d.]+ GiB", done.stdout) and re.search(r"FLOPs: 1\.\d+e\+14", done.stdout)
  assert not (tmp_path / "run").exists()


@pytest.mark.card
def test_sampling(command, refused, tmp_path):
  run = tmp_path / "run"
  train = ("--config=configs/cifar10.py:smoke", "--config.gan.augment_p=(0.0,0.0)", f"--workdir={run}")
  command("main", *train, "--config.run.total_images=8")
  command("sample", f"--workdir={run}", "--seeds=0-5", f"--out={tmp_path}/all.npz")
  command("sample", f"--workdir={run}", "--seeds=4,2", f"--out={tmp_path}/some.npz")
  command("sample", f"--workdir={run}", "--seeds=0-2", "--class=3", f"--out={tmp_path}/pictures")
  command("sample", f"--workdir={run}", "--seeds=0-3", f"--out={tmp_path}/grid.png")
  for flag, message in (
    ("--class=10", "--class=10: choose from 0 to 9"),
    ("--seeds=a-b", "'a-b' is neither a number nor a range"),
    (f"--workdir={tmp_path / 'nowhere'}", "is not a work directory"),
  ):
    assert message in refused("sample", f"--workdir={run}", f"--out={tmp_path}/x.png", flag)
  assert not (tmp_path / "x.png").exists()
  everything, some = np.load(tmp_path / "all.npz"), np.load(tmp_path / "some.npz")
  np.testing.assert_array_equal(everything["images"][[4, 2]], some["images"])
  np.testing.assert_array_equal(everything["labels"][[4, 2]], some["labels"])
  pictures = [f"class0003_seed{i:08}.png" for i in range(3)]
  assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == [*pictures, "dataset.json", "sampling.json"]
  assert picture_size(tmp_path / "grid.png") == (66, 66)


def test_the_report_of_a_run_in_a_relative_work_directory(command, finished, tmp_path):
  workdir = os.path.relpath(finished, ROOT)
  command("report", f"--workdir={workdir}", f"--curves={tmp_path}/curves.png")
  assert picture_size(tmp_path / "curves.png")[0] > 1000
  page = (finished / "report.html").read_text()
  for title in ("adversarial losses", "gradient penalties", "relativistic logits: mean sign", "gradient norms"):
    assert title in page
  assert "Nothing has been logged" not in page and "No samples" not in page and ">Other<" not in page


def test_show_augmentations(command, refused, tmp_path):
  Image.new("L", (40, 30), 200).save(tmp_path / "grey.png")
  command("show_augmentations", f"--image={tmp_path}/grey.png", "--side=16", f"--out={tmp_path}/shown.png")
  assert picture_size(tmp_path / "shown.png")[0] > 500
  (tmp_path / "text.png").write_text("no image")
  error = refused("show_augmentations", f"--image={tmp_path}/text.png", f"--out={tmp_path}/x.png")
  assert "text.png is not an image" in error
