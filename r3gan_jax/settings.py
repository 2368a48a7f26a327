"""Declares and checks settings: a frozen dataclass whose fields are the names below e.g. `config.gan`.

    @dataclass(frozen=True)
    class Settings:
      widths: tuple[int, ...] = setting((64, 64), positive)
      learning_rate: Pair = setting((2e-4, 2e-4), not_negative)
      loss: str = setting("relativistic", one_of(LOSSES))

`read` builds one from plain values and reports the first invalid one. A `Pair` is (from, to); one number is a constant.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar, get_args, get_origin

from r3gan_jax.errors import UserError

T = TypeVar("T")
Pair = tuple[float, float]
"""(from, to) of a schedule."""

Check = Callable[[Any], str]
"""A value or element -> what is wrong with it, e.g. "must be positive"; "" if nothing."""


def setting(default: Any, *checks: Check) -> Any:
  """Declares a field of a Settings class; `checks` apply to the value, or to each element of a tuple or mapping."""
  if isinstance(default, Mapping):
    return dataclasses.field(default_factory=lambda: dict(default), metadata={"checks": checks})
  return dataclasses.field(default=default, metadata={"checks": checks})


def positive(value: float) -> str:
  return "" if value > 0 else "must be positive"


def not_negative(value: float) -> str:
  return "" if value >= 0 else "must not be negative"


def probability(value: float) -> str:
  return "" if 0 <= value <= 1 else "must lie between 0 and 1"


def below_one(value: float) -> str:
  return "" if 0 <= value < 1 else "must lie from 0 to below 1"


def relative_std(value: float) -> str:
  """Checks the width of a power-function average, below that of uniform weights."""
  return "" if 0 < value < 12**-0.5 else "must be positive and below 0.2887, 1 / sqrt(12)"


def counts_images(name: str) -> bool:
  """Returns whether a setting of `config.gan` counts images, so that another length of the run changes it."""
  return name == "ema_half_life" or name.endswith("_images")


def one_of(choices: Collection[Any]) -> Check:
  """Returns a check that a value is one of `choices`."""
  return lambda value: "" if value in choices else f"is unknown: choose from {sorted(choices)}"


def look_up(choices: Mapping[str, T], setting: str, value: str) -> T:
  """Returns choices[value]; raises a UserError that names config.SETTING if there is none."""
  if value not in choices:
    raise UserError(f"config.{setting} = {value!r} is unknown: choose from {sorted(choices)}")
  return choices[value]


def defaults(cls: type[Any]) -> dict[str, Any]:
  """Returns the defaults of a Settings class by name."""
  return dataclasses.asdict(cls())


def read(cls: type[T], values: Mapping[str, Any], section: str = "gan") -> T:
  """Builds `cls` from `values` by name, with defaults for the rest.

  Args:
    section: "gan" for `config.gan`; "" for the top level.

  Raises:
    UserError: `cls` has no such name, or a value has another type or is out of range.
  """
  prefix = f"config.{section}." if section else "config."
  fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
  if foreign := sorted(values.keys() - fields.keys()):
    where = "of this GAN" if section == "gan" else "of any run"
    raise UserError(f"{prefix}{foreign[0]} is no setting {where}: leave it out, or choose from {', '.join(fields)}")
  read_values = {}
  for name, value in values.items():
    field = fields[name]
    value = _typed(prefix + name, field.type, value)
    elements = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple) else (value,)
    for check in field.metadata["checks"]:
      for element in elements:
        if wrong := check(element):
          which = "" if element is value else f": {element!r}"
          raise UserError(f"{prefix}{name} = {value!r}{which} {wrong}")
    read_values[name] = value
  return cls(**read_values)


def _typed(name: str, kind: Any, value: Any) -> Any:
  """Converts `value` to `kind`: int, float, str, a Pair, a tuple of one kind or a mapping of names to one kind."""
  if get_origin(kind) is tuple:
    inner, *rest = get_args(kind)
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    if Ellipsis not in rest:
      count = 1 + len(rest)
      values = values * count if len(values) == 1 and kind == Pair else values
      if len(values) != count:
        form = "(from, to), or one number for a constant" if kind == Pair else f"{count} values"
        raise UserError(f"{name} = {value!r}: give {form}")
    return tuple(_typed(name, inner, element) for element in values)
  if get_origin(kind) is dict:
    if not isinstance(value, Mapping):
      raise UserError(f"{name} = {value!r} must be a mapping of names to values")
    return {key: _typed(f"{name}.{key}", get_args(kind)[1], element) for key, element in value.items()}
  if kind is float and type(value) is int:
    value = float(value)
  if type(value) is not kind:
    raise UserError(f"{name}: {value!r} must be of type {kind.__name__}")
  if kind is float and not math.isfinite(value):
    raise UserError(f"{name} = {value} must be a finite number")
  return value
