"""Work directories and data in an object store: a local server with Google Cloud Storage's API."""

import errno
import json
import os
import re
import socket
import struct
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath
from helpers import commands
from helpers.gcs_server import BUCKET, FORBIDDEN, OBJECTS_ONLY, gcs_server
from helpers.image_files import write_idx_files, write_images, zip_directory
from helpers.states import final_state
from PIL import Image
from tensorboardX.proto import event_pb2

from r3gan_jax import locks, storage
from r3gan_jax.data.files import ImageFiles
from r3gan_jax.data.folder import FolderSource
from r3gan_jax.data.images import Decoder
from r3gan_jax.data.prepare import prepare_idx
from r3gan_jax.data.tfds import TfdsSource
from r3gan_jax.errors import UserError
from r3gan_jax.locks import holder, locked
from r3gan_jax.sampling import image_grid
from r3gan_jax.training.checkpoint import Checkpoints
from r3gan_jax.training.logging import append_line, make_writer, read_metrics
from r3gan_jax.training.workdir import claim_workdir, read_config

ROOT = Path(__file__).parent.parent
CONFIG = {"name": "x", "gamma": (1.0, 0.1), "run": {"total_images": 8}}


@pytest.fixture(scope="module")
def server(environment):
  """The bucket's objects, and the environment of a process that uses them; this process uses them from here on."""
  with gcs_server() as (objects, addresses), pytest.MonkeyPatch.context() as patch:
    for name, value in addresses.items():
      patch.setenv(name, value)
    yield objects, environment | addresses


@pytest.fixture(params=["local", "remote"])
def place(request, server, tmp_path):
  """A directory that does not exist yet, on a disk and in a bucket."""
  return epath.Path(f"gs://{BUCKET}/{tmp_path.name}" if request.param == "remote" else tmp_path / "place")


def upload(directory, objects, prefix):
  for path in directory.rglob("*"):
    if path.is_file():
      objects[f"{prefix}/{path.relative_to(directory).as_posix()}"] = path.read_bytes()


def test_files(place):
  storage.make_directory(place / "a")
  assert storage.as_path(str(place)) == place == storage.absolute(place)
  for text in ("0123\n", "4567"):
    storage.append_lines(place / "a" / "file", text)
  assert storage.read(place / "a" / "file") == b"0123\n4567"
  assert storage.read(place / "a" / "file", 2, 6) == b"23\n4"
  storage.append_lines(place / "a" / "file", "89\n")  # the line before it was cut off
  assert storage.read(place / "a" / "file") == b"0123\n4567\n89\n"
  for index in range(12):
    (place / f"{index}").write_text("x" * index)
  names = ["a/file", *map(str, range(12))]
  if storage.is_remote(place):
    before = storage.remote_versions(place)
    assert sorted(before) == sorted(names)
    (place / "7").write_text("y" * 7)
    after = storage.remote_versions(place)
    assert [name for name in names if before[name] != after[name]] == ["7"]


