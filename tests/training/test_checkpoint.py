"""Checkpoints are complete or absent, and exact; a damaged one is never mistaken for a good one."""

import gc
import resource
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.meshes import mesh_of
from helpers.states import arrays_of

from r3gan_jax.errors import UserError
from r3gan_jax.training.checkpoint import BestCheckpoint, Checkpoints
from r3gan_jax.training.mesh import replicated
from r3gan_jax.training.state import TrainState


def make_state(images_seen, devices=1):
  random = np.random.default_rng(images_seen)

  def weights():
    return {"w": jnp.asarray(random.standard_normal((64, 64)), jnp.float32)}

  state = TrainState(
    params={"generator": weights()},
    optimizer={"generator": (jnp.int32(images_seen), weights())},
    ema={"generator": weights()},
    carry={},
    rng=jax.random.key(images_seen),
    images_seen=jnp.int32(images_seen),
    rollbacks=jnp.int32(0),
  )
  return jax.device_put(state, replicated(mesh_of(devices)))


def abstract(devices=1):
  sharding = replicated(mesh_of(devices))
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), make_state(0))


def assert_same(actual, expected):
  jax.tree.map(np.testing.assert_array_equal, arrays_of(actual), arrays_of(expected))


def saved(directory, *counts, **options):
  checkpoints = Checkpoints(directory, **options)
  for count in counts:
    checkpoints.save(make_state(count))
  checkpoints.close()
  return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())


@pytest.mark.parametrize("devices", [1, 8])
def test_round_trip_to_any_number_of_devices(tmp_path, devices):
  saved(tmp_path, 5)
  state = Checkpoints(tmp_path).restore_latest(abstract(devices))
  assert_same(state, make_state(5))
  assert len(state.params["generator"]["w"].sharding.device_set) == devices


def test_a_donated_state_is_saved_as_it_was(tmp_path):
  """Saving is asynchronous and the next step overwrites the state's memory."""
  checkpoints = Checkpoints(tmp_path)
  overwrite = jax.jit(lambda state: jax.tree.map(lambda x: x * 0, state), donate_argnums=0)
  state = make_state(5)
  parts = state.replace(rng=None)
  checkpoints.save(state)
  jax.block_until_ready(overwrite(parts))
  checkpoints.close()
  assert_same(Checkpoints(tmp_path).restore_latest(abstract()), make_state(5))


def test_nothing_saved_yet(tmp_path):
  assert Checkpoints(tmp_path / "new").restore_latest(abstract()) is None


def test_keeps_the_last_and_multiples(tmp_path):
  assert saved(tmp_path / "last", 1, 2, 3, 4, keep_last=2) == [3, 4]
  assert saved(tmp_path / "multiples", 5, 6, 10, 11, 12, keep_last=1, keep_every_images=5) == [5, 10, 12]


def test_keeps_the_first_at_or_after_each_multiple(tmp_path):
  """Also if a run resumes, and if snapshots are rarer than multiples."""
  for counts in ((3, 6), (9, 12, 15), (18, 48, 51)):
    kept = saved(tmp_path, *counts, keep_last=1, keep_every_images=10)
  assert kept == [12, 48, 51]  # 48 is the first after 20, 30 and 40; 12 after 10


@pytest.fixture
def collected(caplog):
  """Collects the readers and writers that Orbax abandons when one fails, so that no other test sees their warnings."""
  yield
  caplog.get_records("call").clear()  # records refer to them
  gc.collect()


def damages(test):
  test = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")(test)
  return pytest.mark.usefixtures("collected")(test)


def files(directory):
  return sorted(path for path in directory.rglob("*") if path.is_file())


