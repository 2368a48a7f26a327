"""Measures images per second of the sampler, with and without writing PNGs, beside the same generator in PyTorch.

    python -m benchmarks.sampling --config=configs/cifar10.py --images=128

From seeds to uint8 images in host memory, float32, with random weights; `folder` also writes PNGs. PyTorch's generator
gets the same noise, classes and batch size, and runs in its own process, in turn with ours. First the results of both
are compared.
"""

import json
import tempfile
from collections.abc import Callable
from typing import Any

from r3gan_jax.memory import keep_memory

if __name__ == "__main__":
  keep_memory()

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from benchmarks import measure
from benchmarks.iteration import load_config
from r3gan_jax import factory
from r3gan_jax.algorithms.base import Algorithm
from r3gan_jax.sampling import Sampler, labels_of_seeds, save_pngs
from r3gan_jax.training.mesh import make_mesh, replicated


def main() -> None:
  parser = measure.parser(__doc__ or "", repetitions=3)
  parser.add_argument("--config", default="configs/cifar10.py", help="the recipe (%(default)s)")
  parser.add_argument("--batch", type=int, default=64, help="images per batch and device (%(default)s)")
  parser.add_argument("--images", type=int, default=128, help="number of images (%(default)s)")
  options = parser.parse_args()
  config = load_config(options.config, options.batch)
  algorithm = factory.build_algorithm(config)
  mesh = make_mesh(jax.local_devices())
  params = random_params(algorithm)
  on_devices = jax.device_put(params, replicated(mesh))
  sampler = Sampler(algorithm, mesh, options.batch)
  seeds = np.arange(options.images)
  labels = labels_of_seeds(seeds, algorithm.num_classes) if algorithm.num_classes else None

  def draw() -> np.ndarray:
    return sampler(on_devices, {}, seeds, labels)

  with tempfile.TemporaryDirectory() as directory:

    def write_folder() -> None:
      batches = sampler.batches(on_devices, {}, sampler.noise(seeds), labels)
      save_pngs(epath.Path(directory), [f"seed{seed:08}.png" for seed in seeds], batches)

    calls: dict[str, Callable[[], Any]] = {"r3gan_jax": draw, "r3gan_jax, folder": write_folder}
    if measure.has_torch():
      few = slice(0, min(options.batch, options.images, 4))
      given = (config.to_json(), params["generator"], sampler.noise(seeds), labels, options.batch * mesh.size)
      theirs = torch_sampler(*given[:2], given[2][few], None if labels is None else labels[few], options.batch)()
      error = np.abs(theirs.astype(int) - sampler(on_devices, {}, seeds[few], None if labels is None else labels[few]))
      assert error.max() <= 1 and theirs.std() > 10, f"PyTorch's images differ by up to {error.max()}"
      calls["torch"] = measure.in_own_process(torch_sampler, *given)
    seconds = measure.interleaved_seconds(calls, options.repetitions)
  rows: list[measure.Row] = [
    {
      "implementation": name,
      "images / s": options.images / taken,
      "speed over torch": seconds["torch"] / taken if "torch" in seconds else None,
    }
    for name, taken in seconds.items()
  ]
  title = f"{options.config}, batch {options.batch}, float32, {measure.threads()} threads"
  measure.report({title: rows}, options.json)


def random_params(algorithm: Algorithm) -> Any:
  """Returns initial parameters plus noise: layers that are initialised with zeros would hide differences."""
  params, _ = jax.jit(algorithm.init)(jax.random.key(0))
  random = np.random.default_rng(0)
  return jax.tree.map(
    lambda leaf: np.asarray(leaf) + 0.01 * random.standard_normal(leaf.shape, dtype=np.float32), params
  )


def torch_sampler(
  config_json: str, params: Any, noise: np.ndarray, labels: np.ndarray | None, batch: int
) -> Callable[[], np.ndarray]:
  """Draws uint8 images from noise in PyTorch, on the GPU if JAX uses one."""
  import torch

  from benchmarks import torch_r3gan

  config = ConfigDict(json.loads(config_json))
  device = measure.torch_device()
  generator = torch_r3gan.build_generator(config)
  torch_r3gan.load(generator, params)
  generator = generator.to(device)
  classes = config.data.num_classes

  @torch.inference_mode()
  def draw() -> np.ndarray:
    images = []
    for start in range(0, len(noise), batch):
      part = slice(start, start + batch)
      one_hot = None if labels is None else torch.eye(classes, device=device)[labels[part]]
      drawn = generator(torch.tensor(noise[part], device=device), one_hot)
      images.append((drawn * 127.5 + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())
    return np.concatenate(images)

  return draw


if __name__ == "__main__":
  main()
