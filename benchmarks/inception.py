"""Measures images per second through FID's Inception, beside PyTorch's if it is installed.

    python -m benchmarks.inception --batch=8

uint8 images of --resolution are resized to 299; pool3 and logits are computed in float32 with random weights. PyTorch
runs in its own process, in turn with ours. First the results of both are compared.
"""

from collections.abc import Callable
from typing import Any

from r3gan_jax.memory import keep_memory

if __name__ == "__main__":
  keep_memory()

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from benchmarks import measure
from r3gan_jax.interop.weights import INCEPTION
from r3gan_jax.metrics import inception


def main() -> None:
  parser = measure.parser(__doc__ or "", repetitions=5)
  parser.add_argument("--batch", type=int, default=8, help="images per batch (%(default)s)")
  parser.add_argument("--resolution", type=int, default=32, help="side of the images, in pixels (%(default)s)")
  options = parser.parse_args()
  images = random_images(options.batch, options.resolution)
  params = jax.device_put(INCEPTION.convert(random_state(), inception.abstract_params(), "random weights"))

  @jax.jit
  def ours(params: Any, images: jax.Array) -> Any:
    return inception.Inception().apply({"params": params}, inception.preprocess(images, "pytorch"))

  traced = ours.trace(params, images)
  compiled = traced.lower().compile()
  peak, peak_flops = measure.peak_matmul()
  calls: dict[str, Callable[[], Any]] = {"r3gan_jax": lambda: compiled(params, images), "matmul": peak}
  if measure.has_torch():
    theirs = torch_inception(options.batch, options.resolution)()
    for mine, other in zip(compiled(params, images), theirs, strict=True):
      error = np.linalg.norm(mine - other.cpu().numpy()) / np.linalg.norm(mine)
      assert error < 1e-3, f"PyTorch's result differs by {error:.1e}"
    calls["torch"] = measure.in_own_process(torch_inception, options.batch, options.resolution)
  seconds = measure.interleaved_seconds(calls, options.repetitions)
  rate = peak_flops / seconds.pop("matmul")
  flops = measure.flops(traced.lower(lowering_platforms=("cuda",)))  # XLA does not see into our kernel for CPUs
  rows: list[measure.Row] = [
    {
      "implementation": name,
      "images / s": options.batch / taken,
      "speed over torch": seconds["torch"] / taken if "torch" in seconds else None,
      "of the matmul peak": flops / taken / rate,
    }
    for name, taken in seconds.items()
  ]
  title = f"Inception, {options.resolution} pixels, batch {options.batch}, {measure.threads()} threads"
  measure.report({title: rows}, options.json)


def torch_inception(batch: int, resolution: int) -> Callable[[], Any]:
  """Returns the same call in PyTorch, on the GPU if JAX uses one; the call waits for its end."""
  import torch

  from benchmarks.torch_inception import Inception

  device = measure.torch_device()
  network = Inception({name: torch.tensor(value, device=device) for name, value in random_state().items()})
  images = torch.tensor(np.moveaxis(random_images(batch, resolution), -1, 1).copy(), device=device)

  def call() -> Any:
    results = network(images)
    if device == "cuda":
      torch.cuda.synchronize()
    return results

  return call


def random_images(batch: int, resolution: int) -> np.ndarray:
  return np.random.default_rng(0).integers(0, 256, (batch, resolution, resolution, 3), dtype=np.uint8)


def random_state() -> dict[str, np.ndarray]:
  """Returns a random state dict with the published names and shapes."""
  random = np.random.default_rng(0)
  state: dict[str, np.ndarray] = {}
  for path, leaf in flatten_dict(inception.abstract_params()).items():
    name, shape = ".".join(path[:-1]), leaf.shape
    if path[-1] == "bias":
      continue
    weight = random.standard_normal(shape[::-1][:2] + shape[:-2], dtype=np.float32)
    weight *= np.sqrt(2 / np.prod(weight.shape[1:])).astype(np.float32)
    small = [0.1 * random.standard_normal(shape[-1], dtype=np.float32) for _ in range(3)]
    if name == "fc":
      state |= {"fc.weight": weight, "fc.bias": small[0]}
    else:
      state |= {f"{name}.conv.weight": weight, f"{name}.bn.weight": 1 + small[0], f"{name}.bn.bias": small[1]}
      state |= {f"{name}.bn.running_mean": small[2], f"{name}.bn.running_var": np.ones(shape[-1], np.float32)}
  return state


if __name__ == "__main__":
  main()
