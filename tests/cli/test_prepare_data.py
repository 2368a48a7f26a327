"""The command as a user runs it, interrupted in several ways."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from helpers import commands
from helpers.image_files import write_images

from r3gan_jax.data.images import Decoder
from r3gan_jax.data.tfds import TfdsSource

ROOT = Path(__file__).parent.parent.parent


def shards(directory):
  """Returns name -> inode of the finished shards; a rewritten shard has another inode."""
  return {path.name: path.stat().st_ino for path in directory.glob("pictures-*")}


def started(unfinished, arguments, more):
  """Starts the command, and returns it when it has finished another shard."""
  before = len(shards(unfinished))
  # When the tests run in the background, SIGINT is ignored, and child processes inherit that.
  heed = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
  command = [sys.executable, "-c", heed, sys.executable, "-m", "r3gan_jax.cli.prepare_data", *arguments, *more]
  process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
  while process.poll() is None and len(shards(unfinished)) == before:
    time.sleep(0.002)
  return process


def children(process):
  """Returns the ids of the worker processes; a pool has another child, which tracks semaphores."""
  found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
  return [int(child) for child in found if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def test_an_interrupted_preparation_continues(command, tmp_path):
  """After Ctrl-C, the death of a worker and SIGKILL: finished shards stay, and unfinished ones are written again."""
  images = write_images(tmp_path / "images", 2000)
  arguments = (f"--images={tmp_path / 'images'}", "--name=pictures", "--resolution=8", f"--data_dir={tmp_path}")
  unfinished = tmp_path / "pictures" / "1.0.0.unfinished"

  process = started(unfinished, arguments, ("--processes=2",))
  workers = children(process)
  process.send_signal(signal.SIGINT)
  (line,) = process.communicate()[1].splitlines()
  assert process.returncode == 130 and "the same command continues" in line
  assert len(workers) == 2 and not any(Path(f"/proc/{worker}").exists() for worker in workers)
  first = shards(unfinished)

  process = started(unfinished, arguments, ("--processes=2",))
  os.kill(children(process)[0], signal.SIGKILL)
  (line,) = process.communicate()[1].splitlines()
  assert process.returncode == 2 and line.startswith("error: a worker process was killed")
  assert first.items() < shards(unfinished).items()

  process = started(unfinished, arguments, ("--processes=1",))
  process.kill()
  process.communicate()
  assert process.returncode == -signal.SIGKILL
  finished = shards(unfinished)
  assert 0 < len(finished) < 8

  done = command("prepare_data", *arguments)
  directory = tmp_path / "pictures" / "1.0.0"
  assert done.stdout.splitlines() == [
    f"2,000 images in {tmp_path / 'images'}: 8x8, 2,000 RGB; no classes; passed over: nothing",
    f"2,000 images in {directory}: 8x8, RGB; no classes",
    f"train on it with --config.data.name=pictures --config.run.data_path={tmp_path}",
  ]
  after = shards(directory)
  assert len(after) == 8 and finished.items() < after.items()
  source = TfdsSource("pictures", "train", str(tmp_path), (8, 8), Decoder(3), "crop_resize")
  np.testing.assert_array_equal(source[np.arange(2000)]["image"], images)


def test_skipped_images_are_named_and_counted(command, refused, tmp_path):
  write_images(tmp_path / "images", 3)
  (tmp_path / "images" / "00001.png").write_text("no image")
  arguments = (f"--images={tmp_path / 'images'}", "--name=pictures", "--resolution=4", f"--data_dir={tmp_path}")
  assert refused("prepare_data", *arguments).startswith("00001.png in")
  done = command("prepare_data", *arguments, "--skip_corrupt", "--grey=false", "--processes=1")
  assert "left out: 00001.png in" in done.stderr
  assert "3 images in" in done.stdout and ", 1 damaged; " in done.stdout
  assert "2 images (1 corrupt images left out) in " in done.stdout


def test_a_data_set_that_tfds_would_not_find_by_name_is_referred_to_by_directory(command, tmp_path):
  """TFDS has configurations of imagenet_resized, and would look for those."""
  write_images(tmp_path / "images", 1)
  arguments = (f"--images={tmp_path}/images", "--name=imagenet_resized", "--resolution=8", f"--data_dir={tmp_path}/d")
  done = command("prepare_data", *arguments)
  directory = tmp_path / "d" / "imagenet_resized" / "1.0.0"
  assert done.stdout.splitlines()[-1] == f"train on it with --config.run.data_path={directory}"
  assert len(TfdsSource("", "train", str(directory), (8, 8), Decoder(3), "crop_resize")) == 1


def test_bad_input_is_one_line_that_names_the_cure(refused, tmp_path):
  write_images(tmp_path / "images", 1)
  cases = [
    ((), "Exactly one of (images, pairs, idx, tfds, prepared) must have a value"),
    (("--idx=a", "--tfds=b"), "Exactly one of (images, pairs, idx, tfds, prepared) must have a value"),
    (("--images=nowhere", "--name=a"), "--resolution is missing"),
    (("--images=nowhere", "--resolution=8"), "--name is missing"),
    (("--images=nowhere", "--name=a", "--resolution=8"), "nowhere is neither a directory nor a zip"),
    (("--idx=nowhere", "--name=mnist"), "nowhere has neither train-images-idx3-ubyte nor"),
    (("--images=", "--name=a", "--resolution=8"), "--images is empty"),
    (("--idx=", "--name=mnist"), "--idx is empty"),
    (("--tfds=",), "--tfds is empty"),
    (("--prepared=a", "--name=b"), "--encode is missing"),
    (("--prepared=a", "--name=b", "--encode=sd-vae", "--weights=nowhere"), "nowhere does not exist"),
    (("--idx=a", "--name=mnist", "--resolution=8"), "--resolution does not go with --idx"),
    (("--idx=a", "--name=mnist", "--nogrey"), "--grey does not go with --idx"),
    (("--tfds=cifar10", "--name=mine"), "--name does not go with --tfds"),
    (("--pairs=", "--name=a"), "--pairs is empty"),
    (("--pairs=a", "--name=b", "--bits=16"), "--bits does not go with --pairs"),
    (("--images=a", "--direction=BtoA"), "--direction does not go with --images"),
    (("--images=a", "--manual_dir=b"), "--manual_dir does not go with --images"),
    ((f"--images={tmp_path}/images", "--name=a", "--resolution=8", "--background=whyte"), "background 'whyte' is"),
    (
      ("--idx=nowhere", "--name=mnist", "--data_dir=gs://bucket/data"),
      "--data_dir=gs://bucket/data: ",
    ),
  ]
  for arguments, message in cases:
    assert message in refused("prepare_data", f"--data_dir={tmp_path}", *arguments)


def test_home_is_expanded_after_an_equals_sign(environment, tmp_path):
  write_images(tmp_path / "images", 1)
  arguments = ("--images=~/images", "--name=a", "--resolution=8", "--data_dir=~/data")
  commands.run(environment | {"HOME": str(tmp_path)}, "prepare_data", *arguments)
  assert (tmp_path / "data" / "a" / "1.0.0").is_dir()
