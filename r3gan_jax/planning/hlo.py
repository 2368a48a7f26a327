"""Reads what matters from the text of a compiled program (HLO)."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Collective:
  """A collective operation of a compiled program.

  Attributes:
    kind: "all-reduce", "all-gather", ...
    size: bytes of its results.
  """

  kind: str
  size: int


_COLLECTIVE = re.compile(
  r"= (?P<shapes>.*?) (?P<kind>all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\("
)
_SHAPE = re.compile(r"(?P<dtype>[a-z]+\d*)\[(?P<dims>[\d,]*)\]")
_BITS = re.compile(r"\d+")


def collectives(text: str) -> tuple[Collective, ...]:
  """Returns the collective operations in a compiled program's text; asynchronous ones count once, at their start."""
  return tuple(
    Collective(match["kind"], sum(_shape_bytes(shape) for shape in _SHAPE.finditer(match["shapes"])))
    for match in _COLLECTIVE.finditer(text)
  )


def _shape_bytes(shape: re.Match[str]) -> int:
  bits = _BITS.search(shape["dtype"])
  size = int(bits[0]) // 8 if bits else 1
  for dim in filter(None, shape["dims"].split(",")):
    size *= int(dim)
  return size


_ASSIGNED = re.compile(
  r"^ *(?:ROOT )?%?(?P<name>[\w.-]+) = (?P<shapes>.*?) (?P<kind>[a-z][\w-]*)\((?P<operands>.*)$", re.MULTILINE
)
_FIRST_OPERAND = re.compile(r"[^%\w]*(?:\w+\[[\d,]*\]\S* )?%?(?P<name>[\w.-]+)")
_DIMENSIONS = re.compile(r"dimensions=\{(?P<dims>[\d,]*)\}")


def bfloat16_sums(text: str, terms: int = 32) -> tuple[str, ...]:
  """Returns the reductions in bfloat16 of at least `terms` terms, as lines of a program's HLO text.

  Shorter ones lose no more precision than any other bfloat16 operation; the TPU compiler makes some. Matrix products
  and convolutions do not count: they accumulate in float32 on all hardware.
  """
  found = list(_ASSIGNED.finditer(text))
  shapes = {match["name"]: _SHAPE.search(match["shapes"]) for match in found}

  def count(match: re.Match[str]) -> int:
    operand, dimensions = _FIRST_OPERAND.match(match["operands"]), _DIMENSIONS.search(match["operands"])
    assert operand and dimensions, match[0]
    shape = shapes[operand["name"]]
    assert shape, match[0]
    sizes = [int(size) for size in shape["dims"].split(",")]
    return math.prod(sizes[int(dim)] for dim in filter(None, dimensions["dims"].split(",")))

  return tuple(
    match[0].strip()
    for match in found
    if match["kind"] == "reduce" and "bf16[" in match["shapes"] and count(match) >= terms
  )


@dataclass(frozen=True)
class _Instruction:
  """An instruction of a compiled program; `line` is all of it."""

  name: str
  shapes: str
  kind: str
  operands: tuple[str, ...]
  line: str

  @property
  def size(self) -> int:
    """Bytes of the results, without the workspace that a library's call returns beside its result."""
    shapes = list(_SHAPE.finditer(self.shapes))
    return sum(map(_shape_bytes, shapes[:1] if _LIBRARY in self.line else shapes))


