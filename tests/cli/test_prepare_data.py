"""The command, run as a user runs it."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from image_files import write_images

from r3gan_jax.data.tfds import TfdsSource

ROOT = Path(__file__).parent.parent.parent


def command(*arguments):
  return [sys.executable, "-m", "r3gan_jax.cli.prepare_data", *map(str, arguments)]


def run(*arguments, status=0):
  done = subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == status, done.stderr
  return done


def test_a_killed_run_is_continued(tmp_path):
  """Killed after its first shard: what is finished stays, what is half-written is not taken for finished."""
  images = write_images(tmp_path / "images", 2000)
  arguments = (f"--images={tmp_path / 'images'}", "--name=pictures", "--resolution=8", f"--data_dir={tmp_path}")
  process = subprocess.Popen(command(*arguments), cwd=ROOT, stderr=subprocess.DEVNULL)
  unfinished = tmp_path / "pictures" / "1.0.0.unfinished"
  while process.poll() is None and not list(unfinished.glob("pictures-*")):
    time.sleep(0.002)
  process.send_signal(signal.SIGKILL)
  assert process.wait() == -signal.SIGKILL
  finished = {path.name: path.stat().st_ino for path in unfinished.glob("pictures-*")}
  assert 0 < len(finished) < 8

  done = run(*arguments)
  directory = tmp_path / "pictures" / "1.0.0"
  assert done.stdout.splitlines() == [
    f"2,000 images: {directory}",
    f"train on them with --config.data.name=pictures --config.run.data_path={tmp_path}",
  ]
  after = {path.name: path.stat().st_ino for path in directory.glob("pictures-*")}
  assert len(after) == 8 and finished.items() < after.items()
  source = TfdsSource("pictures", "train", str(tmp_path), (8, 8, 3), "crop_resize")
  np.testing.assert_array_equal(source[np.arange(2000)]["image"], images)


def test_skipped_images_are_named_and_counted(tmp_path):
  write_images(tmp_path / "images", 3)
  (tmp_path / "images" / "00001.png").write_text("no image")
  arguments = (f"--images={tmp_path / 'images'}", "--name=pictures", "--resolution=4", f"--data_dir={tmp_path}")
  refused = run(*arguments, status=2)
  assert "error: 00001.png in" in refused.stderr and "Traceback" not in refused.stderr
  done = run(*arguments, "--skip_corrupt", "--grey=false", "--processes=1")
  assert "left out: 00001.png in" in done.stderr
  assert done.stdout.startswith("2 images (1 corrupt ones left out): ")


@pytest.mark.parametrize(
  "arguments, message",
  [
    ((), "Exactly one of (images, idx, tfds) must have a value"),
    (("--idx=a", "--tfds=b"), "Exactly one of (images, idx, tfds) must have a value"),
    (("--images=nowhere", "--name=a"), "--resolution is missing"),
    (("--images=nowhere", "--resolution=8"), "--name is missing"),
    (("--images=nowhere", "--name=a", "--resolution=8"), "nowhere is neither a directory nor a zip"),
    (("--idx=nowhere", "--name=mnist"), "nowhere holds neither train-images-idx3-ubyte nor"),
  ],
)
def test_bad_input_is_one_line_that_names_the_cure(tmp_path, arguments, message):
  done = run(*arguments, f"--data_dir={tmp_path}", status=2)
  (line,) = done.stderr.strip().splitlines()
  assert line.startswith("error: ") and message in line


def test_data_sets_are_prepared_on_a_disk():
  done = run("--idx=nowhere", "--name=mnist", "--data_dir=gs://bucket/data", status=2)
  assert "error: --data_dir=gs://bucket/data: ArrayRecord files are written to a disk" in done.stderr
