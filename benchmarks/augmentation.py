"""Measures the cost of augmentation: an iteration with and without it, and augmentation alone.

    python -m benchmarks.augmentation --config=configs/cifar10.py:unconditional --batch=4

GFLOP and GB are XLA's counts of the iteration with its native grouped convolution. XLA counts the body of a loop once:
on a CPU, of more than 2^22 pixels of upsampled images (116 images of 32x32) these are all that counts.
"""

import argparse
from functools import partial
from typing import Any

from r3gan_jax.memory import keep_memory

if __name__ == "__main__":
  keep_memory()

import jax
import jax.numpy as jnp

from benchmarks import measure
from benchmarks.iteration import Iteration, add_arguments, build, load_config, lower
from benchmarks.iteration import with_native_convolutions as native
from r3gan_jax.augment.pipeline import augment


def main() -> None:
  parser = measure.parser(__doc__ or "", repetitions=5)
  add_arguments(parser)
  parser.add_argument(
    "--sides", nargs="+", type=int, default=[32, 64, 256], help="sides of augmented images, in pixels (%(default)s)"
  )
  options = parser.parse_args()
  tables = {
    f"{options.config}, batch {options.batch}, float32, {measure.threads()} threads": whole_iteration(options),
    "augmentation alone, milliseconds per image": alone(options),
  }
  measure.report(tables, options.json)


def whole_iteration(options: argparse.Namespace) -> list[measure.Row]:
  calls, counts = {}, {}
  for name, p in (("none", 0.0), ("augmentation", 0.5)):
    config = load_config(options.config, options.batch)
    config.gan.augment_p = (p, p)
    experiment = build(config)
    calls[name] = Iteration(experiment, lower(experiment).compile())
    counts[name] = lower(build(native(config))).compile()
  seconds = measure.interleaved_seconds(calls, options.repetitions)
  return [
    {
      "with": name,
      "s / iteration": seconds[name],
      "time over none": seconds[name] / seconds["none"],
      "GFLOP": measure.flops(counts[name]) / 1e9,
      "GFLOP over none": measure.flops(counts[name]) / measure.flops(counts["none"]),
      "GB": measure.bytes_accessed(counts[name]) / 1e9,
      "GB over none": measure.bytes_accessed(counts[name]) / measure.bytes_accessed(counts["none"]),
    }
    for name in calls
  ]


def alone(options: argparse.Namespace) -> list[measure.Row]:
  multipliers = load_config(options.config, options.batch).gan.augment.to_dict()
  keys = jax.random.split(jax.random.key(0), options.batch)
  rows: list[measure.Row] = []
  for side in options.sides:
    images = jax.random.uniform(jax.random.key(1), (options.batch, side, side, 3), minval=-1)

    def forward(images: jax.Array) -> jax.Array:
      return augment(images, keys, jnp.float32(0.5), multipliers)

    def forward_and_backward(images: jax.Array) -> Any:
      augmented, pull_back = jax.vjp(forward, images)
      return pull_back(augmented)

    compiled = {
      name: jax.jit(function).lower(images).compile()
      for name, function in (("forward", forward), ("forward + backward", forward_and_backward))
    }
    calls = {name: partial(program, images) for name, program in compiled.items()}
    seconds = measure.interleaved_seconds(calls, options.repetitions)
    rows.append({"side": str(side)})
    for name, program in compiled.items():
      rows[-1][name] = 1e3 * seconds[name] / options.batch
      rows[-1][f"{name}: temporary MiB"] = measure.temporary_bytes(program) / 2**20
  return rows


if __name__ == "__main__":
  main()
