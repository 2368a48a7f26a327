"""Shows the cost of an iteration for each of 1, 2, 4 and 8 devices, from programs compiled for fake CPU devices.

    python -m benchmarks.scaling --config=configs/cifar10.py:unconditional --batch=8

The global batch is constant. GFLOP is XLA's count with its native grouped convolution; memory and collectives are those
of the training program.
"""

from collections import Counter

import jax

from benchmarks import measure
from benchmarks.iteration import add_arguments, build, load_config, lower
from benchmarks.iteration import with_native_convolutions as native
from r3gan_jax.planning.hlo import Collective, collectives

DEVICES = (1, 2, 4, 8)


def main() -> None:
  parser = measure.parser(__doc__ or "")
  add_arguments(parser)
  parser.set_defaults(batch=max(DEVICES))
  options = parser.parse_args()
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", max(DEVICES))
  config = load_config(options.config, options.batch)

  rows: list[measure.Row] = []
  gflop: list[float] = []
  found: dict[tuple[int, Collective], int] = {}
  for devices in DEVICES:
    gflop.append(measure.flops(lower(build(native(config)), devices).compile()) / 1e9)
    compiled = lower(build(config), devices).compile()
    operations = collectives(compiled.as_text() or "")
    found |= {(devices, operation): count for operation, count in Counter(operations).items()}
    rows.append(
      {
        "devices": devices,
        "images / device": config.batch_size // devices,
        "GFLOP / device": gflop[-1],
        "of a single device": gflop[-1] / gflop[0],
        "temporary MiB / device": measure.temporary_bytes(compiled) / 2**20,
        "collectives": len(operations),
        "collective MiB": sum(operation.size for operation in operations) / 2**20,
      }
    )
  listing: list[measure.Row] = [
    {"devices": devices, "collective": operation.kind, "bytes": operation.size, "count": count}
    for (devices, operation), count in sorted(found.items(), key=lambda item: (item[0][0], -item[0][1].size))
  ]
  title = f"{options.config}, global batch {config.batch_size}, float32"
  measure.report({title: rows, "collectives": listing}, options.json)


if __name__ == "__main__":
  main()
