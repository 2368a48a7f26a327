"""Compiles an iteration, with augmentation, for GPUs on a machine without one, and shows what it needs.

    pip install -e '.[gpu-compiler]'
    python -m benchmarks.gpu    # every preset, at its batch, on the cards that its paper used
    python -m benchmarks.gpu --topologies h100:1x1
    python -m benchmarks.gpu --configs configs/cifar10.py --topologies h100:1x8 --grouped_conv native merged_4
    python -m benchmarks.gpu --configs configs/cifar10.py --topologies h100:1x8 --cublas

All numbers are per card. Memory and kernels are those of a card, but without autotuning, which needs one. The roofline
time max(FLOPs / peak, bytes / bandwidth) and the time of the all-reduces are lower bounds, not measurements.
"""

import os
import sys

os.environ["JAX_PLATFORMS"] = "cpu"

from benchmarks import measure
from benchmarks.iteration import PRESETS
from benchmarks.plans import planned
from r3gan_jax.errors import UserError

PUBLISHED = {
  "configs/stacked_mnist.py": "l40:1x8",
  "configs/cifar10.py": "l40:1x8",
  "configs/cifar10.py:unconditional": "l40:1x8",
  "configs/ffhq64.py": "l40:1x8",
  "configs/ffhq256.py": "a6000:1x8",
  "configs/imagenet32.py": "h100:4x8",
  "configs/imagenet64.py": "h100:8x8",
}
"""Preset -> the hardware of the published run; for StackedMNIST and FFHQ-64 the paper says 8 GPUs, not which."""


def main() -> None:
  parser = measure.parser(__doc__ or "")
  parser.add_argument("--configs", nargs="+", default=PRESETS, help="recipes (all presets)")
  parser.add_argument("--topologies", nargs="+", help="cards, e.g. h100:1x8 (those of the published run)")
  parser.add_argument("--micro_batch", type=int, default=0, help="images per card and micro-batch (as many as fit)")
  parser.add_argument("--grouped_conv", nargs="+", default=["auto"], help="algorithms (%(default)s)")
  parser.add_argument("--cublas", action="store_true", help="no matrix products by Triton, XLA's default")
  options = parser.parse_args()
  compiler_options = {"xla_gpu_enable_triton_gemm": False} if options.cublas else {}
  try:
    rows = [
      planned(recipe, topology, options.micro_batch, {"grouped_conv": grouped_conv}, compiler_options)
      for recipe in options.configs
      for topology in options.topologies or [published_topology(recipe)]
      for grouped_conv in options.grouped_conv
    ]
  except UserError as error:
    sys.exit(f"error: {error}")
  measure.report({"One iteration, per card": rows}, options.json)


def published_topology(recipe: str) -> str:
  if recipe not in PUBLISHED:
    raise UserError(f"the cards of a published run of {recipe} are not known: give --topologies")
  return PUBLISHED[recipe]


if __name__ == "__main__":
  main()
