"""Trains a small autoencoder of Stable Diffusion's kind on the images of a recipe, in minutes on a CPU:

    python -m benchmarks.train_autoencoder --config=configs/fashion_mnist.py --out=autoencoder

On the split "train", by Adam: the sum of squared errors of an image, as decoded from a sample of its latents, plus
1e-6 times their Kullback-Leibler divergence from N(0, 1). Prints the errors on the split "test", and writes what
`interop.sd_vae` reads.
"""

import time
from typing import Any

from r3gan_jax.memory import keep_memory

if __name__ == "__main__":
  keep_memory()

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import measure
from benchmarks.iteration import load_recipe
from r3gan_jax.data.loader import Loader
from r3gan_jax.interop.sd_vae import write_autoencoder
from r3gan_jax.networks.vae import Autoencoder
from r3gan_jax.ops.images import to_float
from r3gan_jax.sources import SOURCES
from r3gan_jax.training.mesh import batch_sharding, make_mesh

KL_WEIGHT = 1e-6
TEST_IMAGES = 1000
LOG_EVERY = 200  # steps


def main() -> None:
  parser = measure.parser(__doc__ or "")
  parser.add_argument("--config", default="configs/fashion_mnist.py", help="the recipe of the data (%(default)s)")
  parser.add_argument("--widths", type=int, nargs="+", default=[16, 32, 32], help="of the levels (%(default)s)")
  parser.add_argument("--blocks", type=int, default=1, help="residual blocks per level of the encoder (%(default)s)")
  parser.add_argument("--latent_channels", type=int, default=4, help="(%(default)s)")
  parser.add_argument("--groups", type=int, default=8, help="of group norm (%(default)s)")
  parser.add_argument("--batch", type=int, default=32, help="images per step (%(default)s)")
  parser.add_argument("--images", type=int, default=60_000, help="how many to train on (%(default)s)")
  parser.add_argument("--learning_rate", type=float, default=2e-3, help="Adam's largest (%(default)s)")
  parser.add_argument("--out", default="autoencoder", help="the folder to write (%(default)s)")
  options = parser.parse_args()
  config = load_recipe(options.config)
  autoencoder = Autoencoder(
    tuple(options.widths), options.blocks, options.latent_channels, config.data.channels, options.groups
  )
  training = Loader(SOURCES[config.data.source](config), seed=0, x_flip=config.data.x_flip)
  config.data.split = "test"
  test = SOURCES[config.data.source](config)

  steps = options.images // options.batch
  optimizer = optax.adam(optax.cosine_onecycle_schedule(steps, options.learning_rate), b2=0.99)

  @jax.jit
  def step(params: Any, state: Any, images: jax.Array, key: jax.Array) -> tuple[Any, Any, jax.Array]:
    (_, error), gradient = jax.value_and_grad(loss, has_aux=True)(params, images, key)
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(params, updates), state, error

  def loss(params: Any, images: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    images = to_float(images)
    mean, std = encode(params, images)
    error = squared_error(decode(params, mean + std * jax.random.normal(key, mean.shape)), images)
    divergence = jnp.sum(jnp.square(mean) + jnp.square(std) - 1 - 2 * jnp.log(std)) / 2 / len(images)
    return error * images[0].size + KL_WEIGHT * divergence, error

  def encode(params: Any, images: jax.Array) -> Any:
    return autoencoder.apply({"params": params}, images, method="encode")

  def decode(params: Any, latents: jax.Array) -> Any:
    return autoencoder.apply({"params": params}, latents, method="decode")

  def squared_error(images: jax.Array, others: jax.Array) -> jax.Array:
    return jnp.mean(jnp.square(images - others))

  @jax.jit
  def tested(params: Any, images: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    images = to_float(images)
    mean, std = encode(params, images)
    return squared_error(decode(params, mean), images), mean, std

  batches = training.iterate([options.batch], 0, batch_sharding(make_mesh(jax.devices()[:1])))
  params = jax.jit(autoencoder.init)(jax.random.key(0), to_float(jnp.asarray(test[np.arange(1)]["image"])))["params"]
  state, start = optimizer.init(params), time.perf_counter()
  for number, (batch,) in zip(range(steps), batches, strict=False):
    params, state, error = step(params, state, batch["image"], jax.random.key(number))
    if (number + 1) % LOG_EVERY == 0:
      seconds = time.perf_counter() - start
      print(f"{(number + 1) * options.batch:,} images, {seconds:.0f} s: squared error {error:.4f}", flush=True)
  write_autoencoder(options.out, autoencoder, jax.device_get(params))

  some = np.linspace(0, len(test) - 1, TEST_IMAGES).astype(int)
  error, mean, std = tested(params, test[some]["image"])
  row: measure.Row = {
    "squared error": float(error),
    "PSNR dB": float(10 * np.log10(4 / error)),
    "std of the latents": float(np.std(mean)),
    "encoder's std": float(np.mean(std)),
  }
  measure.report({f"{TEST_IMAGES} test images; written to {options.out}": [row]}, options.json)


if __name__ == "__main__":
  main()
