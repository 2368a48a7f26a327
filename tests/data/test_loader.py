import itertools
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.meshes import mesh_of

from r3gan_jax.data.loader import PREFETCH, Loader
from r3gan_jax.training.mesh import batch_sharding

ROOT = Path(__file__).parent.parent.parent


class Numbered:
  """A source whose image i is filled with i, its left column with 255 - i."""

  def __init__(self, size):
    self._size = size

  def __len__(self):
    return self._size

  def __getitem__(self, indices):
    images = np.broadcast_to(indices[:, None, None, None], (len(indices), 4, 4, 1)).astype(np.uint8)
    images[:, :, 0] = 255 - images[:, :, 0]
    return {"image": images, "label": indices.astype(np.int32)}


def test_an_epoch_has_every_image_once_and_each_epoch_its_own_order():
  loader = Loader(Numbered(10), seed=0, x_flip=False)
  order = loader.indices(np.arange(30)).reshape(3, 10)
  for epoch in order:
    assert sorted(epoch) == list(range(10))
  assert (order[0] != order[1]).any() and (order[0] != np.arange(10)).any()
  assert (order != Loader(Numbered(10), seed=1, x_flip=False).indices(np.arange(30)).reshape(3, 10)).any()


def test_the_order_does_not_depend_on_how_it_is_read():
  loader = Loader(Numbered(7), seed=0, x_flip=True)
  whole = loader.indices(np.arange(100))
  pieces = [Loader(Numbered(7), seed=0, x_flip=True).indices(np.arange(start, start + 9)) for start in range(0, 90, 9)]
  np.testing.assert_array_equal(np.concatenate(pieces), whole[:90])
  scattered = np.random.default_rng(0).permutation(100)
  np.testing.assert_array_equal(loader.indices(scattered), whole[scattered])


def test_x_flip_adds_mirror_images_to_each_epoch():
  examples = Loader(Numbered(5), seed=0, x_flip=True).examples(np.arange(10))
  assert sorted(examples["label"]) == sorted([*range(5)] * 2)
  left, right = examples["image"][:, 0, 0, 0], examples["image"][:, 0, -1, 0]
  mirrored = right == 255 - examples["label"]
  assert mirrored.sum() == 5
  np.testing.assert_array_equal(np.where(mirrored, left, right), examples["label"])


@pytest.mark.parametrize("devices", [1, 4])
def test_batches_do_not_depend_on_the_first_iteration(devices):
  loader = Loader(Numbered(50), seed=0, x_flip=False)
  sharding = batch_sharding(mesh_of(devices))

  def labels(first, count):
    batches = take(loader, (4, 8), first, count, sharding)
    return [[np.asarray(batch["label"]) for batch in pair] for pair in zip(batches[::2], batches[1::2], strict=True)]

  whole = labels(0, 6)
  assert [len(batch) for batch in whole[0]] == [4, 8]
  np.testing.assert_array_equal(
    np.concatenate([labels for batches in whole for labels in batches]), loader.indices(np.arange(72))
  )
  for resumed, expected in zip(labels(4, 2), whole[4:], strict=True):
    np.testing.assert_array_equal(np.concatenate(resumed), np.concatenate(expected))


PROCESS = """
import sys
import jax, numpy as np
from r3gan_jax.data.loader import Loader
from r3gan_jax.training.mesh import batch_sharding, make_mesh
from test_loader import Numbered, take
process, count, devices, first, port, out = sys.argv[1:]
jax.config.update("jax_num_cpu_devices", int(devices))
if int(count) > 1:
  jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=int(count), process_id=int(process))
read = []
class Recording(Numbered):
  def __getitem__(self, indices):
    read.append(indices)
    return super().__getitem__(indices)
batches = take(Loader(Recording(50), 3, True), (8, 16), int(first), 4, batch_sharding(make_mesh()))
rows = {}
for n, batch in enumerate(batches):
  for shard in batch["label"].addressable_shards:
    rows |= {(n, shard.index[0].indices(24)[0] + i): int(label) for i, label in enumerate(np.asarray(shard.data))}
np.savez(out, rows=np.array([[*place, label] for place, label in rows.items()]), read=len(np.concatenate(read)))
"""


def take(loader, batch_sizes, first, count, sharding):
  """Returns the batches of `count` iterations as one list."""
  iterator = loader.iterate(batch_sizes, first, sharding)
  batches = [batch for batches in itertools.islice(iterator, count) for batch in batches]
  iterator.close()
  return batches


def test_a_run_resumed_on_other_processes_and_devices_sees_the_same_images(tmp_path):
  """One process with 1 device from the start; two processes with 2 devices each from iteration 2, in mid-epoch."""
  (tmp_path / "process.py").write_text(PROCESS)
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests" / "data")))}
  started = [
    subprocess.Popen([sys.executable, tmp_path / "process.py", *map(str, arguments)], cwd=ROOT, env=environment)
    for arguments in (
      (0, 1, 1, 0, port, tmp_path / "alone.npz"),
      (0, 2, 2, 2, port, tmp_path / "first.npz"),
      (1, 2, 2, 2, port, tmp_path / "second.npz"),
    )
  ]
  assert [process.wait(60) for process in started] == [0, 0, 0]
  alone, first, second = (np.load(tmp_path / f"{name}.npz") for name in ("alone", "first", "second"))
  # Iteration 2 starts with batch 4 of the run, which is batch 0 of the resumed one: (batch, row) -> label.
  expected = {(n - 4, row): label for n, row, label in alone["rows"].tolist() if n >= 4}
  parts = [{(n, row): label for n, row, label in part["rows"].tolist() if n < 4} for part in (first, second)]
  assert parts[0].keys().isdisjoint(parts[1]) and len(parts[0]) == len(parts[1])
  assert parts[0] | parts[1] == expected
  # Each reads only its own rows, 12 per iteration, for 4 iterations and those prefetched; all rows would be 96 or more.
  assert all(48 <= part["read"] <= 12 * (4 + PREFETCH + 1) < 96 for part in (first, second))


def test_an_error_of_the_source_reaches_the_loop():
  class Broken(Numbered):
    def __getitem__(self, indices):
      raise OSError("no such disk")

  iterator = Loader(Broken(5), seed=0, x_flip=False).iterate((4,), 0, batch_sharding(mesh_of(1)))
  with pytest.raises(OSError, match="no such disk"):
    next(iterator)