_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.-]+) \(.*\) -> .* \{$")
_OPERAND = re.compile(r"%([\w.-]+)")
_CALLED = re.compile(r"(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_LIBRARY = 'custom_call_target="__cu'  # cuDNN, cuBLAS
_CUDNN_CONVOLUTION = 'custom_call_target="__cudnn$conv'
_NOTHING = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "partition-id", "replica-id", "after-all"}
_SLICES = {"dynamic-slice", "slice", "gather"}


class GpuProgram:
  """A program that XLA compiled for a GPU, read from its text. Every instruction outside of fusions is a kernel."""

  def __init__(self, text: str):
    self._computations: dict[str, dict[str, _Instruction]] = {}
    self._entry = ""
    current: dict[str, _Instruction] = {}
    for line in text.splitlines():
      if header := _COMPUTATION.match(line):
        current = self._computations[header["name"]] = {}
        self._entry = header["name"] if header["entry"] else self._entry
      elif match := _ASSIGNED.match(line):
        operands = tuple(_OPERAND.findall(match["operands"].partition(")")[0]))
        current[match["name"]] = _Instruction(match["name"], match["shapes"], match["kind"], operands, line)

  def bytes_accessed(self) -> int:
    """Returns the bytes that the kernels read and write, as if nothing stayed in a cache from one to the next.

    A kernel reads each operand once and writes its results. A slice is read, or updated in place, alone. The body of a
    loop counts as often as it runs, and of alternatives the largest.
    """
    return self._sum(self._entry, self._kernel_bytes)

  def transposed_bytes(self, names: str = "") -> int:
    """Returns the bytes read and written by kernels that transpose, alone or beside other operations.

    Matrix products do not count: they read their operands in any order.

    Args:
      names: a regular expression; only kernels in whose name in the traced program it is found count.
    """

    def cost(kernel: _Instruction, around: Mapping[str, _Instruction]) -> int:
      counts = self._transposes(kernel) and re.search(names, _traced_name(kernel))
      return self._kernel_bytes(kernel, around) if counts else 0

    return self._sum(self._entry, cost)

  def cudnn_convolutions(self) -> int:
    """Returns the number of convolutions that are calls of cuDNN; the body of a loop counts once."""
    return sum(_CUDNN_CONVOLUTION in instruction.line for instruction in self._instructions())

  def other_convolutions(self) -> tuple[str, ...]:
    """Returns the names, in the traced program, of the convolutions that XLA compiles itself."""
    return tuple(_traced_name(instruction) for instruction in self._instructions() if instruction.kind == "convolution")

  def _instructions(self) -> Iterator[_Instruction]:
    return (instruction for computation in self._computations.values() for instruction in computation.values())

  def _sum(self, name: str, cost: Callable[[_Instruction, Mapping[str, _Instruction]], int]) -> int:
    """Sums `cost(kernel, computation around it)` over all kernels that run when a computation does."""
    total, computation = 0, self._computations[name]
    for instruction in computation.values():
      if instruction.kind == "conditional":
        branches = _BRANCHES.search(instruction.line)
        called = _OPERAND.findall(branches[1]) if branches else _CALLED.findall(instruction.line)
        total += max(self._sum(branch, cost) for branch in called)
      elif instruction.kind in ("while", "call", "async-start"):
        trips = _TRIPS.search(instruction.line)
        total += (int(trips[1]) if trips else 1) * self._sum(_CALLED.findall(instruction.line)[0], cost)
      elif instruction.kind not in _NOTHING and not instruction.kind.endswith("-done"):
        total += cost(instruction, computation)
    return total

  def _kernel_bytes(self, kernel: _Instruction, around: Mapping[str, _Instruction]) -> int:
    if kernel.kind != "fusion":
      read = sum(_read_bytes([(kernel, index)], around[name]) for index, name in enumerate(kernel.operands))
      return read + _written_bytes(kernel, around)
    inside = self._computations[_CALLED.findall(kernel.line)[0]]
    total = 0
    for instruction in inside.values():
      if instruction.kind == "parameter":
        total += _read_bytes(list(_uses(instruction, inside)), instruction)
    root = next(instruction for instruction in inside.values() if instruction.line.lstrip().startswith("ROOT "))
    results = [inside[name] for name in root.operands] if root.kind == "tuple" else [root]
    return total + sum(_written_bytes(_source(result, inside), inside) for result in results)

  def _transposes(self, kernel: _Instruction) -> bool:
    if kernel.kind != "fusion":
      return kernel.kind == "transpose"
    kinds = {inside.kind for inside in self._computations[_CALLED.findall(kernel.line)[0]].values()}
    return "transpose" in kinds and "dot" not in kinds


def _traced_name(instruction: _Instruction) -> str:
  name = _OP_NAME.search(instruction.line)
  return name[1] if name else instruction.name


def _uses(value: _Instruction, inside: Mapping[str, _Instruction]) -> Iterator[tuple[_Instruction, int]]:
  """Yields (instruction, number of the operand) for each use of a value, seen through bitcasts."""
  for instruction in inside.values():
    for index, name in enumerate(instruction.operands):
      if name == value.name:
        yield from _uses(instruction, inside) if instruction.kind == "bitcast" else [(instruction, index)]


def _source(value: _Instruction, inside: Mapping[str, _Instruction]) -> _Instruction:
  while value.kind == "bitcast":
    value = inside[value.operands[0]]
  return value


def _read_bytes(uses: list[tuple[_Instruction, int]], operand: _Instruction) -> int:
  """Returns what a kernel reads of an operand: all of it, or the slices that are all it uses."""
  read = 0
  for user, index in uses:
    if user.kind in _SLICES and index == 0:
      read += user.size
    elif not (user.kind == "dynamic-update-slice" and index == 0):
      return operand.size
  return min(read, operand.size)


def _written_bytes(result: _Instruction, inside: Mapping[str, _Instruction]) -> int:
  return inside[result.operands[1]].size if result.kind == "dynamic-update-slice" else result.size
