import pytest

from r3gan_jax.cli.shared.numbers import parse_numbers
from r3gan_jax.errors import UserError


def test_the_order_of_the_flag():
  numbers = parse_numbers("seeds", "7,0-2,2", 10)
  assert list(numbers) == [7, 0, 1, 2, 2] and len(numbers) == 5
  assert list(numbers.distinct()) == [0, 1, 2, 7]
  assert 2 in numbers and 3 not in numbers and None not in numbers


def test_all_seeds_take_no_memory():
  numbers = parse_numbers("seeds", "5,0-4294967295", 2**32)
  assert len(numbers) == 2**32 + 1 and len(numbers.distinct()) == 2**32 and next(iter(numbers)) == 5


@pytest.mark.parametrize(
  "text", ["", "-1", "3-1", "a", "1,", "1-2-3", "0.5", "10", "0-10", "0-99999999999999999999999"]
)
def test_bad_lists(text):
  with pytest.raises(UserError, match=rf"^--seeds={text}: "):
    parse_numbers("seeds", text, 10)