def test_whole_files(place):
  """The directory is created, old content replaced, and nothing else left beside the file."""
  path = place / "new" / "file"
  for content in ("old", b"new"):
    storage.write_whole(path, content)
  assert path.read_bytes() == b"new"
  storage.write_npz(path.with_name("x.npz"), {"x": np.arange(3)})
  with np.load(BytesIO(path.with_name("x.npz").read_bytes())) as arrays:
    assert arrays["x"].tolist() == [0, 1, 2]
  assert sorted(file.name for file in path.parent.iterdir()) == ["file", "x.npz"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_write_leaves_the_old_file(place, error):
  path = place / "file"
  storage.write_whole(path, "old")
  with pytest.raises(error), storage.whole_file(path) as file:
    file.write(b"ne" * 10_000)
    raise error
  assert [(found.name, found.read_text()) for found in place.iterdir()] == [("file", "old")]


def test_readers_and_writers_at_the_same_time(tmp_path):
  """Writers do not share a temporary file, and a reader finds the whole content of one of them."""
  path, contents = tmp_path / "file", [bytes([n]) * 100_000 for n in range(4)]
  storage.write_whole(path, contents[0])
  with ThreadPoolExecutor(len(contents)) as threads:
    writes = [threads.submit(storage.write_whole, path, content) for content in contents * 20]
    while not all(write.done() for write in writes):
      assert path.read_bytes() in contents
    for write in writes:
      write.result()
  assert [found.name for found in tmp_path.iterdir()] == ["file"]


def test_links_and_pipes_stay(tmp_path):
  (tmp_path / "elsewhere").mkdir()
  (tmp_path / "link").symlink_to("elsewhere/file")
  for content in ("old", "new"):
    storage.write_whole(tmp_path / "link", content)
    assert (tmp_path / "link").is_symlink() and (tmp_path / "elsewhere" / "file").read_text() == content
  os.mkfifo(tmp_path / "pipe")
  with ThreadPoolExecutor(1) as threads:
    read = threads.submit((tmp_path / "pipe").read_bytes)
    storage.write_whole(tmp_path / "pipe", "through")
    assert read.result() == b"through" and (tmp_path / "pipe").is_fifo()
  assert sorted(path.name for path in tmp_path.rglob("*")) == ["elsewhere", "file", "link", "pipe"]


def test_a_full_disk_leaves_the_old_file(tmp_path):
  (tmp_path / "file").write_text("old")
  program = """
import resource, signal, sys
from r3gan_jax.storage import write_whole
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
write_whole(sys.argv[1], "x" * 5000)
"""
  command = [sys.executable, "-c", program, str(tmp_path / "file")]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert "File too large" in done.stderr
  assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "old")]


@pytest.fixture
def soon(monkeypatch):
  """Locks in a store give a sign of life more often."""
  monkeypatch.setattr(locks, "BEAT_SECONDS", 0.2)
  monkeypatch.setattr(locks, "_SETTLING_SECONDS", 0.02)


@pytest.mark.usefixtures("soon")
def test_a_lock_names_its_holder(place):
  for _ in range(2):
    with locked(place / "lock", "the run"):
      first = holder(place / "lock")
      message = rf"the run is in use by process {os.getpid()} on {socket.gethostname()} since \d{{4}}-"
      with pytest.raises(UserError, match=message), locked(place / "lock", "the run"):
        pass
      assert holder(place / "lock") == first
    assert not (place / "lock").exists()


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("content", ["", "{", '{"process": 1, "host": "x", "since": "1970", "id": "y"}\n7\n'])
def test_a_stale_lock_is_taken_over(place, content):
  """As a killed process leaves it."""
  storage.make_directory(place)
  (place / "lock").write_text(content)
  with locked(place / "lock", "the run"):
    assert json.loads(holder(place / "lock"))["process"] == os.getpid()
  assert not (place / "lock").exists()


def test_a_process_that_was_away_for_long_ends_when_its_lock_was_taken_over(server):
  """It must not save: another process writes the same directory."""
  program = """
import time
from etils import epath
from r3gan_jax import locks
locks.BEAT_SECONDS = locks._SETTLING_SECONDS = 0.1
path = epath.Path("gs://%s/taken/lock")
with locks.locked(path, "the run"):
  path.write_text('{"process": 1, "host": "other", "since": "1970", "id": "y"}')
  time.sleep(60)
"""
  command = [sys.executable, "-c", program % BUCKET]
  done = subprocess.run(command, cwd=ROOT, env=server[1], capture_output=True, text=True)
  assert done.returncode == 2 and "the run is in use by process 1 on other since 1970" in done.stderr
  epath.Path(f"gs://{BUCKET}/taken/lock").unlink()  # the other's


def test_a_lock_removed_by_hand_is_no_fault(tmp_path):
  with locked(tmp_path / "lock", "the run"):
    (tmp_path / "lock").unlink()


def test_a_disk_without_locks(tmp_path, monkeypatch, caplog):
  def flock(*_):
    raise OSError(errno.ENOLCK, "No locks available")

  monkeypatch.setattr(locks.fcntl, "flock", flock)
  with locked(tmp_path / "lock", "the run"):
    assert "the run: its file system has no locks" in caplog.text


