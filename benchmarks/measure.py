"""What every benchmark shares: interleaved timing, the machine's peak, XLA's counts, tables and JSON."""

import argparse
import contextlib
import importlib.util
import json
import math
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from r3gan_jax.storage import write_whole

Row = dict[str, str | float | None]
"""One line of a table: column -> value; None where it was not measured."""


def parser(docstring: str, repetitions: int | None = None) -> argparse.ArgumentParser:
  """The command line of a benchmark, `docstring` its own; with this default of --repetitions if it times anything."""
  made = argparse.ArgumentParser(description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter)
  if repetitions:
    made.add_argument("--repetitions", type=int, default=repetitions, help="medians are over these (%(default)s)")
  made.add_argument("--json", type=Path, help="also write the tables here")
  return made


def interleaved_seconds(
  calls: Mapping[str, Callable[[], Any]], repetitions: int, patience_s: float = math.inf
) -> dict[str, float]:
  """The median seconds of each call, every repetition running all of them in turn, after one call each to warm up.

  The machine's mood (clock, neighbours) then hits all alike. A JAX result is waited for; others must be complete.
  A call whose warming up takes longer than `patience_s` is not repeated: that time, compilation included, counts.
  Warns where other processes were busy meanwhile: threads that wait for each other, PyTorch's above all, then wait
  for those as well.
  """
  others = _busy_seconds_of_others()
  start = time.perf_counter()
  seconds = {name: [_seconds(call)] for name, call in calls.items()}
  repeated = [name for name, times in seconds.items() if times[0] <= patience_s]
  for _ in range(repetitions):
    for name in repeated:
      seconds[name].append(_seconds(calls[name]))
  taken = (_busy_seconds_of_others() - others) / (time.perf_counter() - start) / threads()
  if taken > 0.05:
    print(f"warning: other processes took {taken:.0%} of the processors: do not trust these times", file=sys.stderr)
  return {name: statistics.median(times[1:] or times) for name, times in seconds.items()}


def in_own_process(make: Callable[..., Callable[[], Any]], *arguments: Any) -> Callable[[], None]:
  """A call that runs `make(*arguments)()` in a process made for it, and waits; `make` runs once, over there."""
  context = multiprocessing.get_context("spawn")
  here, there = context.Pipe()
  context.Process(target=_serve, args=(there, make, arguments), daemon=True).start()
  there.close()
  here.recv()  # it is ready; EOFError if it failed

  def call() -> None:
    here.send(None)
    here.recv()

  return call


def _serve(connection: Connection, make: Callable[..., Callable[[], Any]], arguments: Sequence[Any]) -> None:
  call = make(*arguments)
  with contextlib.suppress(EOFError):  # the other side has ended
    while True:
      connection.send(None)
      connection.recv()
      call()


def _seconds(call: Callable[[], Any]) -> float:
  start = time.perf_counter()
  jax.block_until_ready(call())
  return time.perf_counter() - start


def _busy_seconds_of_others() -> float:
  """Processor time since boot, less that of this process and its children; 0 where Linux does not tell."""
  path = Path("/proc/stat")
  if not path.exists():
    return 0.0
  user, nice, system, _idle, _waiting, *interrupts = map(int, path.read_text().splitlines()[0].split()[1:9])
  ticks = user + nice + system + sum(interrupts)
  for pid in (os.getpid(), *(child.pid for child in multiprocessing.active_children())):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks -= int(fields[11]) + int(fields[12])  # in user and in kernel mode
  return ticks / os.sysconf("SC_CLK_TCK")


def peak_matmul(dtype: jnp.dtype = jnp.float32) -> tuple[Callable[[], jax.Array], float]:
  """(a big matrix product, its FLOPs): timed beside the others it gives the machine's peak of the moment."""
  size = 4096 if jax.default_backend() == "cpu" else 16384
  a = jax.random.normal(jax.random.key(0), (size, size), dtype)
  product = jax.jit(jnp.matmul)
  return lambda: product(a, a), 2.0 * size**3


def flops(compiled: jax.stages.Compiled) -> float:
  """XLA's own count, per device. It counts the body of a loop once, so compile with the native grouped convolution."""
  cost = compiled.cost_analysis()
  assert cost, "this platform's compiler counts no FLOPs"
  return float(cost["flops"])


def bytes_accessed(compiled: jax.stages.Compiled) -> float:
  """XLA's own count of what one call reads and writes, per device; a loop's body once, as of `flops`."""
  cost = compiled.cost_analysis()
  assert cost, "this platform's compiler counts no bytes"
  return float(cost["bytes accessed"])


def temporary_bytes(compiled: jax.stages.Compiled) -> int:
  """The working memory of one call, per device, beyond its arguments and results."""
  memory = compiled.memory_analysis()
  assert memory, "this platform's compiler states no memory"
  return int(memory.temp_size_in_bytes)


def has_torch() -> bool:
  return importlib.util.find_spec("torch") is not None


def threads() -> int:
  """The cores that this process may use: what XLA takes, and what PyTorch is to be given."""
  return len(os.sched_getaffinity(0))


def report(tables: Mapping[str, Sequence[Row]], json_path: Path | None) -> None:
  """Prints each table under its title; writes them, with the machine and the command, to `json_path`."""
  for title, rows in tables.items():
    print(f"\n{title}\n{table(rows)}", flush=True)
  if json_path:
    record = {"command": sys.argv, "machine": machine(), "tables": tables}
    write_whole(json_path, json.dumps(record, indent=2) + "\n")


def table(rows: Sequence[Row]) -> str:
  """A Markdown table; numbers in four digits."""
  columns = list(dict.fromkeys(column for row in rows for column in row))
  cells = [columns, *[[_cell(row.get(column)) for column in columns] for row in rows]]
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  lines = [
    "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in cells
  ]
  lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
  return "\n".join(lines)


def _cell(value: str | float | None) -> str:
  if value is None:
    return ""
  if isinstance(value, str):
    return value
  return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def machine() -> dict[str, Any]:
  """What the numbers were measured on."""
  packages = ("jax", "jaxlib", *(("torch",) if has_torch() else ()))
  return {
    "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    "processor": processor(),
    "threads": threads(),
    "python": platform.python_version(),
    **{package: version(package) for package in packages},
  }


def processor() -> str:
  """The model's name, where Linux tells it."""
  path = Path("/proc/cpuinfo")
  lines = path.read_text().splitlines() if path.exists() else []
  names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
  return names[0] if names else platform.machine()
