"""Zero-centred gradient penalties on a critic's inputs, and the gradient of a critic's loss that includes them.

On real images the penalty is R1 (Mescheder et al. 2018), on generated ones R2 ([P] equation 3):

    R(x_i) = || grad_x D(x_i) ||^2, summed over H, W, C.

D minimises, over a batch of images x_i, an objective of its logits and of these squared norms. An algorithm writes it
once, for gradients and logs:

    L( D(x_1), D(x_2), ..., R(x_1), R(x_2), ... )

R3GAN's is the mean of f(D(real) - D(fake)) + gamma / 2 (R1 + R2); WGAN-GP's has (sqrt(R) - 1)^2.

There are two ways to its gradient with respect to D's parameters, equal up to rounding:

`grad_of_grad` differentiates the formula as written. It is valid for any critic, and costs 6 forward passes of D.

`directional` costs 4 (adversarial training without a penalty costs 3) and is valid for piecewise linear critics, such
as R3GAN's. Between its linear layers there is only LeakyReLU, which multiplies each activation by 1 or by its slope.
For almost every x, a small change of the image, the biases or the weights flips none of these factors. So they are
constants here, and D is a product of matrices in which the image x and the biases b appear once:

    D(x, b) = P(theta) x + Q(theta) b            theta: the weights; P, Q also depend on the activation pattern

(1) The penalty. Let g_i = grad_x D(x_i) = P_i(theta)^T. By the chain rule, with g_i held constant as the outer
    derivative, its parameter gradient is

        grad_theta |P_i(theta)|^2 = 2 grad_theta < P_i(theta), g_i > = 2 grad_theta [ jvp of D at x_i along (g_i, 0) ],

    which enters c_i = dL/dR(x_i) times.

(2) The adversarial part. Let w_i = dL/dD(x_i). Its gradient is sum_i w_i grad_theta D(x_i), and D is linear in (x, b):

        w_i D(x_i, b) = jvp of D at (x_i, b) along (w_i x_i, w_i b).

(3) Both are parameter gradients of a jvp, and a jvp is linear in its direction, so the directions add up:

        gradient = grad_theta sum_i [ jvp of D at (x_i, b) along (w_i x_i + 2 c_i g_i, w_i b) ]

    with x, w, g and the point held constant. "w_i b" is the direction (0, w_i) of a scalar s_i = 1 that multiplies
    the biases of sample i; gradients with respect to b flow through it.

(4) An augmentation that is affine in the image, x -> A x + a, comes before D. The penalty is on the raw image:
    g_i = A^T grad D is pulled back through the augmentation, and pushed forward again as the direction A g_i. The
    augmented image enters unchanged, times w_i.

(5) A critic of pairs, D(x, c), is a critic of images for every condition c: R is of the gradient with respect to x
    alone, along which c does not move. With a fixed activation pattern D is linear in (x, c, b) jointly, so c is what b
    is: a constant that enters linearly. The jvp of (1) along (g_i, 0, 0) stays as it is, and that of (2) is along
    (w_i x_i, w_i c_i, w_i b): the scalar s_i of (3) multiplies the condition, too, D(s x, s c, s b) = s D(x, c, b). A
    critic that scaled only its biases would lose w_i dD/dc c_i from (2). An augmentation may not change c.

(6) Nothing is computed twice. `jax.linearize` of the map (x, s) -> (grad_x sum D, grad_theta sum D) does the forward
    pass and the chain of cotangents, which gives g; its linear part, applied to the direction, is the tangent pass
    and the contraction of cotangents and tangents over the batch, which is the gradient of (3), since mixed
    derivatives commute. XLA drops the unused second value.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp

Critic = Callable[[Any, jax.Array, jax.Array], jax.Array]
"""(parameters, images [N, H, W, C], bias_scale [N]) -> logits [N]; logit i depends on image i alone.

