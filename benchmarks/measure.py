"""Shared by all benchmarks: interleaved timing, the machine's peak, XLA's counts, tables and JSON."""

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
"""A row of a table: column -> value; None if not measured."""


def parser(docstring: str, repetitions: int | None = None) -> argparse.ArgumentParser:
  """Returns the command-line parser of a benchmark with this docstring; with --repetitions if it times anything."""
  made = argparse.ArgumentParser(description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter)
  if repetitions:
    made.add_argument(
      "--repetitions", type=int, default=repetitions, help="number of repetitions, for medians (%(default)s)"
    )
  made.add_argument("--json", type=Path, help="also write the tables to this file")
  return made


def interleaved_seconds(
  calls: Mapping[str, Callable[[], Any]], repetitions: int, patience_s: float = math.inf
) -> dict[str, float]:
  """Returns the median seconds of each call; every repetition runs all of them in turn, after one warm-up call each.

  Changes of clock and load then affect all calls alike. JAX results are waited for; other calls must be complete when
  they return. A call whose warm-up takes longer than `patience_s` is not repeated: its time is that of the warm-up,
  compilation included. Warns if other processes were busy: they slow down threads that wait for each other, above all
  PyTorch's.
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
    print(f"warning: other processes used {taken:.0%} of the cores: do not trust these times", file=sys.stderr)
  return {name: statistics.median(times[1:] or times) for name, times in seconds.items()}


def in_own_process(make: Callable[..., Callable[[], Any]], *arguments: Any) -> Callable[[], None]:
  """Returns a call that runs `make(*arguments)()` in its own process and waits; `make` runs there once."""
  context = multiprocessing.get_context("spawn")
  here, there = context.Pipe()
  context.Process(target=_serve, args=(there, make, arguments), daemon=True).start()
  there.close()
  here.recv()  # ready; EOFError if it failed

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
  """Returns other processes' CPU seconds since boot; 0 if the system does not say."""
  path = Path("/proc/stat")
  if not path.exists():
    return 0.0
  user, nice, system, _idle, _waiting, *interrupts = map(int, path.read_text().splitlines()[0].split()[1:9])
  ticks = user + nice + system + sum(interrupts)
  for pid in (os.getpid(), *(child.pid for child in multiprocessing.active_children())):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks -= int(fields[11]) + int(fields[12])  # user and kernel mode
  return ticks / os.sysconf("SC_CLK_TCK")


def peak_matmul(dtype: jnp.dtype = jnp.float32) -> tuple[Callable[[], jax.Array], float]:
  """Returns (a large matrix product, its FLOPs): the machine's current peak, if timed beside other calls."""
  size = 4096 if jax.default_backend() == "cpu" else 16384
  a = jax.random.normal(jax.random.key(0), (size, size), dtype)
  product = jax.jit(jnp.matmul)
  return lambda: product(a, a), 2.0 * size**3


def flops(program: jax.stages.Lowered | jax.stages.Compiled) -> float:
  """Returns XLA's count of FLOPs per device, with loop bodies once: use the native grouped convolution.

  Of a lowered program it is within a percent of that of the compiled one, and there on every platform.
  """
  cost = program.cost_analysis()
  assert cost, "this platform's compiler counts no FLOPs"
  return float(cost["flops"])


def bytes_accessed(compiled: jax.stages.Compiled) -> float:
  """Returns XLA's count of bytes read and written per device; see `flops`."""
  cost = compiled.cost_analysis()
  assert cost, "this platform's compiler counts no bytes"
  return float(cost["bytes accessed"])


def temporary_bytes(compiled: jax.stages.Compiled) -> int:
  """Returns the bytes of temporaries of a call, per device."""
  memory = compiled.memory_analysis()
  assert memory, "this platform's compiler states no memory"
  return int(memory.temp_size_in_bytes)


def has_torch() -> bool:
  return importlib.util.find_spec("torch") is not None


def torch_device() -> str:
  """Gives PyTorch the threads of JAX, TF32 and the fastest convolutions of a card; returns the device that JAX uses."""
  import torch

  torch.set_num_threads(threads())
  torch.set_float32_matmul_precision("high")
  torch.backends.cudnn.benchmark = True
  return "cpu" if jax.default_backend() == "cpu" else "cuda"


def threads() -> int:
  """Returns the number of cores that this process may use, for XLA and PyTorch alike."""
  return len(os.sched_getaffinity(0))


def report(tables: Mapping[str, Sequence[Row]], json_path: Path | None) -> None:
  """Prints each table under its title, and writes all of them, the machine and the command to `json_path`."""
  for title, rows in tables.items():
    print(f"\n{title}\n{table(rows)}", flush=True)
  if json_path:
    record = {"command": sys.argv, "machine": machine(), "tables": tables}
    write_whole(json_path, json.dumps(record, indent=2) + "\n")


def table(rows: Sequence[Row]) -> str:
  """Returns a Markdown table, with numbers to four digits."""
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
  """Returns the devices, the processor and the versions of packages."""
  packages = ("jax", "jaxlib", *(("torch",) if has_torch() else ()))
  return {
    "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    "processor": processor(),
    "threads": threads(),
    "python": platform.python_version(),
    **{package: version(package) for package in packages},
  }


def processor() -> str:
  """Returns the name of the processor, if Linux says."""
  path = Path("/proc/cpuinfo")
  lines = path.read_text().splitlines() if path.exists() else []
  names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
  return names[0] if names else platform.machine()
