"""The official snapshots of tests/golden, and files that imitate them."""

import functools
import io
import itertools
import os
import pickle
import pickletools
import random
import re
import time
import tracemalloc
import zipfile

import jax
import ml_dtypes
import numpy as np
import pytest
from helpers import golden_cases, official_pickles

from r3gan_jax.errors import UserError
from r3gan_jax.interop.official import read_snapshot
from r3gan_jax.interop.official_names import official_parameters, resampling_kernels, to_params, to_state_dict

LETTERS = {"generator": "G", "discriminator": "D"}


@golden_cases.cases
def test_the_networks(case):
  snapshot, golden = read_snapshot(official_pickles.path(case)), golden_cases.load(case)
  expected = golden.algorithm
  for ours, theirs in ((snapshot.generator, expected.generator), (snapshot.discriminator, expected.discriminator)):
    unused = () if expected.num_classes else ("embed_dim",)
    for name in {"widths", "cardinalities", "blocks", "noise_dim", "num_classes", "embed_dim", "expansion"} - {*unused}:
      assert getattr(ours, name, None) == getattr(theirs, name, None), name
  assert snapshot.generator.image_channels == 3 and snapshot.generator.bfloat16_stages == 0
  assert snapshot.images_seen == 123456

  arrays, labels = golden.arrays, golden.labels
  generate = jax.jit(lambda params: snapshot.generator.apply({"params": params}, arrays["z"], labels))
  for params, images in ((snapshot.params["generator"], "fake"), (snapshot.ema, "ema_fake")):
    np.testing.assert_allclose(generate(params), arrays[images], rtol=1e-5, atol=1e-5 * np.abs(arrays[images]).max())
  discriminate = jax.jit(lambda images: snapshot.discriminator.apply({"params": params}, images, labels))
  params = snapshot.params["discriminator"]
  for images in ("real", "fake"):
    logits = arrays[f"{images}_logits"]
    np.testing.assert_allclose(discriminate(arrays[images]), logits, rtol=1e-5, atol=1e-5 * np.abs(logits).max())


@golden_cases.cases
def test_there_and_back_bit_for_bit(case):
  """Compared with an independent reader of the file."""
  snapshot, official = read_snapshot(official_pickles.path(case)), official_pickles.read(case)
  for name, letter in LETTERS.items():
    network = getattr(snapshot, name)
    parameters = official_pickles.calls(official[letter])
    trees = {letter: snapshot.params[name]} | ({"G_ema": snapshot.ema} if letter == "G" else {})
    for key, tree in trees.items():
      expected = official_pickles.calls(official[key]) | official_pickles.calls(official[key], "_buffers")
      state = to_state_dict(network, tree) | resampling_kernels(network)
      assert state.keys() == expected.keys()
      for tensor, call in expected.items():
        assert state[tensor].dtype == np.float32
        np.testing.assert_array_equal(state[tensor], official_pickles.array(call), err_msg=tensor)
      again = to_params(network, state)
      jax.tree.map(np.testing.assert_array_equal, again, tree)
    adam = official[f"{letter}_opt_state"]["state"]
    moments = to_state_dict(network, snapshot.second_moments[name])
    for index, tensor in enumerate(parameters):
      np.testing.assert_array_equal(moments[tensor], official_pickles.array(adam[index]["exp_avg_sq"]), err_msg=tensor)
    assert snapshot.updates[name] == official_pickles.array(adam[0]["step"]) == 1


@golden_cases.cases
def test_shapes_are_those_of_the_modules(case):
  """`official_parameters` and Flax agree on all names and shapes."""
  algorithm = golden_cases.load(case).algorithm
  trees = jax.eval_shape(lambda: algorithm.init(jax.random.key(0))[0])
  for name, tree in trees.items():
    network = getattr(algorithm, name)
    zeros = {key: np.zeros(shape, np.float32) for key, _, shape in official_parameters(network)}
    assert jax.tree.map(np.shape, to_params(network, zeros)) == jax.tree.map(lambda leaf: leaf.shape, tree)


@pytest.fixture
def official():
  return official_pickles.read("cond_8px")


