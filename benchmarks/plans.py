"""Shared by tpu.py and gpu.py: a recipe, compiled for a topology, as a row of a table."""

from collections import Counter
from collections.abc import Mapping

from benchmarks import measure
from benchmarks.iteration import load_recipe
from r3gan_jax import factory
from r3gan_jax.planning.hlo import GpuProgram, bfloat16_sums
from r3gan_jax.planning.plan import compile_for_topology
from r3gan_jax.planning.topology import GIB, parse_topology


def planned(
  recipe: str,
  topology: str,
  micro_batch: int,
  settings: Mapping[str, str],
  compiler_options: Mapping[str, bool | int] | None = None,
) -> measure.Row:
  """Compiles a recipe with other `settings` of its GAN; returns a row of the table, and prints it."""
  config = load_recipe(recipe)
  config.gan.update(settings)
  for phase in config.run.micro_batch:
    config.run.micro_batch[phase] = micro_batch
  experiment = factory.build_experiment(config, 1, parse_topology(topology).device.platform)
  plan = compile_for_topology(experiment, topology, compiler_options)
  of_device = experiment.batch_size // plan.topology.size
  counts = Counter(collective.kind for collective in plan.collectives)
  all_reduce = plan.all_reduce_seconds
  line: measure.Row = {
    "recipe": recipe,
    "topology": topology,
    **settings,
    "images": of_device,
    "micro-batch": min(plan.micro_batches.values(), default=0) or of_device,
    "TFLOP": plan.flops / 1e12,
    "GB": plan.bytes_accessed / 1e9,
    "temporaries GiB": plan.temporaries / GIB,
    "memory GiB": plan.used / GIB,
    "free %": 100 * (1 - plan.used / plan.topology.usable_memory),
    "roofline ms": 1e3 * plan.roofline_seconds,
    "sums in bfloat16": len(bfloat16_sums(plan.text)),
    "collectives": ", ".join(f"{count} {kind}" for kind, count in counts.items()),
    "all-reduced MB": plan.all_reduce_bytes / 1e6,
    "all-reduce ms": None if all_reduce is None else 1e3 * all_reduce,
    "hours of the run": plan.least_hours,
  }
  if plan.topology.device.platform == "gpu":
    program = GpuProgram(plan.text)
    line |= {
      "cuDNN calls": program.cudnn_convolutions(),
      "other convolutions": len(program.other_convolutions()),
      "cuBLAS calls": plan.text.count('custom_call_target="__cublas'),
      "transposed GB": program.transposed_bytes() / 1e9,
    }
  print(measure.table([line]), flush=True)
  return line