`bias_scale` multiplies the biases, and any other constants that enter linearly, such as the condition of a pair.
"""

Augmentation = Callable[[jax.Array], jax.Array]
"""images [N, H, W, C] -> images, without coupling samples; for `directional`, affine in each image."""

Metrics = dict[str, jax.Array]
"""Scalars by name."""

Objective = Callable[[jax.Array, jax.Array], tuple[jax.Array, Metrics]]
"""(logits [N], R(x_i) [N]) -> (scalar loss, metrics)."""


class PenalisedGradient(Protocol):
  """Computes the gradient of `objective(logits, R)`.

  Args:
    critic: see `Critic`; called with a bias_scale of ones.
    params: the critic's parameters, a tree.
    images: [N, H, W, C], raw; R is the squared norm of the gradient with respect to them.
    augment: applied to them before the critic.
    objective: see `Objective`.

  Returns:
    The gradient with respect to the parameters, and the objective's metrics with its value, "loss".
  """

  def __call__(
    self, critic: Critic, params: Any, images: jax.Array, augment: Augmentation, objective: Objective
  ) -> tuple[Any, Metrics]: ...


def grad_of_grad(
  critic: Critic, params: Any, images: jax.Array, augment: Augmentation, objective: Objective
) -> tuple[Any, Metrics]:
  """Computes a `PenalisedGradient` for any differentiable critic, by differentiating the formula as written."""

  def loss(params: Any) -> tuple[jax.Array, Metrics]:
    return objective(*gradient_penalty(lambda x: critic(params, augment(x), _ones(x)), images))

  (total, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(params)
  return gradient, {"loss": total} | metrics


def directional(
  critic: Critic, params: Any, images: jax.Array, augment: Augmentation, objective: Objective
) -> tuple[Any, Metrics]:
  """Computes a `PenalisedGradient` for a critic piecewise linear in (image, biases) and an affine augmentation."""
  augmented, pull_back = jax.vjp(augment, images)

  def derivatives(x: jax.Array, bias_scale: jax.Array) -> tuple[Any, jax.Array, jax.Array]:
    def total(params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
      logits = critic(params, x, bias_scale)
      return jnp.sum(logits), logits

    (by_params, by_x), logits = jax.grad(total, (0, 1), has_aux=True)(params, x)
    return by_params, by_x, logits

  (_, by_augmented, logits), push_forward = jax.linearize(derivatives, augmented, _ones(images))
  (g,) = pull_back(by_augmented)
  (total, metrics), (w, c) = jax.value_and_grad(objective, (0, 1), has_aux=True)(logits, _squared_norms(g))
  _, pushed = jax.jvp(augment, (images,), (_per_sample(2 * c, images) * g,))
  gradient, _, _ = push_forward(_per_sample(w, images) * augmented + pushed, w)
  return gradient, {"loss": total} | metrics


PENALISED_GRADIENTS: Mapping[str, PenalisedGradient] = {"directional": directional, "grad_of_grad": grad_of_grad}


def gradient_penalty(critic: Callable[[Any], jax.Array], images: Any) -> tuple[jax.Array, Any]:
  """Returns (logits [N], R(x_i) [N]) of images -> logits; differentiable in what `critic` closes over.

  `images` may be a tree of images of several resolutions: R is then a tree of the same structure.
  """

  def total(images: Any) -> tuple[jax.Array, jax.Array]:
    logits = critic(images)
    return jnp.sum(logits), logits  # uncoupled samples: the gradient of the sum has every sample's own gradient

  gradients, logits = jax.grad(total, has_aux=True)(images)
  return logits, jax.tree.map(_squared_norms, gradients)


def _squared_norms(gradients: jax.Array) -> jax.Array:
  """Returns squared norms: [N, ...] -> [N]."""
  return jnp.sum(jnp.square(gradients), axis=tuple(range(1, gradients.ndim)))


def _per_sample(weights: jax.Array, images: jax.Array) -> jax.Array:
  """Reshapes [N] to [N, 1, 1, 1]."""
  return weights.reshape(-1, *(1,) * (images.ndim - 1))


def _ones(images: jax.Array) -> jax.Array:
  """Returns ones, [N], of the images' dtype."""
  return jnp.ones_like(images, shape=images.shape[:1])