def test_a_work_directory(place):
  claim_workdir(str(place), CONFIG)
  claim_workdir(str(place), CONFIG | {"run": {"total_images": 16}})
  assert read_config(str(place)) == json.loads(json.dumps(CONFIG | {"run": {"total_images": 16}}))
  with pytest.raises(UserError, match=r"was made with config.gamma = \[1.0, 0.1\], but now"):
    claim_workdir(str(place), CONFIG | {"gamma": (2.0, 0.1)})
  (place / "config.json").unlink()
  (place / "thesis.tex").write_text("precious")
  with pytest.raises(UserError, match="is not empty"):
    claim_workdir(str(place), CONFIG)
  with pytest.raises(UserError, match="not a work directory"):
    read_config(str(place))
  assert [path.name for path in place.iterdir()] == ["thesis.tex"]


def events(directory):
  """Returns (images seen, tag, value) of all event files, in TensorBoard's order."""
  found = []
  for path in sorted(directory.iterdir()):
    data = path.read_bytes()
    while data:
      size = struct.unpack_from("<Q", data)[0]
      event = event_pb2.Event.FromString(data[12 : 12 + size])
      data = data[16 + size :]
      found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
  return found


def test_logs(place):
  """A flush writes everything so far, and keeps what another process wrote before."""
  storage.make_directory(place)
  image = np.zeros((1, 2, 2, 3), np.uint8)
  for start in (0, 2):  # the second writer continues the first's log
    writer = make_writer(place)
    for step in (start, start + 1):
      writer.write_scalars(step, {"loss": 0.5 * step})
      writer.write_images(step, {"samples": image})
      writer.flush()
      append_line(place / "metrics.jsonl", step, {"metrics/fid": 1.0})
    writer.close()
  metrics = read_metrics(place)
  np.testing.assert_array_equal(metrics["loss"], [[0, 1, 2, 3], [0, 0.5, 1, 1.5]])
  np.testing.assert_array_equal(metrics["metrics/fid"][0], [0, 1, 2, 3])
  logged = [(step, tag, value) for step in range(4) for tag, value in (("loss", 0.5 * step), ("samples", 0))]
  assert sorted(events(place / "tensorboard")) == logged


