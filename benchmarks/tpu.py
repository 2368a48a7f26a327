"""What an iteration takes on TPUs, as libtpu compiles it on a machine that has none (pip install 'r3gan_jax[tpu]').

    python -m benchmarks.tpu --configs cifar10:unconditional --topologies v5e:2x2 --grouped_conv native pallas

Every number is of one chip. The roofline time max(FLOPs / peak, bytes / bandwidth) is a lower bound, not a measurement.
A whole iteration compiles in minutes.
"""

import importlib
import os
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import measure
from r3gan_jax import factory
from r3gan_jax.errors import UserError
from r3gan_jax.training.loop import Experiment
from r3gan_jax.training.tpu import GIB, TpuPlan, compile_for_topology


def main() -> None:
  parser = measure.parser(__doc__ or "", repetitions=1)
  parser.add_argument("--configs", nargs="+", default=["cifar10:unconditional"], help="recipes (%(default)s)")
  parser.add_argument("--topologies", nargs="+", default=["v5e:2x2", "v5e:4x4"], help="slices (%(default)s)")
  parser.add_argument("--grouped_conv", nargs="+", default=["auto"], help="algorithms (%(default)s)")
  parser.add_argument("--penalties", nargs="+", default=["directional"], help="or grad_of_grad (%(default)s)")
  options = parser.parse_args()
  rows: list[measure.Row] = []
  for recipe in options.configs:
    for topology in options.topologies:
      for grouped_conv in options.grouped_conv:
        for penalty in options.penalties:
          names = {"recipe": recipe, "topology": topology, "grouped conv": grouped_conv, "penalty": penalty}
          try:
            rows.append(names | row(compile_for_topology(experiment(recipe, grouped_conv, penalty), topology)))
          except UserError as error:
            sys.exit(f"error: {error}")
          print(measure.table(rows[-1:]), flush=True)
  measure.report({"One iteration, per chip": rows}, options.json)


def experiment(recipe: str, grouped_conv: str, penalised_gradient: str) -> Experiment:
  """A recipe, "NAME[:variant]" of configs/, for TPUs."""
  name, _, variant = recipe.partition(":")
  config = importlib.import_module(f"configs.{name}").get_config(variant)
  config.network.grouped_conv = grouped_conv
  config.penalised_gradient = penalised_gradient
  return factory.build_experiment(config, device_count=1, platform="tpu")


def row(plan: TpuPlan) -> measure.Row:
  micro_batches = ", ".join(f"{phase} {size}" for phase, size in plan.micro_batches.items())
  sizes: dict[str, list[int]] = {}
  for collective in plan.collectives:
    sizes.setdefault(collective.kind, []).append(collective.size)
  return {
    "TFLOP": plan.flops / 1e12,
    "GB": plan.bytes_accessed / 1e9,
    "arguments GiB": plan.arguments / GIB,
    "temporaries GiB": plan.temporaries / GIB,
    "of HBM %": 100 * (plan.arguments + plan.temporaries) / plan.memory,
    "collectives": "; ".join(f"{len(all_)} {kind} {sum(all_) / 1e6:.1f} MB" for kind, all_ in sizes.items()),
    "roofline ms": 1e3 * plan.roofline_seconds,
    "micro-batches": micro_batches or "none",
  }


if __name__ == "__main__":
  main()
