"""Reads tensors from PyTorch's files, without PyTorch and without executing anything in them.

A pickle is a program that may call anything its reader can import. This reader accepts the few names below and refuses
all others. Each stands for a string or a bound method that checks its arguments; calling them, or setting their state,
reaches nothing else. Memory and time are bounded by the size of the file.

torch.save's two forms (torch/serialization.py):

    zip      (since 1.6)    NAME/data.pkl, NAME/byteorder and each storage, uncompressed, as NAME/data/KEY
    legacy   (before)       pickles: magic number, protocol, system; the object; the keys of storages. Then each storage
                            in the order of the keys: its number of elements, int64, and its elements
"""

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, ClassVar

import jax.numpy as jnp
import numpy as np

from r3gan_jax.errors import UserError

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001

_DTYPES = {
  "DoubleStorage": "float64",
  "FloatStorage": "float32",
  "HalfStorage": "float16",
  "BFloat16Storage": "bfloat16",
  "LongStorage": "int64",
  "IntStorage": "int32",
  "ShortStorage": "int16",
  "CharStorage": "int8",
  "ByteStorage": "uint8",
  "BoolStorage": "bool",
}


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
  """Reads a state dict from a file of torch.save (either form) or an .npz: name -> array.

  Raises:
    UserError: there is no such file, or it is damaged, has other contents, or asks for a name that is not accepted.
  """
  with one_line_errors(path, "weights"):
    if path.suffix == ".npz":
      with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)
    with path.open("rb") as file:
      state = load(file)
    check(isinstance(state, dict) and all(isinstance(name, str) for name in state), "it is not a state dict")
    check(all(isinstance(value, Tensor) for value in state.values()), "its state dict has more than tensors")
    return {name: tensor.array() for name, tensor in state.items()}


@contextmanager
def one_line_errors(path: Path, content: str) -> Iterator[None]:
  """Turns any error that a broken or hostile file causes into a UserError of one line."""
  try:
    yield
  except FileNotFoundError:
    raise UserError(f"{path} does not exist") from None
  except Exception as error:
    cause = f"{type(error).__name__}: {error}".partition("\n")[0][:300]
    raise UserError(f"{path} cannot be read as {content}: replace it ({cause})") from None


def load(file: IO[bytes]) -> Any:
  """Reads a seekable file written by torch.save; tensors become `Tensor`s.

  Raises:
    pickle.UnpicklingError: the file asks for a name that is not accepted, or is inconsistent. Broken files can raise
      any other error in Python's readers of zip files and pickles.
  """
  if zipfile.is_zipfile(file):
    return _load_zip(file)
  file.seek(0)
  return load_legacy(file.read())


class Storage:
  """Memory of `size` elements that tensors are views of; `data` is set once it has been read."""

  __slots__ = ("data", "dtype", "size")

  def __init__(self, dtype: str, size: int):
    check(isinstance(size, int) and size >= 0, "a storage of invalid size")
    self.dtype, self.size = jnp.dtype(dtype), size
    self.data: bytes | memoryview | None = None

  @property
  def nbytes(self) -> int:
    return self.size * self.dtype.itemsize


class Tensor:
  """A view of a storage; `array` copies it, once storages have been read."""

  __slots__ = ("offset", "shape", "storage", "strides")

  def __init__(self, storage: Storage, offset: int, shape: Sequence[int], strides: Sequence[int]):
    check(isinstance(storage, Storage), "a tensor without a storage")
    same_rank = isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides) < 65
    check(same_rank, "a tensor of invalid shape")
    sizes = (offset, *shape, *strides)
    check(all(isinstance(n, int) and 0 <= n < 2**63 for n in sizes), "a tensor of invalid offset, shape or strides")
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    inside = math.prod(shape) <= storage.size and last < storage.size
    check(inside or 0 in shape, f"a tensor {shape} that exceeds its storage")
    self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

  def array(self) -> np.ndarray:
    """Returns a copy, in the machine's byte order."""
    if 0 in self.shape:
      return np.empty(self.shape, self.storage.dtype)
    assert self.storage.data is not None, "storages are read before views are made"
    flat = np.frombuffer(self.storage.data, self.storage.dtype)[self.offset :]
    strides = [stride * flat.itemsize for stride in self.strides]
    return np.array(np.lib.stride_tricks.as_strided(flat, self.shape, strides, writeable=False))

  def __setstate__(self, state: Any) -> None:
    """Ignores the state of a Parameter pickled by PyTorch 0.1, which does not contain its values."""


def _refuse(unpickler: Any) -> None:
  """Refuses opcodes that reserve memory for unread data or make unchecked dicts and sets."""
  raise pickle.UnpicklingError("an opcode that PyTorch does not write")


def _checking_keys(code: bytes, keys: slice) -> Callable[[Any], None]:
  """Returns a loader of an opcode that checks the dict keys or set members, the slice `keys` of the stack."""
  load = pickle._Unpickler.dispatch[code[0]]

  def checked(unpickler: Any) -> None:
    check(all(map(_is_key, unpickler.stack[keys])), "a key that is neither a string nor a small integer")
    load(unpickler)

  return checked


def _is_key(key: Any) -> bool:
  """Returns whether `key` is accepted: hashing nested tuples from a few bytes can take forever."""
  return isinstance(key, str) or (isinstance(key, int) and key.bit_length() < 64)


