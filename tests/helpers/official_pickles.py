"""Official snapshots as objects that tests can inspect, change and write again, with Python's own pickle.

While a pickle is read or written, modules of stand-in classes and functions replace PyTorch and the official
implementation.
"""

import pickle
import sys
from contextlib import contextmanager
from types import ModuleType

import numpy as np

from helpers.golden_cases import GOLDEN

CLASSES = {
  "training.networks": ("Generator", "Discriminator"),
  "R3GAN.Networks": (
    *("Generator", "GeneratorStage", "GenerativeBasis", "UpsampleLayer"),
    *("Discriminator", "DiscriminatorStage", "DiscriminativeBasis", "DownsampleLayer"),
    *("ResidualBlock", "Convolution"),
  ),
  "R3GAN.FusedOperators": ("BiasedActivationCUDA",),
  "R3GAN.Resamplers": ("InterpolativeUpsamplerCUDA", "InterpolativeDownsamplerCUDA"),
  "torch.nn.modules.container": ("ModuleList",),
  "torch.nn.modules.conv": ("Conv2d",),
  "torch.nn.modules.linear": ("Linear",),
}
FUNCTIONS = {"torch._utils": ("_rebuild_parameter", "_rebuild_tensor_v2"), "torch.storage": ("_load_from_bytes",)}


class Call:
  """A call of a function; pickled as that call."""

  def __init__(self, function, arguments):
    self.function, self.arguments = function, list(arguments)

  def __reduce__(self):
    return self.function, tuple(self.arguments)


class DataType:
  """torch.float32 or torch.bfloat16; pickled as that name."""

  def __init__(self, name):
    self.name, self.__module__ = name, "torch"

  def __reduce__(self):
    return self.name


def _function(module, name):
  def function(*arguments):
    return Call(function, arguments)

  function.__module__, function.__qualname__, function.__name__ = module, name, name
  return function


MODULES = {
  **{module: {name: type(name, (), {"__module__": module}) for name in names} for module, names in CLASSES.items()},
  **{module: {name: _function(module, name) for name in names} for module, names in FUNCTIONS.items()},
  "torch": {name: DataType(name) for name in ("float32", "bfloat16")},
}


@contextmanager
def _pretended():
  packages = {module.rsplit(".", n)[0] for module in MODULES for n in range(module.count(".") + 1)}
  before = {module: sys.modules.get(module) for module in packages}
  for module in packages:
    sys.modules[module] = ModuleType(module)
    vars(sys.modules[module]).update(MODULES.get(module, {}))
  try:
    yield
  finally:
    for module, replaced in before.items():
      if replaced is None:
        del sys.modules[module]
      else:
        sys.modules[module] = replaced


def path(case):
  return GOLDEN / f"official_snapshot_{case}.pkl"


def read(case):
  with _pretended():
    return pickle.loads(path(case).read_bytes())


def write(content, file):
  with _pretended():
    file.write_bytes(pickle.dumps(content, protocol=4))
  return file


def array(call):
  """Returns the contiguous float32 tensor, or parameter, that this call rebuilds."""
  if call.function.__name__ == "_rebuild_parameter":
    return array(call.arguments[0])
  storage, offset, shape, *_ = call.arguments
  assert offset == 0
  count = int(np.prod(shape))
  (content,) = storage.arguments
  assert content[-4 * count - 8 :][:8] == count.to_bytes(8, "little")
  return np.frombuffer(content[-4 * count :], np.float32).reshape(shape)


def calls(module, kind="_parameters"):
  """Returns name -> call, as PyTorch's named_parameters or named_buffers."""
  found = {name: call for name, call in vars(module)[kind].items() if call is not None}
  for name, child in module._modules.items():
    found |= {f"{name}.{inner}": call for inner, call in calls(child, kind).items()}
  return found


def retype(call, storage, dtype):
  """Changes the type of a tensor or parameter to `dtype`, whose PyTorch storage is `storage`."""
  if call.function.__name__ == "_rebuild_parameter":
    return retype(call.arguments[0], storage, dtype)
  values = array(call)
  (content,) = call.arguments[0].arguments
  head = content[: len(content) - values.nbytes].replace(b"torch\nFloatStorage\n", f"torch\n{storage}\n".encode())
  call.arguments[0] = Call(call.arguments[0].function, [head + values.astype(dtype).tobytes()])
