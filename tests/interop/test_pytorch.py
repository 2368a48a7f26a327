"""State dicts written by PyTorch 2.13 (tests/golden/state_dict*.pth), and files that imitate them."""

import pickle
import random
import zipfile

import ml_dtypes
import numpy as np
import pytest
from helpers.golden_cases import GOLDEN

from r3gan_jax.errors import UserError
from r3gan_jax.interop.pytorch import Unpickler, read_state_dict

WEIGHT = np.arange(12, dtype=np.float32).reshape(3, 2, 1, 2) / 8
EXPECTED = {
  "weight": WEIGHT,
  "tail": WEIGHT.reshape(-1)[8:],
  "transposed": np.arange(6, dtype=np.int32).reshape(2, 3).T,
  "parameter": np.array([0.25]),
  "half": np.array([1.5, -2], np.float16),
  "bfloat16": np.array([1.5, -2], ml_dtypes.bfloat16),
  "flags": np.array([True, False]),
  "empty": np.zeros((0, 3), np.float32),
  "bias": np.zeros(2, np.float32),
  "running_mean": np.zeros(2, np.float32),
  "running_var": np.ones(2, np.float32),
  "num_batches_tracked": np.array(0),
}
FORMS = pytest.mark.parametrize("form", ["state_dict.pth", "state_dict_legacy.pth"])

STORAGE = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0kX\x03\0\0\0cpuK\x02tQ"
"""Opcodes of a reference to the storage "k" of two float32."""


def tensor(offset=b"K\x00", shape=b"K\x02\x85", strides=b"K\x01\x85"):
  """Returns the opcodes of a tensor in that storage."""
  return b"ctorch._utils\n_rebuild_tensor\n(" + STORAGE + offset + shape + strides + b"tR"


def entry(value):
  """Returns a pickle of {"a": value}, given the opcodes of the value."""
  return b"\x80\x02}X\x01\0\0\0a" + value + b"s."


STORED = np.array([3, 4], np.float32).tobytes()


def archive(path, pickled, storage=STORED, compression=zipfile.ZIP_STORED):
  with zipfile.ZipFile(path, "w", compression) as file:
    file.writestr("archive/data.pkl", pickled)
    file.writestr("archive/data/k", storage)
  return path


@FORMS
def test_files_of_pytorch(form):
  state = read_state_dict(GOLDEN / form)
  assert state.keys() == EXPECTED.keys() | {"weight"}
  for name, expected in EXPECTED.items():
    assert state[name].dtype == expected.dtype, name
    np.testing.assert_array_equal(state[name], expected, err_msg=name)


@FORMS
def test_as_torch_reads_it(form):
  torch = pytest.importorskip("torch")
  state = read_state_dict(GOLDEN / form)
  expected = torch.load(GOLDEN / form)
  assert list(state) == list(expected)
  for name, value in expected.items():
    np.testing.assert_array_equal(state[name].astype(np.float64), value.detach().double().numpy(), err_msg=name)


def test_npz(tmp_path):
  np.savez(tmp_path / "state.npz", weight=WEIGHT)
  np.testing.assert_array_equal(read_state_dict(tmp_path / "state.npz")["weight"], WEIGHT)
  np.savez(tmp_path / "objects.npz", weight=np.array([{}], dtype=object))
  with pytest.raises(UserError, match=r"objects\.npz cannot be read as weights"):
    read_state_dict(tmp_path / "objects.npz")


def test_as_pytorch_0_1_wrote_it(tmp_path):
  """As torchvision's VGG16: tensors of four arguments, in Parameters that set their state."""
  parameter = b"ctorch.nn.parameter\nParameter\n" + tensor() + b"\x85R(\x88\x89Ntb"
  path = archive(tmp_path / "old.pth", entry(parameter))
  np.testing.assert_array_equal(read_state_dict(path)["a"], np.array([3, 4], np.float32))


