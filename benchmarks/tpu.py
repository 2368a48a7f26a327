"""Compiles an iteration for TPUs on a machine without one (pip install -e '.[tpu]'), and shows what it needs.

    python -m benchmarks.tpu    # every preset, at its batch, on the slice of its config.run.tpu_topology
    python -m benchmarks.tpu --configs configs/cifar10.py --topologies v5e:2x2 --grouped_conv native pallas

All numbers are per chip. The roofline time max(FLOPs / peak, bytes / bandwidth) and the time of the all-reduces are
lower bounds, not measurements. A whole iteration compiles in minutes.
"""

import os
import sys
from collections import Counter

os.environ["JAX_PLATFORMS"] = "cpu"

from benchmarks import measure
from benchmarks.iteration import PRESETS, load_recipe
from r3gan_jax import factory
from r3gan_jax.errors import UserError
from r3gan_jax.planning.hlo import bfloat16_sums
from r3gan_jax.planning.tpu import GIB, TpuPlan, compile_for_topology
from r3gan_jax.training.loop import Experiment


def main() -> None:
  parser = measure.parser(__doc__ or "")
  parser.add_argument("--configs", nargs="+", default=PRESETS, help="recipes (all presets)")
  parser.add_argument("--topologies", nargs="+", help="slices, e.g. v5e:2x2 (config.run.tpu_topology)")
  parser.add_argument("--micro_batch", type=int, default=0, help="images per chip and micro-batch (as many as fit)")
  parser.add_argument("--grouped_conv", nargs="+", default=["auto"], help="algorithms (%(default)s)")
  parser.add_argument("--penalties", nargs="+", default=["directional"], help="penalised gradients (%(default)s)")
  options = parser.parse_args()
  try:
    rows = [
      compiled(recipe, topology, grouped_conv, penalty, options.micro_batch)
      for recipe in options.configs
      for topology in options.topologies or [recommended_topology(recipe)]
      for grouped_conv in options.grouped_conv
      for penalty in options.penalties
    ]
  except UserError as error:
    sys.exit(f"error: {error}")
  measure.report({"One iteration, per chip": rows}, options.json)


def compiled(recipe: str, topology: str, grouped_conv: str, penalty: str, micro_batch: int) -> measure.Row:
  """Compiles a recipe; returns a row of the table, and prints it."""
  built = experiment(recipe, grouped_conv, penalty, micro_batch)
  names = {"recipe": recipe, "topology": topology, "grouped conv": grouped_conv, "penalty": penalty}
  line = names | row(compile_for_topology(built, topology), built.batch_size)
  print(measure.table([line]), flush=True)
  return line


def recommended_topology(recipe: str) -> str:
  topology = load_recipe(recipe).run.tpu_topology
  if not topology:
    raise UserError(f"{recipe} has no config.run.tpu_topology: give --topologies")
  return topology


def experiment(
  recipe: str, grouped_conv: str, penalised_gradient: str, micro_batch: int, platform: str = "tpu"
) -> Experiment:
  """Builds the experiment of a recipe as it is trained on one platform."""
  config = load_recipe(recipe)
  config.gan.grouped_conv = grouped_conv
  config.gan.penalised_gradient = penalised_gradient
  for phase in config.run.micro_batch:
    config.run.micro_batch[phase] = micro_batch
  return factory.build_experiment(config, device_count=1, platform=platform)


def row(plan: TpuPlan, batch_size: int) -> measure.Row:
  counts = Counter(collective.kind for collective in plan.collectives)
  return {
    "images / chip": batch_size // plan.chip_count,
    "micro-batch": min(plan.micro_batches.values(), default=0) or batch_size // plan.chip_count,
    "TFLOP": plan.flops / 1e12,
    "GB": plan.bytes_accessed / 1e9,
    "temporaries GiB": plan.temporaries / GIB,
    "HBM GiB": plan.used / GIB,
    "HBM free %": 100 * (1 - plan.used / plan.memory),
    "roofline ms": 1e3 * plan.roofline_seconds,
    "sums in bfloat16": len(bfloat16_sums(plan.text)),
    "collectives": ", ".join(f"{count} {kind}" for kind, count in counts.items()),
    "all-reduced MB": plan.all_reduce_bytes / 1e6,
    "all-reduce ms": 1e3 * plan.all_reduce_seconds,
  }


if __name__ == "__main__":
  main()