@pytest.mark.parametrize("kind", ["directory", zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_images(server, tmp_path, kind):
  images = np.concatenate([write_images(tmp_path / "images" / name, 7, first=ord(name)) for name in "ab"])
  if kind != "directory":
    zip_directory(tmp_path / "images", tmp_path / "images.zip", kind)
  upload(tmp_path, server[0], tmp_path.name)
  path = f"gs://{BUCKET}/{tmp_path.name}/images" + (".zip" if kind != "directory" else "")
  examples = FolderSource(path, (8, 8), Decoder(3), num_classes=2)[np.arange(14)]
  np.testing.assert_array_equal(examples["image"], images)
  np.testing.assert_array_equal(examples["label"], [0] * 7 + [1] * 7)
  assert len(set(ImageFiles(path).fingerprints())) == 14


def test_idx_files(server, tmp_path):
  splits = write_idx_files(tmp_path)
  upload(tmp_path, server[0], tmp_path.name)
  prepare_idx(epath.Path(f"gs://{BUCKET}/{tmp_path.name}"), "mnist", tmp_path / "data")
  read = TfdsSource("mnist", "train", str(tmp_path / "data"), (28, 28), Decoder(1), "pad")[np.arange(12)]
  np.testing.assert_array_equal(read["image"][..., 0], splits["train"][0])


def claim(path):
  claim_workdir(path, CONFIG)


def tfds_source(path):
  return TfdsSource("mnist", "train", path, (28, 28), Decoder(1), "pad")


@pytest.mark.parametrize(
  "act, path, message",
  [
    (claim, FORBIDDEN, "cannot write to the work directory gs://forbidden/x: Forbidden: .*another --workdir"),
    (claim, "absent", "cannot write to the work directory gs://absent/x: no such bucket or file"),
    (read_config, FORBIDDEN, "config.json cannot be read: Forbidden"),
    (read_config, "absent", "is not a work directory"),
    (ImageFiles, FORBIDDEN, "cannot read gs://forbidden/x: Forbidden"),
    (ImageFiles, "absent", "gs://absent/x is neither a directory nor a zip"),
    (tfds_source, BUCKET, r"config.run.data_path = gs://bucket/x: prepared data sets are read from local disks"),
  ],
)
def test_unusable_paths(server, act, path, message):
  with pytest.raises(UserError, match=message) as error:
    act(f"gs://{path}/x")
  assert "\n" not in str(error.value)
  assert not any(name.startswith("x/") for name in server[0])


def test_checkpoints_need_access_to_the_bucket_itself(server):
  server[0]["kept/8/file"] = b""
  with pytest.raises(UserError, match=r"^cannot use gs://objects-only/kept: 403 .*: so says the server$"):
    Checkpoints(f"gs://{OBJECTS_ONLY}/kept")


def test_unknown_kinds_of_paths():
  with pytest.raises(UserError, match=r"ftp://host/run .* gs://"):
    claim_workdir("ftp://host/run", CONFIG)


def test_without_gcsfs_the_error_names_the_package(server):
  program = (
    "import sys; sys.modules['gcsfs'] = None; from r3gan_jax.training.workdir import read_config; "
    "read_config('gs://bucket/run')"
  )
  done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=server[1], capture_output=True, text=True)
  line = done.stderr.splitlines()[-1]
  message = "gs://bucket/run/config.json cannot be read: install gcsfs: pip install -e '.[gcs]'"
  assert line.startswith(f"r3gan_jax.errors.UserError: {message}")


def test_a_run_in_a_bucket_is_the_run_on_a_disk(server, tmp_path):
  """It is trained, loses its last save, has the checkpoint before damaged, resumes, is scored, sampled and reported."""
  objects, environment = server
  command = partial(commands.run, environment)
  run = f"gs://{BUCKET}/run"
  train = ("main", "--config=configs/stacked_digits.py:smoke", "--config.data.source=stacked_digits")
  settings = {"metrics": "('modes',)", "best_metric": "modes", "metric_samples": 60, "keep_checkpoints": 3}
  settings |= {"snapshot_every_images": 8, "log_every_images": 8}
  train += tuple(f"--config.run.{name}={value}" for name, value in settings.items())
  command(*train, f"--workdir={tmp_path / 'run'}", "--config.run.total_images=32")
  command(*train, f"--workdir={run}", "--config.run.total_images=24")
  unfinished = {name for name in objects if name.startswith("run/checkpoints/24/state/ocdbt.process_0/d/")}
  assert unfinished and objects.pop("run/checkpoints/24/commit_success.txt")
  for name in [name for name in objects if name.startswith("run/checkpoints/16/")]:
    objects[name] = objects[name][: len(objects[name]) // 2]
  done = command(*train, f"--workdir={run}", "--config.run.total_images=32")
  assert re.search(r"resumed from gs://bucket/run/checkpoints at 8 images", done.stderr)
  arguments = (f"--workdir={run}", "--metrics=modes", "--num_samples=60", "--checkpoint=best")
  shown = command("evaluate", *arguments).stdout
  command("sample", f"--workdir={run}", "--seeds=0-7", f"--out=gs://{BUCKET}/samples.npz")
  command("report", f"--workdir={run}")

  checkpoints = {name.split("/")[2] for name in objects if name.startswith("run/checkpoints/")}
  assert checkpoints == {"16", "24", "32", "damaged-16"}  # 0 and 8 are deleted
  assert not unfinished & objects.keys()
  for name, data in objects.items():
    (tmp_path / "bucket" / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "bucket" / name).write_bytes(data)
  expected, actual = tmp_path / "run", tmp_path / "bucket" / "run"
  jax.tree.map(np.testing.assert_array_equal, final_state(actual), final_state(expected))
  grids = sorted((expected / "samples").iterdir())
  assert len(grids) == 6
  for grid in grids:
    assert (actual / "samples" / grid.name).read_bytes() == grid.read_bytes()
  metrics, expected_metrics = read_metrics(actual), read_metrics(expected)
  for name in (name for name in metrics if not name.startswith("progress/")):
    np.testing.assert_array_equal(metrics[name], expected_metrics[name])
  assert {name for name, _ in metrics.items()} == expected_metrics.keys()
  (best,) = (path.name for path in (actual / "best").iterdir())
  assert [path.name for path in (expected / "best").iterdir()] == [best]
  assert re.search(rf"images_seen +{best}\n", shown)
  with np.load(BytesIO(objects["samples.npz"])) as samples, Image.open(grids[-2]) as grid:
    np.testing.assert_array_equal(np.asarray(grid), image_grid(samples["images"], 4).repeat(6, 0).repeat(6, 1))
  assert b"No samples" not in objects["run/report.html"] and b"of 32" in objects["run/report.html"]
