"""Adversarial losses per sample: logits [N] float32 -> losses [N] float32.

With f(t) = -log(1 + e^-t), which D maximises and G minimises ([P] equations 1 and 2):

    GAN      f(D(real)) + f(-D(fake))       every sample by itself
    RpGAN    f(D(real) - D(fake))           every fake against a real, so that dropping modes has a cost

The hinge loss stops pushing logits that are on the right side by 1.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax

softplus = jax.nn.softplus


class AdversarialLoss(NamedTuple):
  """The losses of both players, which they minimise: `(real_logits [N], fake_logits [N]) -> losses [N]`."""

  discriminator: Callable[[jax.Array, jax.Array], jax.Array]
  generator: Callable[[jax.Array, jax.Array], jax.Array]


def relativistic_discriminator_loss(real_logits: jax.Array, fake_logits: jax.Array) -> jax.Array:
  """Returns softplus(-(D(real) - D(fake))), paired per sample (Jolicoeur-Martineau 2018; [P] equation 2)."""
  return softplus(-(real_logits - fake_logits))


def relativistic_generator_loss(real_logits: jax.Array, fake_logits: jax.Array) -> jax.Array:
  """Returns softplus(-(D(fake) - D(real))), D's loss with the roles exchanged ([P] equation 2)."""
  return softplus(-(fake_logits - real_logits))


def non_saturating_discriminator_loss(real_logits: jax.Array, fake_logits: jax.Array) -> jax.Array:
  """Returns softplus(-D(real)) + softplus(D(fake)) (Goodfellow et al. 2014; [P] equation 1)."""
  return softplus(-real_logits) + softplus(fake_logits)


def non_saturating_generator_loss(real_logits: jax.Array, fake_logits: jax.Array) -> jax.Array:
  """Returns softplus(-D(fake)) (Goodfellow et al. 2014, section 3); ignores the reals."""
  del real_logits
  return softplus(-fake_logits)


def saturating_generator_loss(real_logits: jax.Array, fake_logits: jax.Array) -> jax.Array:
  """Returns log(1 - sigmoid(D(fake))) (Goodfellow et al. 2014, equation 1), flat where D is sure; ignores the reals."""
  del real_logits
  return -softplus(fake_logits)


def hinge_discriminator_loss(real_logits: jax.Array, fake_logits: jax.Array) -> jax.Array:
  """Returns max(0, 1 - D(real)) + max(0, 1 + D(fake)) (Lim and Ye 2017, arXiv 1705.02894)."""
  return jax.nn.relu(1 - real_logits) + jax.nn.relu(1 + fake_logits)


def hinge_generator_loss(real_logits: jax.Array, fake_logits: jax.Array) -> jax.Array:
  """Returns -D(fake), unbounded; ignores the reals."""
  del real_logits
  return -fake_logits


RELATIVISTIC = AdversarialLoss(relativistic_discriminator_loss, relativistic_generator_loss)
NON_SATURATING = AdversarialLoss(non_saturating_discriminator_loss, non_saturating_generator_loss)
SATURATING = AdversarialLoss(non_saturating_discriminator_loss, saturating_generator_loss)
HINGE = AdversarialLoss(hinge_discriminator_loss, hinge_generator_loss)

LOSSES = {"relativistic": RELATIVISTIC, "non_saturating": NON_SATURATING}
