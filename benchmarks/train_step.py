"""Times a whole training iteration (D, G, Adam, moving average), also as a fraction of the machine's peak.

    python -m benchmarks.train_step --config=configs/cifar10.py:unconditional --batch=4 --against torch

`--against torch` runs the same iteration (networks, batch, float32, threads) in PyTorch, in turn with ours, in its own
process: in one process, idle threads of one cost the other up to a third of its speed. Both run with main.py's
allocator settings; `GLIBC_TUNABLES= python ...` switches them off for both. GFLOP is XLA's count of the iteration with
its native grouped convolution: ours with the recipe's penalised gradient, PyTorch's with our grad_of_grad. The peak is
that of a large matrix product in the same run, float32 (in TF32 for both, if the device has it) or bfloat16.

`--bfloat16`, for a card: ours as the recipe trains there; PyTorch under autocast, with channels last, and once more
with G, and D in G's step, compiled by torch.compile (which cannot differentiate twice).
"""

import json
from collections.abc import Callable
from typing import Any

from r3gan_jax.memory import keep_memory

if __name__ == "__main__":
  keep_memory()

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from benchmarks import measure
from benchmarks.iteration import Iteration, add_arguments, build, load_config, lower, random_batches
from benchmarks.iteration import with_native_convolutions as native


def main() -> None:
  parser = measure.parser(__doc__ or "", repetitions=5)
  add_arguments(parser)
  parser.add_argument("--against", choices=["torch"], help="also measure the same iteration in PyTorch")
  parser.add_argument("--bfloat16", action="store_true", help="as on a card (float32)")
  options = parser.parse_args()
  config = load_config(options.config, options.batch, options.bfloat16)
  dtype = jnp.bfloat16 if options.bfloat16 else jnp.float32

  experiment = build(config)
  peak, peak_flops = measure.peak_matmul(jnp.dtype(dtype))
  calls: dict[str, Callable[[], Any]] = {
    "r3gan_jax": Iteration(experiment, lower(experiment).compile()),
    "matmul": peak,
  }
  theirs = {"torch": False, "torch, compiled": True} if options.bfloat16 else {"torch": False}
  if options.against:
    for name, compiled in theirs.items():
      calls[name] = measure.in_own_process(torch_iteration, config.to_json(), options.bfloat16, compiled)
  seconds = measure.interleaved_seconds(calls, options.repetitions)

  flops = {"matmul": peak_flops, "r3gan_jax": native_flops(config)}
  if options.against:
    config.gan.penalised_gradient = "grad_of_grad"
    flops |= dict.fromkeys(theirs, native_flops(config))
  rates = {name: flops[name] / seconds[name] for name in seconds}
  rows: list[measure.Row] = [
    {
      "implementation": name,
      "s / iteration": seconds[name],
      "images / s": config.batch_size / seconds[name],
      "speed over torch": min(seconds[name] for name in theirs) / seconds[name] if options.against else None,
      "GFLOP": flops[name] / 1e9,
      "GFLOP / s": rates[name] / 1e9,
      "of the peak": rates[name] / rates["matmul"],
    }
    for name in seconds
    if name != "matmul"
  ]
  rows.append({"implementation": "matmul", "GFLOP": peak_flops / 1e9, "GFLOP / s": rates["matmul"] / 1e9})
  title = f"{options.config}, batch {config.batch_size}, {jnp.dtype(dtype).name}, {measure.threads()} threads"
  measure.report({title: rows}, options.json)


def native_flops(config: ConfigDict) -> float:
  return measure.flops(lower(build(native(config))))


def torch_iteration(config_json: str, bfloat16: bool, compiled: bool) -> Callable[[], None]:
  """Returns an iteration in PyTorch, on the GPU if JAX uses one; the call waits for its end. See the module."""
  import torch

  from benchmarks import torch_r3gan

  config = ConfigDict(json.loads(config_json))
  device = measure.torch_device()
  generator, average = (torch_r3gan.build_generator(config).to(device) for _ in range(2))
  discriminator = torch_r3gan.build_discriminator(config).to(device)
  layout = torch.channels_last if bfloat16 else torch.contiguous_format
  for network in (generator, discriminator, average):
    network.to(memory_format=layout)
  trainer = torch_r3gan.Trainer(generator, discriminator, average, compiled)
  hyperparameters = torch_r3gan.Hyperparameters(
    config.gan.learning_rate[0], config.gan.beta2[0], config.gan.gamma[0], ema_decay=0.999
  )
  batches = random_batches(build(config))
  uint8 = [
    torch.tensor(np.moveaxis(batch["image"], -1, 1), device=device).to(memory_format=layout) for batch in batches
  ]
  classes = config.data.num_classes
  labels = tuple(torch.eye(classes, device=device)[batch["label"]] if classes else None for batch in batches)

  def iteration() -> None:
    images = tuple((image.float() / 127.5 - 1).contiguous(memory_format=layout) for image in uint8)
    z = tuple(torch.randn(len(image), config.gan.noise_dim, device=device) for image in uint8)
    with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
      trainer.iteration(z, images, labels, hyperparameters)
    if device == "cuda":
      torch.cuda.synchronize()

  return iteration


if __name__ == "__main__":
  main()