def test_module_names_of_the_published_snapshots(tmp_path, monkeypatch, official):
  """They have the names that the implementation had before it was renamed."""
  for module, classes in list(official_pickles.MODULES.items()):
    if module.startswith(("R3GAN", "training")):
      earlier = module.replace("R3GAN", "BaselineGAN").replace("training.networks", "training.networks_baseline")
      monkeypatch.setitem(official_pickles.MODULES, earlier, classes)
      monkeypatch.delitem(official_pickles.MODULES, module)
      for cls in classes.values():
        monkeypatch.setattr(cls, "__module__", earlier)
  file = official_pickles.write(official, tmp_path / "snapshot.pkl")
  assert b"BaselineGAN.Networks" in file.read_bytes() and b"R3GAN" not in file.read_bytes()
  expected = read_snapshot(official_pickles.path("cond_8px"))
  jax.tree.map(np.testing.assert_array_equal, read_snapshot(file).params, expected.params)


def test_other_dtypes_and_views(tmp_path, official):
  parameters = official_pickles.calls(official["G"])
  weights = {name: official_pickles.array(call) for name, call in parameters.items()}
  first, second, third, fourth = list(parameters)[:4]
  official_pickles.retype(parameters[first], "HalfStorage", np.float16)
  official_pickles.retype(parameters[second], "BFloat16Storage", ml_dtypes.bfloat16)
  official_pickles.retype(parameters[third], "DoubleStorage", np.float64)
  strided = parameters[fourth].arguments[0]  # of a 1x1 or 3x3 convolution, in channels_last
  outputs, inputs, height, width = strided.arguments[2]
  strided.arguments[3] = (inputs * height * width, 1, width * inputs, inputs)
  snapshot = read_snapshot(official_pickles.write(official, tmp_path / "snapshot.pkl"))
  state = to_state_dict(snapshot.generator, snapshot.params["generator"])
  np.testing.assert_array_equal(state[first], weights[first].astype(np.float16))
  np.testing.assert_array_equal(state[second], weights[second].astype(ml_dtypes.bfloat16).astype(np.float32))
  np.testing.assert_array_equal(state[third], weights[third])
  expected = weights[fourth].reshape(outputs, height, width, inputs).transpose(0, 3, 1, 2)
  np.testing.assert_array_equal(state[fourth], expected)


def test_stages_in_bfloat16(tmp_path, official):
  for network in ("G", "G_ema"):
    stages = official[network]._modules["Model"]._modules["MainLayers"]._modules
    stages["1"].DataType = official_pickles.MODULES["torch"]["bfloat16"]
  snapshot = read_snapshot(official_pickles.write(official, tmp_path / "snapshot.pkl"))
  assert snapshot.generator.bfloat16_stages == snapshot.discriminator.bfloat16_stages == 1


def test_without_adam(tmp_path, official):
  moments = read_snapshot(official_pickles.path("cond_8px")).second_moments
  del official["G_opt_state"]
  official["D_opt_state"]["state"] = {}
  official["training_set_kwargs"] = {}
  snapshot = read_snapshot(official_pickles.write(official, tmp_path / "snapshot.pkl"))
  assert snapshot.updates == {"generator": 0, "discriminator": 0}
  jax.tree.map(
    lambda zero, other: np.testing.assert_array_equal(zero, np.zeros_like(other)), snapshot.second_moments, moments
  )


def _other_shape(official):
  call = official_pickles.calls(official["D"])["Model.MainLayers.0.Layers.0.LinearLayer1.Layer.weight"]
  call.arguments[0].arguments[2] = (16, 32, 1, 1)


def _tied(official):
  first, second = [call for name, call in official_pickles.calls(official["G"]).items() if name.endswith("Bias")][:2]
  second.arguments[0].arguments[0] = first.arguments[0].arguments[0]


def _missing(official):
  del official["G_ema"]._modules["Model"]._modules["MainLayers"]._modules["1"]._modules["Layers"]._modules["1"]


def _other_filter(official):
  (call,) = official_pickles.calls(official["G"], "_buffers").values()
  official_pickles.retype(call, "HalfStorage", np.float16)
  content = call.arguments[0].arguments
  content[0] = content[0][:-2] + np.float16(0.5).tobytes()


def _not_the_highest(official):
  stages = official["G"]._modules["Model"]._modules["MainLayers"]._modules
  stages["0"].DataType = official_pickles.MODULES["torch"]["bfloat16"]


def _steps_differ(official):
  entry = official["G_opt_state"]["state"][3]
  entry["step"] = 7


def _itself(official):
  official["G"]._modules["Model"]._modules["MainLayers"]._modules["0"] = official["G"]


def _integers(official):
  official_pickles.retype(next(iter(official_pickles.calls(official["G"]).values())), "IntStorage", np.int32)


