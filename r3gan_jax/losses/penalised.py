"""Losses of the GANs that penalise D's gradient: WGAN-GP's as ProGAN has it, and the logistic one with R1 of StyleGAN.

D takes images of one resolution or, in MSG-GAN, of several; a penalty is then the mean over them of the penalties on
D's gradient with respect to the images of one resolution (Karnewar and Wang 2020, arXiv 1903.06048).

D may couple neighbours in the batch by their standard deviation, if the batch is a multiple of the group. As in the
published code, gradients are then those of the sum of all logits.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from r3gan_jax.losses.adversarial import NON_SATURATING
from r3gan_jax.losses.penalties import Metrics, gradient_penalty

Judge = Callable[[Any], jax.Array]
"""Images [N, H, W, C], or a sequence of them, one for each resolution -> logits [N]."""


class PenalisedLoss(Protocol):
  """The losses of both players, which they minimise."""

  def discriminator(self, judge: Judge, real: Any, fake: Any, keys: jax.Array) -> tuple[jax.Array, Metrics]:
    """Returns D's loss, a mean over the batch, and metrics with it.

    Args:
      judge: D.
      real, fake: images [N, H, W, C], or sequences of them.
      keys: [N], for random draws.
    """

  def generator(self, logits: jax.Array) -> jax.Array:
    """Returns G's loss, a mean, from D's logits of fakes [N]."""


@dataclass(frozen=True)
class Wasserstein:
  """WGAN-GP (Gulrajani et al. 2017, arXiv 1704.00028) with ProGAN's drift and norm (arXiv 1710.10196, appendix A).

      D    mean( D(fake) - D(real) + weight (|grad D(mixed)| - norm)^2 / norm^2 + drift D(real)^2 )
      G    mean( -D(fake) )

  with mixed = e real + (1 - e) fake and e ~ U(0, 1), the same for all resolutions.
  """

  weight: float = 10.0
  norm: float = 1.0
  drift: float = 0.001

  def discriminator(self, judge: Judge, real: Any, fake: Any, keys: jax.Array) -> tuple[jax.Array, Metrics]:
    real_logits, fake_logits = jnp.split(judge(jax.tree.map(lambda *both: jnp.concatenate(both), real, fake)), 2)
    e = jax.vmap(lambda key: jax.random.uniform(key, (1, 1, 1)))(keys)
    _, squares = gradient_penalty(judge, jax.tree.map(lambda x, y: e * x + (1 - e) * y, real, fake))
    norms = jnp.sqrt(_stacked(squares) + 1e-12)  # sqrt has no derivative at 0
    penalty = jnp.mean(jnp.square(norms - self.norm)) / self.norm**2
    estimate = jnp.mean(real_logits - fake_logits)
    drift = jnp.mean(jnp.square(real_logits))
    total = -estimate + self.weight * penalty + self.drift * drift
    metrics = {"loss": total, "wasserstein_estimate": estimate, "penalty": penalty}
    return total, metrics | {"input_gradient_norm": jnp.mean(norms)}

  def generator(self, logits: jax.Array) -> jax.Array:
    return -jnp.mean(logits)


@dataclass(frozen=True)
class LogisticR1:
  """The logistic loss with R1 (Mescheder et al. 2018, arXiv 1801.04406).

  D    mean( softplus(-D(real)) + softplus(D(fake)) + gamma / 2 |grad D(real)|^2 )
  G    mean( softplus(-D(fake)) )
  """

  gamma: float = 10.0

  def discriminator(self, judge: Judge, real: Any, fake: Any, keys: jax.Array) -> tuple[jax.Array, Metrics]:
    del keys
    real_logits, squares = gradient_penalty(judge, real)
    fake_logits, r1 = judge(fake), jnp.mean(_stacked(squares))
    total = jnp.mean(NON_SATURATING.discriminator(real_logits, fake_logits)) + self.gamma / 2 * r1
    means = {"real_logits": jnp.mean(real_logits), "fake_logits": jnp.mean(fake_logits)}
    return total, {"loss": total, "r1": r1} | means

  def generator(self, logits: jax.Array) -> jax.Array:
    return jnp.mean(NON_SATURATING.generator(logits, logits))


def _stacked(squares: Any) -> jax.Array:
  """Returns [resolutions, N] from [N] of one resolution or a sequence of them."""
  return jnp.stack(jax.tree.leaves(squares))
