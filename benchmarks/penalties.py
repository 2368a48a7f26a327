"""Measures the cost of exact R1 and R2 at every step: none, by directional derivative, by grad-of-grad.

    python -m benchmarks.penalties --config=configs/cifar10.py:unconditional --batch=4

Time, temporaries and compile time are those of the training program; GFLOP is XLA's count of the same iteration with
its native grouped convolution.
"""

import time
from typing import Any

from r3gan_jax.memory import keep_memory

if __name__ == "__main__":
  keep_memory()

import jax
import jax.numpy as jnp

from benchmarks import measure
from benchmarks.iteration import Iteration, add_arguments, build, load_config, lower
from benchmarks.iteration import with_native_convolutions as native
from r3gan_jax.losses.penalties import (
  Augmentation,
  Critic,
  Objective,
  PenalisedGradient,
  directional,
  grad_of_grad,
)


def without_penalty(
  critic: Critic, params: Any, images: jax.Array, augment: Augmentation, objective: Objective
) -> tuple[Any, dict[str, jax.Array]]:
  """Computes the adversarial gradient alone, with zeros for squared norms."""

  def loss(params: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    ones = jnp.ones(len(images))
    return objective(critic(params, augment(images), ones), jnp.zeros_like(ones))

  return jax.grad(loss, has_aux=True)(params)


GRADIENTS: dict[str, PenalisedGradient] = {
  "none": without_penalty,
  "directional": directional,
  "grad_of_grad": grad_of_grad,
}


def main() -> None:
  parser = measure.parser(__doc__ or "", repetitions=5)
  add_arguments(parser)
  options = parser.parse_args()
  config = load_config(options.config, options.batch)

  flops, compile_seconds, temporary, calls = {}, {}, {}, {}
  for name, gradient in GRADIENTS.items():
    flops[name] = measure.flops(lower(build(native(config), gradient)))
    experiment = build(config, gradient)
    lowered = lower(experiment)
    start = time.perf_counter()
    compiled = lowered.compile()
    compile_seconds[name] = time.perf_counter() - start
    temporary[name] = measure.temporary_bytes(compiled)
    calls[name] = Iteration(experiment, compiled)
  seconds = measure.interleaved_seconds(calls, options.repetitions)

  rows: list[measure.Row] = [
    {
      "penalty": name,
      "s / iteration": seconds[name],
      "time over none": seconds[name] / seconds["none"],
      "GFLOP": flops[name] / 1e9,
      "GFLOP over none": flops[name] / flops["none"],
      "temporary MiB": temporary[name] / 2**20,
      "memory over none": temporary[name] / temporary["none"],
      "compile s": compile_seconds[name],
    }
    for name in GRADIENTS
  ]
  title = f"{options.config}, batch {config.batch_size}, float32, {measure.threads()} threads"
  measure.report({title: rows}, options.json)


if __name__ == "__main__":
  main()
