"""Reads what matters from the text of a compiled program (HLO)."""

import math
import re
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