@pytest.mark.parametrize(
  "change, message",
  [
    (
      _other_shape,
      r"D\.Model\.MainLayers\.0\.Layers\.0\.LinearLayer1\.Layer\.weight is \(16, 32, 1, 1\), not \(32, 16",
    ),
    (_tied, "share a storage"),
    (_missing, r"G_ema\.Model\.MainLayers\.1\.Layers\.1\.LinearLayer1\.Layer\.weight is absent, not \(32, 16, 1, 1\)"),
    (_other_filter, "another filter"),
    (_not_the_highest, "bfloat16 stages are not those of the highest"),
    (_steps_differ, "counts of updates differ"),
    (_itself, "nested unlike R3GAN's"),
    (_integers, "integer tensors"),
    (lambda official: official.pop("G"), "G is not a module"),
    (lambda official: official.pop("cur_nimg"), "cur_nimg is not a number"),
    (lambda official: official.update(cur_nimg=2**31), "cur_nimg is not a number"),
    (lambda official: official.update(cur_nimg=True), "cur_nimg is not a number"),
    (
      lambda official: official.update(G_opt_state=official["D_opt_state"]),
      "is .*, not .*: the networks are not R3GAN's",
    ),
    (lambda official: official["G_opt_state"]["state"].pop(0), "Adam has other parameters"),
    (lambda official: official["G_opt_state"]["param_groups"][0]["params"].reverse(), "all parameters in one group"),
  ],
)
def test_other_networks_are_refused(tmp_path, official, change, message):
  change(official)
  path = official_pickles.write(official, tmp_path / "other.pkl")
  with pytest.raises(UserError, match=rf"other\.pkl cannot be read as an official snapshot of R3GAN: .*{message}"):
    read_snapshot(path)


class _Executes:
  def __reduce__(self):
    return os.system, ("touch EXECUTED",)


def _opcodes(opcodes):
  return b"\x80\x04" + opcodes + b"."


def _storage_of(content):
  """A pickle that calls torch.storage._load_from_bytes."""
  load = b"\x8c\x0dtorch.storage\x8c\x10_load_from_bytes\x93"
  return _opcodes(load + b"B" + len(content).to_bytes(4, "little") + content + b"\x85R")


