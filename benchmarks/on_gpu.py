"""Tests and measures everything on one card, and writes one JSON file and one table: see on_gpu.sh.

    python -m benchmarks.on_gpu --out=DIRECTORY
    python -m benchmarks.on_gpu --out=DIRECTORY --platform=cpu --small    # the same on a CPU, with tiny networks

Each step is a command with a time limit and a log of its own; one that fails does not end the others. The steps:

    tests       those marked `card`: golden numbers in float32 and bfloat16, derivatives, resume, sampling, Inception
    training    the recipe as it trains, with augmentation: speed, memory, and how long each grouped convolution takes
    train_step  a whole iteration beside PyTorch's, in the recipe's bfloat16
    penalties, sampling, inception, data    the benchmarks of these names
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from benchmarks import measure
from r3gan_jax.storage import write_whole

ROOT = Path(__file__).resolve().parent.parent


class Step(NamedTuple):
  """A command, with the environment that it needs beside ours, and its time limit."""

  name: str
  command: list[str]
  seconds: int
  environment: Mapping[str, str] = MappingProxyType({})


def steps(out: Path, platform: str, small: bool) -> list[Step]:
  """Returns what is run; tables are written to `out`."""
  recipe, batch, images = ("configs/cifar10.py:smoke", 8, 64) if small else ("configs/cifar10.py", 256, 512 * 40)
  size = [f"--config={recipe}", f"--batch={batch}"]

  def benchmark(name: str, seconds: int, *arguments: str) -> Step:
    return Step(name, ["-m", f"benchmarks.{name}", *arguments, f"--json={out / name}.json"], seconds)

  tests = ["-m", "pytest", "-n", "0", "-m", "card", *(["tests/ops/test_grouped_conv.py"] if small else [])]
  # Kernels that sum in a fixed order, and products in float32: by default cards have TensorFloat-32.
  exact = {"XLA_FLAGS": "--xla_gpu_deterministic_ops=true", "JAX_DEFAULT_MATMUL_PRECISION": "highest"}
  training = [
    "main.py",
    f"--config={recipe}",
    f"--workdir={out / 'run'}",
    "--config.data.source=generated",
    f"--config.run.total_images={images}",
    f"--config.run.log_every_images={images // 4}",
    f"--config.run.snapshot_every_images={images}",
  ]
  on_card = [
    Step("tests", tests, 180, exact if platform != "cpu" else {}),
    Step("training", training, 150),
    benchmark("train_step", 120, *size, "--against=torch", "--bfloat16"),
    benchmark("penalties", 60, *size),
    benchmark("sampling", 40, f"--config={recipe}", f"--batch={batch}", f"--images={2 * batch}"),
    benchmark("inception", 40, f"--batch={batch // 4}"),
    benchmark("data", 40),
  ]
  return [step._replace(seconds=20 * step.seconds) for step in on_card] if platform == "cpu" else on_card


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--out", type=Path, default=Path("on_gpu"), help="directory of the results (%(default)s)")
  parser.add_argument("--platform", default="cuda", choices=("cuda", "cpu"), help="what JAX uses (%(default)s)")
  parser.add_argument("--small", action="store_true", help="tiny networks and few tests, to try this command")
  options = parser.parse_args()
  out = options.out.absolute()
  if out.exists():
    sys.exit(f"error: {out} exists: choose another --out")
  out.mkdir(parents=True)
  environment = os.environ | {
    "JAX_PLATFORMS": options.platform,
    "XDG_CACHE_HOME": str(out / "cache"),  # what is measured on this card is measured now
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # PyTorch and the processes of tests need memory, too
  }
  found = subprocess.run(
    [sys.executable, "-c", "import json; from benchmarks import measure; print(json.dumps(measure.machine()))"],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
  )
  if found.returncode:
    sys.exit(f"error: JAX finds no device for {options.platform}: {found.stderr.strip().splitlines()[-1]}")
  results: dict[str, Any] = {"machine": json.loads(found.stdout), "steps": {}, "tables": {}}
  for step in steps(out, options.platform, options.small):
    results["steps"][step.name] = run(step, out, environment)
    results["tables"] |= tables(step.name, out)
    write_whole(out / "results.json", json.dumps(results, indent=2) + "\n")
    write_whole(out / "results.md", as_markdown(results))
  print((out / "results.md").read_text())
  if failed := [name for name, step in results["steps"].items() if step["status"] != 0]:
    sys.exit(f"error: these steps failed: {', '.join(failed)}: see their logs in {out}")


def run(step: Step, out: Path, environment: dict[str, str]) -> dict[str, Any]:
  """Runs a step; returns its exit status, "timeout" if it took too long, and its seconds."""
  print(f"{step.name}, at most {step.seconds} s ...", flush=True)
  start = time.perf_counter()
  status: int | str = "timeout"
  with (out / f"{step.name}.log").open("w") as log:
    command = [sys.executable, *step.command]
    own = {**environment, **step.environment}
    process = subprocess.Popen(command, cwd=ROOT, env=own, stdout=log, stderr=log, start_new_session=True)
    try:
      status = process.wait(step.seconds)
    except subprocess.TimeoutExpired:
      os.killpg(process.pid, signal.SIGKILL)  # with its child processes
      process.wait()
  return {"status": status, "seconds": round(time.perf_counter() - start, 1), "command": " ".join(step.command)}


def tables(name: str, out: Path) -> dict[str, list[measure.Row]]:
  """Returns the tables, by title, that a step has left."""
  if (out / f"{name}.json").exists():
    return dict(json.loads((out / f"{name}.json").read_text())["tables"])
  if name != "training":
    return {}
  found: dict[str, list[measure.Row]] = {}
  logs = [json.loads(line) for line in (out / "run/metrics.jsonl").read_text().splitlines()]
  if rates := [line for line in logs if "progress/images_per_second" in line]:
    peak = max(line["progress/peak_memory_bytes"] for line in rates)
    speed = {"images / s": rates[-1]["progress/images_per_second"], "peak memory GiB": peak / 2**30}
    found["The recipe as it trains"] = [speed]
  if (times := out / "cache/r3gan_jax/grouped_conv_seconds.json").exists():
    (of_card,) = json.loads(times.read_text()).values()
    found["Grouped convolutions, ms"] = [
      {"shape": shape} | {name: 1e3 * seconds for name, seconds in measured.items()}
      for shape, measured in of_card.items()
    ]
  return found


def as_markdown(results: dict[str, Any]) -> str:
  machine = ", ".join(f"{name} {value}" for name, value in results["machine"].items())
  steps = [{"step": name} | step for name, step in results["steps"].items()]
  parts = [f"{machine}\n", measure.table(steps)]
  parts += [f"\n{title}\n\n{measure.table(rows)}" for title, rows in results["tables"].items()]
  return "\n".join(parts) + "\n"


if __name__ == "__main__":
  main()
