"""Zero-centred gradient penalties on a critic's inputs."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Critic = Callable[[jax.Array], jax.Array]
"""images [N, H, W, C] -> logits [N]; sample i's logit is a function of image i alone."""


def gradient_penalty(critic: Critic, images: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The squared norm of each logit's gradient with respect to its own image, exact for any critic.

  On real images this is R1 (Mescheder et al. 2018), on generated ones R2 ([P] equation 3):

      R(x_i) = || grad_x D(x_i) ||^2, summed over H, W, C.

  Differentiable in turn (grad-of-grad) with respect to whatever `critic` closes over. An augmentation belongs
  inside `critic`, so that the gradient is taken through it, with respect to the raw image.

  Returns:
    (logits [N], penalties [N]).
  """

  def total(images: jax.Array) -> tuple[jax.Array, jax.Array]:
    logits = critic(images)
    return jnp.sum(logits), logits  # samples do not interact: the sum's gradient is every sample's own

  gradients, logits = jax.grad(total, has_aux=True)(images)
  return logits, jnp.sum(jnp.square(gradients), axis=tuple(range(1, images.ndim)))
