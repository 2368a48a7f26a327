"""Compiles an iteration, with augmentation, for H100s on a machine without one, and shows what it needs.

    python -m benchmarks.gpu    # every preset, at its batch, on 8 cards
    python -m benchmarks.gpu --configs configs/cifar10.py:unconditional --gpus 1

It needs a virtual environment with this project, XLA's CUDA plugin and the CUDA compiler, but no card or driver:

    pip install -e . && V=$(python -c 'import jax; print(jax.__version__)')
    pip install jax-cuda12-plugin==$V jax-cuda12-pjrt==$V nvidia-cuda-nvcc-cu12

Each preset is compiled with Triton's matrix products, XLA's default, and with cuBLAS's only. Memory and kinds of
kernels are those of a card, but without autotuning, which needs one; times are unknown.
"""

import os
import re
import sys
from collections import Counter
from importlib.util import find_spec

os.environ["JAX_PLATFORMS"] = "cpu"

from jax.experimental import topologies
from jax.sharding import Mesh

from benchmarks import measure
from benchmarks.iteration import PRESETS
from benchmarks.tpu import experiment
from r3gan_jax.errors import UserError
from r3gan_jax.planning.hlo import bfloat16_sums
from r3gan_jax.planning.plan import traced_step
from r3gan_jax.planning.tpu import GIB
from r3gan_jax.training.mesh import make_mesh

H100 = """
gpu_device_info {
  threads_per_block_limit: 1024  threads_per_warp: 32  threads_per_core_limit: 2048
  shared_memory_per_block: 49152  shared_memory_per_core: 233472  shared_memory_per_block_optin: 232448
  core_count: 132  fpus_per_core: 128  clock_rate_ghz: 1.98
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  memory_bandwidth: 3352320000000  l2_cache_size: 52428800  device_memory_size: 84942979072
  cuda_compute_capability { major: 9 minor: 0 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 12 minor: 9 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
"""The published numbers of an H100 SXM, as XLA reads them (GpuTargetConfigProto)."""


def main() -> None:
  parser = measure.parser(__doc__ or "")
  parser.add_argument("--configs", nargs="+", default=PRESETS, help="recipes (all presets)")
  parser.add_argument("--gpus", type=int, default=8, help="cards of one host (%(default)s)")
  parser.add_argument("--micro_batch", type=int, default=0, help="images per card and micro-batch (its whole part)")
  options = parser.parse_args()
  try:
    mesh = h100_mesh(options.gpus)
    rows = [
      compiled(recipe, mesh, triton, options.micro_batch) for recipe in options.configs for triton in (True, False)
    ]
  except UserError as error:
    sys.exit(f"error: {error}")
  measure.report({"One iteration, per H100": rows}, options.json)


def compiled(recipe: str, mesh: Mesh, triton: bool, micro_batch: int) -> measure.Row:
  """Compiles a recipe; returns a row of the table, and prints it."""
  built = experiment(recipe, "auto", "directional", micro_batch, platform="gpu")
  program = (
    traced_step(built, mesh, built.micro_batches)
    .lower()
    .compile({"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": triton})
  )
  memory, text = program.memory_analysis(), program.as_text()
  assert memory and text, "XLA states both"
  calls = Counter(re.findall(r'custom_call_target="__(cudnn|cublas)', text))
  line: measure.Row = {
    "recipe": recipe,
    "matrix products": "Triton" if triton else "cuBLAS",
    "images": built.batch_size // mesh.size,
    "temporaries GiB": memory.temp_size_in_bytes / GIB,
    "arguments GiB": memory.argument_size_in_bytes / GIB,
    "cuDNN calls": calls["cudnn"],
    "cuBLAS calls": calls["cublas"],
    "sums in bfloat16": len(bfloat16_sums(text)),
  }
  print(measure.table([line]), flush=True)
  return line


def h100_mesh(count: int) -> Mesh:
  """Returns a mesh of `count` H100s of one host; raises a UserError if XLA's CUDA plugin is missing."""
  if find_spec("jax_cuda12_plugin") is None:
    raise UserError("compiling for a GPU needs jax-cuda12-plugin: see the top of benchmarks/gpu.py")
  compiler = find_spec("nvidia.cuda_nvcc")
  for folder in (compiler and compiler.submodule_search_locations) or ():
    os.environ["PATH"] = f"{folder}/bin{os.pathsep}{os.environ['PATH']}"  # for ptxas
  topology = topologies.get_topology_desc("h100", platform="cuda", target_config=H100, topology=f"1x1x{count}")
  return make_mesh(topology.devices)


if __name__ == "__main__":
  main()