@pytest.mark.parametrize(
  "value, message",
  [
    (b"cposix\nsystem\nX\x0e\0\0\0touch EXECUTED\x85R", "posix.system, which weights do not need"),
    (b"cbuiltins\nexec\nX\x15\0\0\0open('EXECUTED', 'w')\x85R", "builtins.exec, which"),
    (b"(X\x0e\0\0\0touch EXECUTEDios\nsystem\n", "os.system, which"),  # INST
    (b"X\x0c\0\0\0torch._utilsX\x1e\0\0\0_rebuild_tensor_v2.__globals__\x93", "which weights do not need"),
    (b"ctorch\nload\n", "torch.load, which"),
    (tensor(shape=b"K\x03\x85"), "exceeds its storage"),
    (tensor(offset=b"K\x01"), "exceeds its storage"),
    (tensor(offset=b"J\xff\xff\xff\xff"), "invalid offset"),
    (tensor(shape=b"K\x02\x85", strides=b"J\xff\xff\xff\xff\x85"), "invalid offset, shape or strides"),
    (tensor(shape=b"J\xff\xff\xff\x7f\x85", strides=b"K\x00\x85"), "exceeds its storage"),
    (tensor(shape=b"]"), "invalid shape"),
    (STORAGE, "has more than tensors"),
    (b"K\x01", "has more than tensors"),
    (tensor().replace(b"FloatStorage", b"QInt8Storage"), "torch.QInt8Storage, which"),
    (tensor().replace(b"K\x02tQ", b"J\xff\xff\xff\x7ftQ"), "8 bytes, not 8589934588"),
    (tensor().replace(b"kX", b"zX"), "no item named 'archive/data/z'"),
  ],
)
def test_hostile_pickles_are_refused_and_not_executed(tmp_path, monkeypatch, value, message):
  monkeypatch.chdir(tmp_path)
  path = archive(tmp_path / "hostile.pth", entry(value))
  with pytest.raises(UserError) as error:
    read_state_dict(path)
  assert str(error.value).startswith(f"{path} cannot be read as weights: replace it (") and message in str(error.value)
  assert [file.name for file in tmp_path.iterdir()] == ["hostile.pth"]


def test_the_state_of_accepted_names_cannot_be_set(tmp_path):
  """Otherwise one file could change how the next is read."""
  path = archive(
    tmp_path / "hostile.pth", entry(b"ctorch._utils\n_rebuild_tensor\n(N}X\x0c\0\0\0__defaults__K\x01\x85stb")
  )
  with pytest.raises(UserError, match="__defaults__"):
    read_state_dict(path)
  assert Unpickler._tensor.__defaults__ is None


def test_a_memo_of_64_gib_costs_nothing(tmp_path):
  path = archive(tmp_path / "memo.pth", entry(tensor() + b"r\xff\xff\xff\xff"))
  np.testing.assert_array_equal(read_state_dict(path)["a"], np.array([3, 4], np.float32))


def test_compressed_storages_are_refused(tmp_path):
  path = archive(tmp_path / "bomb.pth", entry(tensor()), bytes(2**24), zipfile.ZIP_DEFLATED)
  with pytest.raises(UserError, match="a compressed archive/data"):
    read_state_dict(path)


@pytest.mark.parametrize("content", [b"", b"not a pickle", pickle.dumps([1, 2]), b"PK\x05\x06" + bytes(18)])
def test_other_files(tmp_path, content):
  (tmp_path / "other.pth").write_bytes(content)
  with pytest.raises(UserError, match=r"other\.pth cannot be read as weights: replace it \("):
    read_state_dict(tmp_path / "other.pth")


def test_no_file(tmp_path):
  with pytest.raises(UserError, match=r"none\.pth does not exist"):
    read_state_dict(tmp_path / "none.pth")


@FORMS
def test_truncated(tmp_path, form):
  whole = (GOLDEN / form).read_bytes()
  for length in range(0, len(whole), 37):
    (tmp_path / form).write_bytes(whole[:length])
    with pytest.raises(UserError):
      read_state_dict(tmp_path / form)


@FORMS
def test_mutated(tmp_path, form):
  """Damaged files give a clean result or a clean error."""
  whole = (GOLDEN / form).read_bytes()
  rng = random.Random(0)
  refused = 0
  for _ in range(300):
    mutated = bytearray(whole)
    for _ in range(rng.choice([1, 3, 10])):
      mutated[rng.randrange(len(whole))] = rng.randrange(256)
    (tmp_path / form).write_bytes(mutated)
    try:
      state = read_state_dict(tmp_path / form)
    except UserError:
      refused += 1
    else:
      assert all(isinstance(value, np.ndarray) for value in state.values())
  assert refused > 100
