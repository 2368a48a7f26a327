"""Measures, on the card at hand, which algorithm of the grouped convolution is the fastest for each shape of a program.

On GPUs the fastest number of groups to merge differs between cards, shapes and the three operations, convolution, input
gradient and weight gradient (ops/grouped_conv.py). So the first run of a shape on a card times all of them. Times are
kept in the user's cache, by card and versions.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from jax.extend.core import ClosedJaxpr, Jaxpr

from r3gan_jax.errors import one_line
from r3gan_jax.interop.weights import cache_directory
from r3gan_jax.ops.grouped_conv import ALGORITHMS, MEASURED, PRIMITIVES, Shape, flip_exchange, shape_of
from r3gan_jax.ops.padding import Padding, output_shape
from r3gan_jax.storage import as_path, write_whole
from r3gan_jax.training.distributed import from_first_process, is_first_process

CANDIDATES = {"cuda": ("native", "merged_2", "merged_4", "merged_8")}
"""Platform -> what is worth a measurement on it. Elsewhere `choose` has a rule."""

_CALLS = 10
_ROUNDS = 3


class Case(NamedTuple):
  """A shape to time, with the batch and the padding of its largest use in a program."""

  shape: Shape
  batch: int
  padding: Padding


def platform_of(device: jax.Device) -> str:
  """Returns the platform for which JAX compiles: "cuda" for an NVIDIA card, whose `device.platform` is "gpu"."""
  return "cuda" if device.platform == "gpu" and "cuda" in device.client.platform_version.lower() else device.platform


def cases(program: Jaxpr) -> list[Case]:
  """Returns the grouped convolutions of a program that leave the choice of an algorithm to `choose`."""
  found: dict[Shape, Case] = {}
  for equation in _equations(program):
    if equation.primitive not in PRIMITIVES or equation.params["algorithm"] != "auto":
      continue
    x, y = (operand.aval for operand in equation.invars)
    case = Case(shape_of(x, y, equation.params), x.shape[0], equation.params["padding"])
    if case.shape.groups > 1 and case.batch > found.get(case.shape, case._replace(batch=0)).batch:
      found[case.shape] = case
  return sorted(found.values())


def seconds(case: Case, algorithm: str) -> float:
  """Returns the time of one call on this process's first device; infinity if it cannot run there."""
  shape, batch, padding = case
  groups, kernel_size, dtype = shape.groups, shape.kernel_size, shape.dtype
  x = jnp.ones((batch, shape.height, shape.width, groups * shape.inputs), dtype)
  kernel_shape = (*kernel_size, shape.inputs, groups * shape.outputs)
  function: Callable[..., jax.Array]
  if shape.operation == "weight_gradient":
    y = jnp.ones(output_shape(x.shape, kernel_shape, padding), dtype)
    function = partial(ALGORITHMS[algorithm].weight_gradient, kernel_size=kernel_size)
  elif shape.operation == "conv":
    y, function = jnp.ones(kernel_shape, dtype), ALGORITHMS[algorithm].conv
  else:
    y, function = jnp.ones((*kernel_size, shape.outputs, groups * shape.inputs), dtype), partial(_transposed, algorithm)
  run = jax.jit(partial(function, groups=groups, padding=padding))
  try:
    run(x, y).block_until_ready()
    rounds = []
    for _ in range(_ROUNDS):
      began = time.perf_counter()
      for _ in range(_CALLS):
        result = run(x, y)
      result.block_until_ready()
      rounds.append((time.perf_counter() - began) / _CALLS)
    return min(rounds)
  except jax.errors.JaxRuntimeError as error:
    logging.warning("%s cannot be timed for %s: %s", algorithm, _name(shape), one_line(error))
    return float("inf")


def tune(
  trace: Callable[[], jax.stages.Traced],
  device: jax.Device,
  stopped: Callable[[], bool] = lambda: False,
  candidates: Mapping[str, Sequence[str]] = CANDIDATES,
  seconds: Callable[[Case, str], float] = seconds,
) -> None:
  """Chooses the algorithms of a program before it is compiled (`MEASURED`), the same on all processes; logs a table.

  Args:
    trace: returns the program, with the shapes of one device's part of the batch; called where there is a choice.
    device: of this process.
    stopped: whether to give up, as the process has to end.
    candidates: platform -> algorithms.
    seconds: measures (case, algorithm).
  """
  platform = platform_of(device)
  if platform not in candidates:
    return
  to_time = [
    (case, [name for name in candidates[platform] if case.shape.groups % ALGORITHMS[name].merge == 0])
    for case in cases(trace().jaxpr.jaxpr)
  ]
  chosen = np.zeros(len(to_time), np.int32)
  if is_first_process():  # the others wait, and take its choices
    times = _read(device)
    for index, (case, names) in enumerate(to_time):
      measured = times.setdefault(_name(case.shape), {})
      for name in names:
        if stopped():
          break
        measured[name] = measured.get(name) or seconds(case, name)
      else:
        chosen[index] = np.argmin([measured[name] for name in names])
        listed = ", ".join(f"{name} {1e3 * measured[name]:.3f}" for name in names)
        logging.info("%s, batch %d, ms on %s: %s", _name(case.shape), case.batch, device.device_kind, listed)
    _write(device, times)
  for (case, names), index in zip(to_time, from_first_process(chosen), strict=True):
    MEASURED[platform, case.shape] = names[index]


def _transposed(algorithm: str, dy: jax.Array, kernel: jax.Array, *, groups: int, padding: Padding) -> jax.Array:
  return ALGORITHMS[algorithm].conv(dy, flip_exchange(kernel, groups), groups=groups, padding=padding)


def _equations(program: Jaxpr) -> Iterator[Any]:
  """Yields the equations of a program and of all programs in it."""
  for equation in program.eqns:
    yield equation
    for value in jax.tree.leaves(equation.params, is_leaf=lambda value: isinstance(value, Jaxpr | ClosedJaxpr)):
      if isinstance(value, Jaxpr | ClosedJaxpr):
        yield from _equations(value.jaxpr if isinstance(value, ClosedJaxpr) else value)


def _name(shape: Shape) -> str:
  kernel = "x".join(map(str, shape.kernel_size))
  return (
    f"{shape.operation} of {shape.height}x{shape.width} pixels, {shape.groups} groups of {shape.inputs} to "
    f"{shape.outputs}, kernel {kernel}, {shape.dtype}"
  )


def _path() -> epath.Path:
  return as_path(cache_directory()) / "grouped_conv_seconds.json"


def _card(device: jax.Device) -> str:
  """Names what times depend on: the card, and the versions of XLA and CUDA."""
  return f"{device.device_kind}, jaxlib {jax.lib.__version__}, {' '.join(device.client.platform_version.split())}"


def _read(device: jax.Device) -> dict[str, dict[str, float]]:
  """Returns what has been measured on such a card: name of a shape -> algorithm -> seconds."""
  with suppress(OSError, ValueError):
    return dict(json.loads(_path().read_text()).get(_card(device), {}))
  return {}


def _write(device: jax.Device, times: Mapping[str, Mapping[str, float]]) -> None:
  """Keeps `times`; without a place to keep them, the next run measures again."""
  everything: dict[str, Any] = {}
  with suppress(OSError, ValueError):
    everything = json.loads(_path().read_text())
  try:
    _path().parent.mkdir(parents=True, exist_ok=True)
    write_whole(_path(), json.dumps(everything | {_card(device): times}, indent=2))
  except OSError as error:
    logging.warning("what was measured cannot be kept in %s (%s)", _path(), one_line(error))