class Unpickler(pickle._Unpickler):  # in the C version, a few bytes reserve and write 64 GiB for its memo
  """Reads one pickle; `storages` has the storages of its tensors by key."""

  dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
    **pickle._Unpickler.dispatch,
    **{code[0]: _refuse for code in (pickle.BYTEARRAY8, pickle.DICT, pickle.FROZENSET)},
    pickle.SETITEM[0]: _checking_keys(pickle.SETITEM, slice(-2, -1)),
    pickle.SETITEMS[0]: _checking_keys(pickle.SETITEMS, slice(None, None, 2)),
    pickle.ADDITEMS[0]: _checking_keys(pickle.ADDITEMS, slice(None)),
  }

  def __init__(self, file: IO[bytes]):
    super().__init__(file, encoding="utf-8")
    self.storages: dict[str, Storage] = {}
    self._admitted = {
      ("collections", "OrderedDict"): self._ordered_dict,
      ("torch._utils", "_rebuild_tensor"): self._tensor,  # before PyTorch 0.4, such as torchvision's VGG16
      ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
      ("torch._utils", "_rebuild_parameter"): self._parameter,
      ("torch.nn.parameter", "Parameter"): self._parameter,
      **{("torch", name): dtype for name, dtype in _DTYPES.items()},
    }

  def find_class(self, module: str, name: str) -> Any:
    try:
      return self._admitted[module, name]
    except KeyError:
      raise pickle.UnpicklingError(f"it asks for {module}.{name}, which weights do not need") from None

  def persistent_load(self, identifier: Any) -> Storage:
    kind, dtype, key, _location, size, *view = identifier
    check(kind == "storage" and isinstance(key, str), "a reference to something other than a storage")
    check(view in ([], [None]), "a storage that is a view of another")
    check(dtype in _DTYPES.values(), "a storage of unknown type")
    storage = self.storages.setdefault(key, Storage(dtype, size))
    check((storage.dtype, storage.size) == (jnp.dtype(dtype), size), f"two different storages {key}")
    return storage

  def _ordered_dict(self, items: Any = None) -> OrderedDict[Any, Any]:
    if items is None:
      return OrderedDict()
    check(isinstance(items, list), "an OrderedDict that is not made from a list")  # as Python 2 wrote it
    check(all(_is_key(key) for key, _ in items), "a key that is neither a string nor a small integer")
    made = OrderedDict(items)
    items.clear()  # or a file could have it copied again and again
    return made

  def _tensor(self, storage: Any, offset: Any, shape: Any, strides: Any, *_gradient_and_hooks: Any) -> Tensor:
    return Tensor(storage, offset, shape, strides)

  def _parameter(self, tensor: Any, *_gradient_and_hooks: Any) -> Tensor:
    check(isinstance(tensor, Tensor), "a parameter that is not a tensor")
    return tensor


def _load_zip(file: IO[bytes]) -> Any:
  with zipfile.ZipFile(file) as archive:
    names = set(archive.namelist())
    pickles = [name for name in names if name.endswith("/data.pkl")]
    check(len(pickles) == 1, "a zip that was not written by torch.save")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}byteorder" in names:
      check(_stored(archive, f"{root}byteorder") == b"little", "a file from a big-endian machine")
    unpickler = Unpickler(io.BytesIO(_stored(archive, pickles[0])))
    state = unpickler.load()
    for key, storage in unpickler.storages.items():
      storage.data = _stored(archive, f"{root}data/{key}", storage.nbytes)
  return state


def _stored(archive: zipfile.ZipFile, name: str, size: int | None = None) -> bytes:
  """Reads a member of the archive; refuses compressed ones, as torch.save does not compress."""
  entry = archive.getinfo(name)
  check(entry.compress_type == zipfile.ZIP_STORED, f"a compressed {name}")
  check(size in (None, entry.file_size), f"{name} of {entry.file_size} bytes, not {size}")
  return archive.read(entry)


def load_legacy(content: bytes) -> Any:
  """Reads torch.save's legacy form; storages are views of `content`."""
  file = io.BytesIO(content)
  header = [Unpickler(file).load() for _ in range(3)]
  check(header[:2] == [_LEGACY_MAGIC, _LEGACY_PROTOCOL], "it was not written by torch.save")
  check(isinstance(header[2], dict) and header[2].get("little_endian") is True, "a file from a big-endian machine")
  unpickler = Unpickler(file)
  state = unpickler.load()
  keys = Unpickler(file).load()
  check(isinstance(keys, list) and all(isinstance(key, str) for key in keys), "an invalid list of storages")
  check(set(keys) == set(unpickler.storages), "a list of storages other than its tensors'")
  for key in keys:
    storage = unpickler.storages[key]
    check(file.read(8) == storage.size.to_bytes(8, "little"), f"storage {key} of another size")
    start = file.tell()
    storage.data = memoryview(content)[start : start + storage.nbytes]
    check(len(storage.data) == storage.nbytes, "it is cut short")
    file.seek(storage.nbytes, io.SEEK_CUR)
  return state


def check(condition: bool, otherwise: str) -> None:
  """Raises an UnpicklingError with message `otherwise` unless `condition` holds."""
  if not condition:
    raise pickle.UnpicklingError(otherwise)
