"""Times the algorithms of ops/grouped_conv.py on the 3x3 convolutions of recipes.

    python -m benchmarks.grouped_conv --configs configs/cifar10.py configs/ffhq64.py --batch=4

Prints milliseconds of a forward pass, of forward and both gradients, and of a penalty's gradient (of
|grad_x |y|^2 / 2|^2 / 2 with respect to x and the kernel), with the same algorithm in every derivative. XLA's native
algorithm is measured only with --algorithms native: its gradients take minutes on a CPU. PyTorch's F.conv2d is measured
if PyTorch is installed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from r3gan_jax.memory import keep_memory

if __name__ == "__main__":
  keep_memory()

import jax
import jax.numpy as jnp

from benchmarks import measure
from benchmarks.iteration import load_config
from r3gan_jax.ops.grouped_conv import ALGORITHMS, grouped_conv

PATIENCE_S = 5.0  # slower calls, up to 1000 times as slow, run once


class Shape(NamedTuple):
  """x is [batch, side, side, channels], in `groups` groups."""

  batch: int
  side: int
  channels: int
  groups: int

  @property
  def kernel(self) -> tuple[int, int, int, int]:
    return 3, 3, self.channels // self.groups, self.channels

  def __str__(self) -> str:
    return f"[{self.batch}, {self.side}, {self.side}, {self.channels}] / {self.groups}"


def main() -> None:
  parser = measure.parser(__doc__ or "", repetitions=5)
  parser.add_argument("--configs", nargs="+", default=["configs/cifar10.py"], help="recipes (%(default)s)")
  parser.add_argument("--batch", type=int, default=4, help="images (%(default)s)")
  parser.add_argument("--algorithms", nargs="+", default=["per_group", "compiled"], choices=list(ALGORITHMS))
  options = parser.parse_args()
  contestants = {name: jax_computations(name) for name in options.algorithms}
  if measure.has_torch():
    contestants["PyTorch"] = torch_computations()

  rows: list[measure.Row] = []
  for shape in recipe_shapes(options.configs, options.batch):
    bound = {name: bind(shape) for name, bind in contestants.items()}
    for computation in ("forward", "forward + gradients", "penalty gradient"):
      calls = {name: computations[computation] for name, computations in bound.items() if computations}
      seconds = measure.interleaved_seconds(calls, options.repetitions, PATIENCE_S)
      fastest = min(seconds.keys() & options.algorithms, key=lambda name: seconds[name])
      times = {f"{name} ms": 1e3 * time for name, time in seconds.items()}
      rows.append({"x / groups": str(shape), "computation": computation} | times | {"fastest of ours": fastest})
  title = f"grouped 3x3 convolutions, float32, {jax.default_backend()}, {measure.threads()} threads"
  measure.report({title: rows}, options.json)


def recipe_shapes(recipes: list[str], batch: int) -> list[Shape]:
  """Returns every shape in the recipes' blocks, once."""
  shapes = {
    Shape(batch, 4 * 2**stage, round(width * network.expansion), cardinality)
    for network in (load_config(recipe, batch).gan for recipe in recipes)
    for stage, (width, cardinality) in enumerate(zip(network.widths, network.cardinalities, strict=True))
  }
  return sorted(shapes, key=lambda shape: (shape.channels, shape.side))


Computations = dict[str, Callable[[], Any]]


def jax_computations(algorithm: str) -> Callable[[Shape], Computations]:
  def conv(x: jax.Array, kernel: jax.Array, groups: int) -> jax.Array:
    return grouped_conv(x, kernel, groups, algorithm=algorithm)

  def bind(shape: Shape) -> Computations:
    keys = jax.random.split(jax.random.key(0), 3)
    x, dy = (jax.random.normal(key, (shape.batch, shape.side, shape.side, shape.channels)) for key in keys[:2])
    kernel = jax.random.normal(keys[2], shape.kernel)

    def forward(x: jax.Array, kernel: jax.Array) -> jax.Array:
      return conv(x, kernel, shape.groups)

    def gradients(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> Any:
      y, pull_back = jax.vjp(forward, x, kernel)
      return y, pull_back(dy)

    def penalty(x: jax.Array, kernel: jax.Array) -> jax.Array:
      return jnp.sum(jnp.square(jax.grad(lambda x: jnp.sum(jnp.square(forward(x, kernel))) / 2)(x))) / 2

    forward_, gradients_, penalty_ = jax.jit(forward), jax.jit(gradients), jax.jit(jax.grad(penalty, (0, 1)))
    try:
      jax.block_until_ready(forward_(x, kernel))
    except jax.errors.JaxRuntimeError:
      return {}  # the algorithm does not run on this device
    return {
      "forward": lambda: forward_(x, kernel),
      "forward + gradients": lambda: gradients_(x, kernel, dy),
      "penalty gradient": lambda: penalty_(x, kernel),
    }

  return bind


def torch_computations() -> Callable[[Shape], Computations]:
  """Returns the same calls in PyTorch, NCHW, on the device that JAX uses."""
  import torch
  import torch.nn.functional as F

  device = measure.torch_device()

  def bind(shape: Shape) -> Computations:
    x, dy = (torch.randn(shape.batch, shape.channels, shape.side, shape.side, device=device) for _ in range(2))
    kernel = torch.randn(shape.channels, shape.channels // shape.groups, 3, 3, device=device)
    x.requires_grad_(True)
    kernel.requires_grad_(True)

    def conv() -> torch.Tensor:
      return F.conv2d(x, kernel, padding=1, groups=shape.groups)

    def forward() -> None:
      with torch.no_grad():
        conv()

    def gradients() -> None:
      torch.autograd.grad(conv(), (x, kernel), dy)

    def penalty() -> None:
      (gradient,) = torch.autograd.grad(conv().square().sum() / 2, x, create_graph=True)
      torch.autograd.grad(gradient.square().sum() / 2, (x, kernel))

    def complete(call: Callable[[], None]) -> Callable[[], None]:
      def wait() -> None:
        call()
        if device == "cuda":
          torch.cuda.synchronize()

      return wait

    return {
      "forward": complete(forward),
      "forward + gradients": complete(gradients),
      "penalty gradient": complete(penalty),
    }

  return bind


if __name__ == "__main__":
  main()
