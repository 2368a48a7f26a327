"""Zero-centred gradient penalties on a critic's inputs, and the gradient of a critic's loss that includes them.

On real images the penalty is R1 (Mescheder et al. 2018), on generated ones R2 ([P] equation 3):

    R(x_i) = || grad_x D(x_i) ||^2, summed over H, W, C.

D minimises, over a batch of images x_i, an objective of its logits and of these squared norms, which an algorithm
writes once, to be differentiated and logged:

    L( D(x_1), D(x_2), ..., R(x_1), R(x_2), ... )

R3GAN's is the mean of f(D(real) - D(fake)) + gamma / 2 (R1 + R2); WGAN-GP's has (sqrt(R) - 1)^2.

Two ways to its gradient with respect to D's parameters, equal to rounding:

`grad_of_grad` differentiates the formula as it stands. It is right for any critic, and costs 6 forward passes of D.

`directional` costs 4 (plain adversarial training, without a penalty, costs 3) and is right for critics that are
piecewise linear, such as R3GAN's. Between its linear layers stands LeakyReLU, which multiplies each activation by 1
or by its slope. For almost every x a small change of the image, of the biases or of the weights flips none of these
factors, so here they are constants, and D is a product of matrices in which the image x and the biases b enter once:

    D(x, b) = P(theta) x + Q(theta) b            theta: the weights; P, Q depend on the activation pattern as well

(1) The penalty. Let g_i = grad_x D(x_i) = P_i(theta)^T. Its parameter gradient, by the chain rule with g_i in the
    role of the outer derivative and then held constant, is

        grad_theta |P_i(theta)|^2 = 2 grad_theta < P_i(theta), g_i > = 2 grad_theta [ jvp of D at x_i along (g_i, 0) ],

    which counts c_i = dL/dR(x_i) times.

(2) The adversarial part. Let w_i = dL/dD(x_i). Its gradient is sum_i w_i grad_theta D(x_i), and D is linear in (x, b):

        w_i D(x_i, b) = jvp of D at (x_i, b) along (w_i x_i, w_i b).

(3) Both are the parameter gradient of one jvp, and a jvp is linear in its direction, so the directions add up:

        gradient = grad_theta sum_i [ jvp of D at (x_i, b) along (w_i x_i + 2 c_i g_i, w_i b) ]

    with x, w, g and the point held constant. "w_i b" is the direction (0, w_i) of a scalar s_i = 1 that multiplies
    the biases of sample i; gradients with respect to b flow through it.

(4) An augmentation, affine in the image, x -> A x + a, stands in front of D. The penalty is on the raw image:
    g_i = A^T grad D is pulled back through it, and pushed forward again as the direction A g_i. The augmented image
    enters as it is, times w_i.

(5) Nothing is computed twice: `jax.linearize` of the map (x, s) -> (grad_x sum D, grad_theta sum D) does the forward
    pass and the chain of cotangents, which gives g; its linear part, applied to the direction, is the tangent pass
    and the contraction of cotangents and tangents over the batch, which is the gradient of (3), since mixed
    derivatives commute. XLA drops the second value itself.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp

Critic = Callable[[Any, jax.Array, jax.Array], jax.Array]
"""(parameters, images [N, H, W, C], bias_scale [N]) -> logits [N]; sample i's logit is of image i alone."""

Augmentation = Callable[[jax.Array], jax.Array]
"""images [N, H, W, C] -> images, sample by sample; for `directional`, affine in each image."""

Metrics = dict[str, jax.Array]
"""Scalars by name."""

Objective = Callable[[jax.Array, jax.Array], tuple[jax.Array, Metrics]]
"""(logits [N], R(x_i) [N]) -> (the loss, a scalar; what else is to be logged)."""


class PenalisedGradient(Protocol):
  """A way to the gradient of `objective(logits, R)`.

  Args:
    critic: see `Critic`; called with a bias_scale of ones.
    params: the critic's parameters, a tree.
    images: [N, H, W, C], raw; R is the squared norm of the gradient with respect to them.
    augment: what the critic sees of them.
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
  """`PenalisedGradient` of any differentiable critic: the formula as it stands."""

  def loss(params: Any) -> tuple[jax.Array, Metrics]:
    return objective(*gradient_penalty(lambda x: critic(params, augment(x), _ones(x)), images))

  (total, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(params)
  return gradient, {"loss": total} | metrics


def directional(
  critic: Critic, params: Any, images: jax.Array, augment: Augmentation, objective: Objective
) -> tuple[Any, Metrics]:
  """`PenalisedGradient` of a critic that is piecewise linear in (image, biases), and of an affine augmentation."""
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


def gradient_penalty(critic: Callable[[jax.Array], jax.Array], images: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(logits [N], R(x_i) [N]) of a critic of images alone; differentiable in what `critic` closes over."""

  def total(images: jax.Array) -> tuple[jax.Array, jax.Array]:
    logits = critic(images)
    return jnp.sum(logits), logits  # samples do not interact: the sum's gradient is every sample's own

  gradients, logits = jax.grad(total, has_aux=True)(images)
  return logits, _squared_norms(gradients)


def _squared_norms(gradients: jax.Array) -> jax.Array:
  """[N, ...] -> [N]."""
  return jnp.sum(jnp.square(gradients), axis=tuple(range(1, gradients.ndim)))


def _per_sample(weights: jax.Array, images: jax.Array) -> jax.Array:
  """[N] -> [N, 1, 1, 1]."""
  return weights.reshape(-1, *(1,) * (images.ndim - 1))


def _ones(images: jax.Array) -> jax.Array:
  """[N] ones, of the images' dtype."""
  return jnp.ones_like(images, shape=images.shape[:1])
