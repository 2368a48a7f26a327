"""BigGAN: SAGAN, scaled up (Brock et al. 2019, arXiv 1809.11096).

SAGAN's phases, with two updates of D per update of G. What is new, besides width and batches of 2048:

- z enters every block of G, in chunks, beside an embedding of the class that all blocks share (networks/biggan.py);
- all kernels are orthogonal at first, and those of G are kept near it (equation 3). With a kernel's outputs as the rows
  of W, G also minimises

      w sum_W | W W^T * (1 - I) |^2      elementwise: the norms of the rows are free

- samples are of a moving average of G, with moments of batch norm recomputed for it ("standing statistics");
- samples are of z ~ N(0, I) without its tails: coordinates beyond a threshold are drawn anew ("truncation trick").
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jax.scipy.special import erf, erfinv

from r3gan_jax.algorithms import sagan
from r3gan_jax.algorithms.base import DATA_AXIS, Average, Batch, Carry, Hyperparameters, Metrics, Params, split_keys
from r3gan_jax.algorithms.images import Images
from r3gan_jax.algorithms.sagan import SAGAN
from r3gan_jax.errors import UserError
from r3gan_jax.networks.biggan import Generator
from r3gan_jax.networks.layers import moments_of_batch
from r3gan_jax.networks.resnet_sn import Discriminator, orthogonal
from r3gan_jax.settings import below_one, not_negative, positive, setting

PHASES = sagan.PHASES
STANDING_BATCHES, STANDING_BATCH = 16, 64
"""How many samples standing statistics are of, and how many are normalised together."""


@dataclass(frozen=True)
class Settings(sagan.Settings):
  """`config.gan` of BigGAN: SAGAN's, with three of its own; the defaults are the paper's, at 128x128."""

  generator_widths: tuple[int, ...] = setting((1536, 1536, 768, 384, 192, 96), positive)
  discriminator_widths: tuple[int, ...] = setting((96, 192, 384, 768, 1536, 1536), positive)
  attention_side: int = setting(64, not_negative)
  noise_dim: int = setting(120, positive)  # a multiple of the number of stages, which share it
  embed_dim: int = setting(128, positive)  # of the embedding of classes
  orthogonal_weight: float = setting(1e-4, not_negative)  # w
  discriminator_updates: int = setting(2, positive)
  generator_learning_rate: float = setting(5e-5, not_negative)
  discriminator_learning_rate: float = setting(2e-4, not_negative)
  beta2: float = setting(0.999, below_one)
  ema_half_life: float = setting(28_000_000.0, not_negative)  # images: a decay of 0.9999 per update of G


def smoke(settings: Settings) -> dict[str, Any]:
  """Returns the changes for `:smoke`: tiny networks with the same number of blocks, a minute on a CPU."""
  return sagan.smoke(settings) | {"noise_dim": 4 * len(settings.generator_widths), "embed_dim": 8}


@dataclass(frozen=True)
class BigGAN(SAGAN):
  """The algorithm (`algorithms.base.Algorithm`, `HasPictures` and `HasStandingMoments`): SAGAN's.

  Attributes:
    orthogonal_weight: see the module.
  """

  orthogonal_weight: float

  @property
  def averages(self) -> dict[str, Average]:
    return {"generator": Average("generator", "ema_half_life")}

  def generate(
    self, params: Params, carry: Carry, noise: jax.Array, labels: jax.Array | None, truncation: float = 1.0
  ) -> jax.Array:
    """Draws images by the truncation trick; `truncation` is the share of N(0, 1) that is kept, see `truncated`."""
    whole = jnp.asarray(truncation) == 1
    kept = jnp.where(whole, noise, truncated(noise, jnp.where(whole, 0.5, truncation)))  # finite, also in gradients
    return super().generate(params, carry, kept, labels)

  def standing(self, params: Params, carry: Carry) -> Carry:
    """Recomputes G's moments as means over those of 16 batches of 64 samples."""
    weights = self._trained_weights(params, carry)

    def of_batch(keys: jax.Array) -> Any:
      z_keys, label_keys = split_keys(keys, 2)
      labels = (self._drawn_labels(label_keys),) if self.num_classes else ()
      return moments_of_batch(self.generator, weights, carry["generator_moments"], self.noise(z_keys), *labels)

    keys = jax.random.split(jax.random.key(0), (STANDING_BATCHES, 1, STANDING_BATCH))
    on_one_device = jax.vmap(of_batch, axis_name=DATA_AXIS)
    moments = jax.lax.map(on_one_device, keys)
    return {**carry, "generator_moments": jax.tree.map(lambda m: jnp.mean(m, axis=(0, 1)), moments)}

  def _generator_gradients(
    self, params: Params, carry: Carry, batch: Batch, keys: jax.Array, hyperparameters: Hyperparameters
  ) -> tuple[Params, Carry, Metrics]:
    gradients, carry, metrics = super()._generator_gradients(params, carry, batch, keys, hyperparameters)
    term, of_term = jax.value_and_grad(non_orthogonality)(params["generator"])  # it does not depend on samples
    added = jax.tree.map(lambda g, t: g + self.orthogonal_weight * t, gradients["generator"], of_term)
    return {"generator": added}, carry, metrics | {"non_orthogonality": term}


def non_orthogonality(params: Any) -> jax.Array:
  """Returns the sum of (W W^T)_ij^2, i != j, over all kernels of G, the outputs of each as the rows of W."""
  total = jnp.zeros(())
  for path, kernel in flatten_dict(params).items():
    if path[-1] == "kernel":
      columns = kernel.reshape(-1, kernel.shape[-1])
      products = columns.T @ columns
      total += jnp.sum(jnp.square(products - jnp.diag(jnp.diag(products))))
  return total


def truncated(z: jax.Array, share: float | jax.Array) -> jax.Array:
  """Maps z ~ N(0, 1) to the normal distribution without its tails, of which the middle `share` remains.

  Its distribution is that of redrawing z while |z| > t, with erf(t / sqrt(2)) = share: 0.954 for the threshold t = 2,
  0.683 for 1, 0.383 for 0.5. It keeps the order of the coordinates, so that a seed keeps its image, more or less.
  """
  root = jnp.sqrt(jnp.asarray(2, z.dtype))
  return root * erfinv(share * erf(z / root))


def build(settings: Settings, images: Images, platform: str) -> BigGAN:
  """Builds BigGAN; arguments and errors are those of `algorithms.r3gan.build`."""
  del platform
  of_generator, of_discriminator = sagan.of_networks(settings, images)
  stages = len(settings.generator_widths)
  if settings.noise_dim % stages:
    raise UserError(
      f"config.gan.noise_dim = {settings.noise_dim}: z enters {stages} layers in equal chunks: choose a multiple of "
      f"{stages}"
    )
  return BigGAN(
    generator=Generator(**of_generator, kernel_init=orthogonal, embed_dim=settings.embed_dim),
    discriminator=Discriminator(**of_discriminator, kernel_init=orthogonal),
    orthogonal_weight=settings.orthogonal_weight,
    **sagan.of_training(settings, images),
  )
