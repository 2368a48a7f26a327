"""Lists of numbers in flags: 0-63 or 1,5,10-19."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from r3gan_jax.errors import UserError


@dataclass(frozen=True)
class Numbers:
  """Numbers in the order of a flag, as ranges: 0-4294967295 takes no memory."""

  ranges: tuple[range, ...]

  def __len__(self) -> int:
    return sum(map(len, self.ranges))

  def __iter__(self) -> Iterator[int]:
    return chain.from_iterable(self.ranges)

  def __contains__(self, number: object) -> bool:
    return any(number in part for part in self.ranges)

  def distinct(self) -> "Numbers":
    """Returns every number once, in ascending order."""
    merged: list[range] = []
    for part in sorted(self.ranges, key=lambda part: part.start):
      if merged and part.start < merged[-1].stop:
        merged[-1] = range(merged[-1].start, max(merged[-1].stop, part.stop))
      else:
        merged.append(part)
    return Numbers(tuple(merged))


def parse_numbers(flag: str, text: str, limit: int) -> Numbers:
  """Parses "0-2,7" as 0, 1, 2, 7; raises a UserError if a number is not below `limit`."""
  ranges: list[range] = []
  for part in text.split(","):
    first, dash, last = part.partition("-")
    try:
      numbers = range(int(first), int(last if dash else first) + 1)
    except ValueError:
      numbers = range(0)
    if not numbers:
      raise UserError(f"--{flag}={text}: {part!r} is neither a number nor a range such as 0-63")
    if numbers[-1] >= limit:
      raise UserError(f"--{flag}={text}: choose from 0 to {limit - 1}")
    ranges.append(numbers)
  return Numbers(tuple(ranges))