def _claimed(size):
  """torch.save's legacy form of a storage that claims `size` float32 and has none."""
  number = pickle.dumps(size, protocol=2)[2:-1]
  storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0kX\x03\0\0\0cpu" + number + b"NtQ"
  header = [pickle.dumps(part, protocol=2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
  return b"".join([*header, b"\x80\x02" + storage + b".", pickle.dumps(["k"], protocol=2), size.to_bytes(8, "little")])


def _deflated():
  """torch.save's newer form: 256 MiB in 260 kB."""
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("archive/data.pkl", pickle.dumps({}))
    archive.writestr("archive/data/0", bytes(2**28))
  return file.getvalue()


SNAPSHOT = official_pickles.path("cond_8px").read_bytes()
TERABYTE = (2**40).to_bytes(8, "little")


@pytest.mark.parametrize(
  "content, message",
  [
    (pickle.dumps(_Executes()), r"asks for posix\.system, which"),
    (pickle.dumps({"G": _Executes()}), r"asks for posix\.system, which"),
    (_opcodes(b"(\x8c\x0etouch EXECUTEDios\nsystem\n"), r"asks for os\.system, which"),  # INST
    (_opcodes(b"cbuiltins\neval\n\x8c\x15open('EXECUTED', 'w')\x85R"), r"asks for builtins\.eval"),
    (_opcodes(b"ctorch\nload\n"), r"asks for torch\.load"),
    (_storage_of(pickle.dumps(_Executes(), protocol=2)), r"asks for posix\.system"),
    (_storage_of(_storage_of(b"")), r"asks for torch\.storage\._load_from_bytes"),
    (SNAPSHOT.replace(b"ResidualBlock", b"ResidualClock"), r"asks for R3GAN\.Networks\.ResidualClock"),
    (SNAPSHOT.replace(b"training.networks", b"straining.network"), r"asks for straining\.network\.Generator"),
    (SNAPSHOT[:-1], "EOFError"),
    (SNAPSHOT[:300_000], "exhausted before end of frame"),
    (_deflated(), "it is not a pickle"),
    (_storage_of(_deflated()), "a storage that is not in torch.save's legacy form"),
    (_storage_of(_claimed(2**40)), "cut short"),
    (_storage_of(_claimed(2**62)), "cut short"),
    (b"\x80\x04\x95" + TERABYTE + b"}.", "G is not a module"),  # FRAME
    (_opcodes(b"\x8e" + TERABYTE), "EOFError"),  # BINBYTES8
    (_opcodes(b"\x96" + TERABYTE), "an opcode that PyTorch does not write"),  # BYTEARRAY8
    (_opcodes(b"}K\x01" + b"2\x86" * 60 + b"K\x01s"), "a key that is neither"),  # tuples in tuples: 2^60 hashes
    (_opcodes(b"\x8f(K\x01" + b"2\x86" * 60 + b"\x90"), "a key that is neither"),
    (_opcodes(b"}Nr\xff\xff\xff\xff0"), "G is not a module"),  # a memo of 2^32
    (b"once upon a time there was a snapshot\n", "it is not a pickle"),
    (b"<!DOCTYPE html><html><body>404</body></html>", "it is not a pickle"),
    (b"", "empty file"),
    (pickle.dumps([1, 2]), "it is not a dict"),
  ],
)
def test_hostile_files_are_refused_fast_and_not_executed(tmp_path, monkeypatch, content, message):
  monkeypatch.chdir(tmp_path)
  path = tmp_path / "hostile.pkl"
  path.write_bytes(content)
  tracemalloc.start()
  start = time.process_time()
  with pytest.raises(UserError) as error:
    read_snapshot(path)
  took = time.process_time() - start
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  line = str(error.value)
  assert line.startswith(f"{path} cannot be read as an official snapshot of R3GAN: replace it (")
  assert re.search(message, line) and "\n" not in line and len(line) < 500
  assert took < 1 and peak < 2**24
  assert list(tmp_path.iterdir()) == [path]


def test_no_file(tmp_path):
  with pytest.raises(UserError, match=r"none\.pkl does not exist"):
    read_snapshot(tmp_path / "none.pkl")


def mutants(count, seed):
  """Yields damaged snapshots: bytes changed, removed, inserted or copied, half of them outside the weights."""
  rng = random.Random(seed)
  snapshots = [official_pickles.path(case).read_bytes() for case in ("uncond_16px", "cond_8px")]
  for _ in range(count):
    chosen = rng.randrange(len(snapshots))
    content = bytearray(snapshots[chosen])
    structure = _outside_weights(snapshots[chosen])

    def position(content=content, structure=structure):
      return min(rng.choice((rng.randrange(len(content)), rng.choice(structure))), len(content) - 1)

    for _ in range(rng.choice((1, 1, 3, 10))):
      kind, start, length = rng.randrange(8), position(), rng.choice((1, 4, 40, 4000))
      if kind < 4:
        content[start] = rng.choice((rng.randrange(256), content[start] ^ (1 << rng.randrange(8))))
      elif kind == 4:
        content[start : start + length] = rng.randbytes(length)
      elif kind == 5:
        del content[start : start + length]
      elif kind == 6:
        other = rng.choice(snapshots)
        begin = rng.randrange(len(other))
        content[start:start] = other[begin : begin + length]
      else:
        begin = position()
        content[start : start + length] = content[begin : begin + length]
    if rng.random() < 0.1:
      del content[position() :]
    yield bytes(content)


@functools.cache
def _outside_weights(content):
  """Returns the positions of opcodes, and of the first 300 bytes of each pickle within the pickle."""
  starts = [start for _, _, start in pickletools.genops(content)] + [len(content)]
  return [at for start, end in itertools.pairwise(starts) for at in range(start, min(end, start + 300))]


def read_or_refuse(path):
  """Returns whether the file was read; checks that the result, or the error, is clean."""
  try:
    snapshot = read_snapshot(path)
  except UserError as error:
    assert "\n" not in str(error)
    return False
  for name in LETTERS:
    network = getattr(snapshot, name)
    for tree in (snapshot.params[name], snapshot.second_moments[name]):
      state = to_state_dict(network, tree)
      assert {key: value.shape for key, value in state.items()} == {
        key: shape for key, _, shape in official_parameters(network)
      }
  return True


def test_mutated(tmp_path):
  path = tmp_path / "mutated.pkl"
  read = 0
  for content in mutants(300, seed=0):
    path.write_bytes(content)
    start = time.process_time()
    read += read_or_refuse(path)
    assert time.process_time() - start < 5  # usually 0.03
  assert 30 < read < 250