@damages
def test_any_damage_falls_back_to_the_previous_checkpoint(tmp_path):
  """Truncates, removes and flips a bit of each file of the newest checkpoint: either it still restores exactly, or the
  damage is detected and the previous one is used."""
  saved(tmp_path / "good", 1, 2, keep_last=2)
  newest = tmp_path / "good" / "2"
  noticed = 0
  for i, file in enumerate(files(newest)):
    for damage in ("truncate", "remove", "flip"):
      copy = tmp_path / f"{i}{damage}"
      shutil.copytree(tmp_path / "good", copy)
      damaged = copy / "2" / file.relative_to(newest)
      if damage == "truncate":
        damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
      elif damage == "flip":
        data = bytearray(damaged.read_bytes()) or bytearray(1)
        data[len(data) // 2] ^= 1
        damaged.write_bytes(data)
      else:
        damaged.unlink()
      checkpoints = Checkpoints(copy)
      state = checkpoints.restore_latest(abstract())
      assert_same(state, make_state(int(state.images_seen)))
      if state.images_seen == 1:
        noticed += 1
        checkpoints.set_aside_after(1)
        checkpoints.save(make_state(2))
      checkpoints.close()
      assert_same(Checkpoints(copy).restore_latest(abstract()), make_state(2))
  assert noticed >= 4


def test_damaged_twice_at_one_step(tmp_path):
  saved(tmp_path, 1, 2, keep_last=2)
  for names in ({"damaged-2"}, {"damaged-2", "damaged-2-2"}):
    checkpoints = Checkpoints(tmp_path, keep_last=2)
    checkpoints.set_aside_after(1)
    checkpoints.save(make_state(2))
    checkpoints.close()
    assert {path.name for path in tmp_path.iterdir()} == {"1", "2"} | names


def test_what_a_killed_process_left_is_removed(tmp_path):
  (tmp_path / "1.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
  saved(tmp_path, 2)
  assert [path.name for path in tmp_path.iterdir()] == ["2"]


@damages
def test_nothing_readable(tmp_path):
  saved(tmp_path, 1)
  for file in files(tmp_path):
    file.write_bytes(b"")
  before = files(tmp_path)
  with pytest.raises(UserError, match="none of the checkpoints"):
    Checkpoints(tmp_path).restore_latest(abstract())
  assert files(tmp_path) == before


@damages
@pytest.mark.parametrize("part", [False, True])
def test_a_checkpoint_that_a_training_removes_while_it_is_read(tmp_path, monkeypatch, part):
  """The newest one that then exists is read, also if some of the removed one's files are still there."""
  saved(tmp_path, 1, 2, keep_last=2)
  reader = Checkpoints(tmp_path)
  restore = reader._manager.restore

  def after_removal(step, **rest):
    if step == 2:
      saved(tmp_path, 3)
      if part:
        (tmp_path / "2" / "state").mkdir(parents=True)
    return restore(step, **rest)

  monkeypatch.setattr(reader._manager, "restore", after_removal)
  assert_same(reader.restore_latest(abstract()), make_state(3))


def test_a_reader_leaves_what_a_training_is_saving(tmp_path):
  saved(tmp_path, 1)
  (tmp_path / "2.orbax-checkpoint-tmp").mkdir()
  reader = Checkpoints(tmp_path)
  assert_same(reader.restore_latest(abstract()), make_state(1))
  reader.close()
  assert (tmp_path / "2.orbax-checkpoint-tmp").exists()


def test_a_chosen_checkpoint_that_is_gone_names_those_that_exist(tmp_path):
  saved(tmp_path, 1, 2, keep_last=2)
  reader = Checkpoints(tmp_path)
  shutil.rmtree(tmp_path / "1")
  with pytest.raises(UserError, match=r"no checkpoint at 1 images: choose from \[2\]"):
    reader.restore_latest(abstract(), images_seen=1)


@pytest.mark.parametrize("mode, kept", [("min", [1, 1, 3, 3]), ("max", [1, 2, 2, 2])])
def test_the_best_is_kept(tmp_path, mode, kept):
  for images_seen, score, expected in zip((1, 2, 3, 4), (5.0, 6.0, 4.0, 4.5), kept, strict=True):
    best = BestCheckpoint(tmp_path, "score", mode)  # as in a resumed run
    best.offer(make_state(images_seen), {"score": score, "other": 0.0})
    best.close()
    assert [int(path.name) for path in tmp_path.iterdir()] == [expected]
    assert_same(Checkpoints(tmp_path).restore_latest(abstract()), make_state(expected))


def test_the_best_of_an_older_state_replaces_a_newer_one(tmp_path):
  best = BestCheckpoint(tmp_path, "score", "min")
  for images_seen, score in ((5, 2.0), (3, 1.0), (4, 1.5), (3, 1.0)):
    best.offer(make_state(images_seen), {"score": score})
  best.close()
  assert [path.name for path in tmp_path.iterdir()] == ["3"]
  other = BestCheckpoint(tmp_path, "other", "max")
  other.offer(make_state(3), {"other": -1.0})
  other.offer(make_state(4), {"other": 0.0})
  other.close()
  assert [path.name for path in tmp_path.iterdir()] == ["4"]


@damages
@pytest.mark.parametrize("kind", ["last", "best"])
def test_a_save_that_fails_while_writing(tmp_path, caplog, kind):
  """The file system rejects the arrays although there was room: it is logged once, and the next save succeeds."""
  checkpoints = Checkpoints(tmp_path) if kind == "last" else BestCheckpoint(tmp_path, "score", "min")

  def save(images_seen, score):
    if kind == "last":
      checkpoints.save(make_state(images_seen))
    else:
      checkpoints.offer(make_state(images_seen), {"score": score})
    while checkpoints._manager.is_saving_in_progress():
      time.sleep(0.05)

  save(1, 2.0)
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  try:
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))  # bytes per file; an array has 16384
    save(2, 0.5)
    if kind == "last":
      assert checkpoints.failed() and not checkpoints.failed()
    save(2, 0.5)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert [path.name for path in tmp_path.iterdir() if path.name.isdigit()] == ["1"]
  save(3, 1.0)
  assert caplog.text.count("no checkpoint was written") == 1 and "OUT_OF_RANGE" in caplog.text
  if kind == "last":
    assert not checkpoints.failed() and checkpoints.finish()
  checkpoints.close()
  assert [path.name for path in tmp_path.iterdir()] == ["3"]
  assert_same(Checkpoints(tmp_path).restore_latest(abstract()), make_state(3))
