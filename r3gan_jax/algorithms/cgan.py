"""CGAN: a GAN whose players both see the class y (Mirza and Osindero 2014, arXiv 1411.1784).

GAN's losses (algorithms/gan.py) with y in every term, and z ~ U(0, 1):

    D    1/2 mean( softplus(-D(real, y)) + softplus(D(G(z, y'), y')) )        equation 2, halved
    G    mean( softplus(-D(G(z, y'), y')) )

y' are the labels of the reals, exchanged between neighbours in the batch. So the fakes have the class frequencies of
the data, whatever those are, and a fake's class is independent of the real image beside it.

Dropout is in both players; the paper does not say where. Here it is before the joint layer and before the output.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from r3gan_jax.algorithms.base import Batch, Carry, Params, Phase, bounds
from r3gan_jax.algorithms.gan import NETWORKS, PHASES, AdversarialNets, clipped, schedules
from r3gan_jax.algorithms.images import Images
from r3gan_jax.errors import UserError
from r3gan_jax.networks.mlp import Discriminator, Generator
from r3gan_jax.optimizers import sgd
from r3gan_jax.settings import Pair, below_one, not_negative, positive, probability, setting

__all__ = ["PHASES", "ConditionalAdversarialNets", "Settings", "build", "smoke"]


@dataclass(frozen=True)
class Settings:
  """`config.gan` of CGAN; the defaults are the paper's, for MNIST."""

  widths: tuple[int, int] = setting((200, 1200), positive)  # of G: the noise's layer and the joint one
  label_width: int = setting(1000, positive)  # of G: the label's layer
  units: tuple[int, int] = setting((240, 240), positive)  # of D: the image's layer and the joint one
  pieces: tuple[int, int] = setting((5, 4), positive)  # of each unit of maxout in these
  label_units: int = setting(50, positive)  # of D: the label's layer, with as many pieces as the image's
  noise_dim: int = setting(100, positive)  # length of z
  mean_pixel: float = setting(0.1307, probability)  # of the data, in [0, 1]
  learning_rate: Pair = setting((0.1, 1e-6), positive)  # (from, to), exponential over
  decay_images: int = setting(28_782_889, positive)  # 1 / 1.00004 per batch of 100
  momentum: Pair = setting((0.5, 0.7), below_one)  # (from, to), linear over
  momentum_images: int = setting(15_000_000, positive)  # 250 epochs
  ema_half_life: float = setting(0.0, not_negative)  # images; 0, as in the paper: no averaging


def smoke(settings: Settings) -> dict[str, Any]:
  """Returns the changes for `:smoke`: tiny networks, a minute on a CPU."""
  del settings
  return {"widths": (16, 16), "label_width": 16, "units": (8, 8), "label_units": 8, "noise_dim": 8}


@dataclass(frozen=True)
class ConditionalAdversarialNets(AdversarialNets):
  """The algorithm (`algorithms.base.Algorithm`), conditional; attributes as in `AdversarialNets`."""

  @property
  def phases(self) -> Sequence[Phase]:
    (both,) = PHASES
    return (Phase(both, NETWORKS, self._gradients, counts_images=True, group=2),)

  def noise(self, keys: jax.Array) -> jax.Array:
    return jax.vmap(lambda key: jax.random.uniform(key, (self.noise_dim,)))(keys)

  @property
  def noise_bounds(self) -> tuple[np.ndarray, np.ndarray]:
    return bounds(0.0, 1.0, self.noise_dim)

  def generate(
    self, params: Params, carry: Carry, noise: jax.Array, labels: jax.Array | None, truncation: float = 1.0
  ) -> jax.Array:
    """Draws images. Truncation moves the noise towards the centre of the cube (not in the paper)."""
    return super().generate(params, carry, 0.5 + truncation * (noise - 0.5), labels)

  def fake_labels(self, batch: Batch) -> jax.Array:
    return batch["label"].reshape(-1, 2)[:, ::-1].reshape(-1)


def build(settings: Settings, images: Images, platform: str) -> ConditionalAdversarialNets:
  """Builds CGAN; arguments and errors are those of `algorithms.r3gan.build`, and data without classes."""
  del platform
  classes = images.num_classes
  if not classes:
    raise UserError("config.data.num_classes = 0: cgan needs classes: set it to their number, e.g. 10")
  return ConditionalAdversarialNets(
    generator=Generator(
      settings.widths, math.prod(images.shape), clipped(settings.mean_pixel), classes, settings.label_width, keep=0.5
    ),
    discriminator=Discriminator(settings.units, settings.pieces, classes, settings.label_units, keep=0.5),
    noise_dim=settings.noise_dim,
    images=images,
    optimizers=dict.fromkeys(NETWORKS, sgd()),
    schedules=schedules(settings),
  )
