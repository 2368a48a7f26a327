"""Lists of numbers in flags: 0-63 or 1,5,10-19."""

import numpy as np

from r3gan_jax.errors import UserError


def parse_numbers(flag: str, text: str, limit: int) -> np.ndarray:
  """Parses "0-2,7" as int64 [0, 1, 2, 7]; raises a UserError if a number is not below `limit`."""
  numbers: list[int] = []
  for part in text.split(","):
    first, dash, last = part.partition("-")
    try:
      part_numbers = range(int(first), int(last if dash else first) + 1)
    except ValueError:
      part_numbers = range(0)
    if not part_numbers:
      raise UserError(f"--{flag}={text}: {part!r} is neither a number nor a range such as 0-63")
    if part_numbers[-1] >= limit:
      raise UserError(f"--{flag}={text}: choose from 0 to {limit - 1}")
    numbers += part_numbers
  return np.array(numbers, np.int64)
