"""Compiles an iteration for TPUs on a machine without one (pip install -e '.[tpu]'), and shows what it needs.

    python -m benchmarks.tpu    # every preset, at its batch, on the slice of its config.run.tpu_topology
    python -m benchmarks.tpu --configs configs/cifar10.py --topologies v5e:2x2 --grouped_conv native pallas

All numbers are per chip. The roofline time max(FLOPs / peak, bytes / bandwidth) and the time of the all-reduces are
lower bounds, not measurements. A whole iteration compiles in minutes.
"""

import os
import sys

os.environ["JAX_PLATFORMS"] = "cpu"

from benchmarks import measure
from benchmarks.iteration import PRESETS, load_recipe
from benchmarks.plans import planned
from r3gan_jax.errors import UserError


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
      planned(
        recipe, topology, options.micro_batch, {"grouped_conv": grouped_conv, "penalised_gradient": penalised_gradient}
      )
      for recipe in options.configs
      for topology in options.topologies or [recommended_topology(recipe)]
      for grouped_conv in options.grouped_conv
      for penalised_gradient in options.penalties
    ]
  except UserError as error:
    sys.exit(f"error: {error}")
  measure.report({"One iteration, per chip": rows}, options.json)


def recommended_topology(recipe: str) -> str:
  topology = load_recipe(recipe).run.tpu_topology
  if not topology:
    raise UserError(f"{recipe} has no config.run.tpu_topology: give --topologies")
  return topology


if __name__ == "__main__":
  main()
