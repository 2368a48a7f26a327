"""Optimisers as optax transformations whose hyper-parameters are this iteration's knobs."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class AdamState(NamedTuple):
  """`updates`: how many were made, int32; `second_moment`: the running mean of squared gradients, as the parameters."""

  updates: jax.Array
  second_moment: Any


def adam_without_momentum(epsilon: float = 1e-8, share: float = 1.0) -> optax.GradientTransformationExtraArgs:
  """Adam with beta1 = 0 and scheduled learning rate and beta2 ([P] appendix: "Adam beta1 = 0").

      v <- beta2 v + (1 - beta2) g^2
      update = -learning_rate * g / (sqrt(v / (1 - beta2^t)) + epsilon)

  With beta1 = 0 the first moment is the gradient itself, so none is stored. The bias correction uses the *current*
  beta2, as the official code does, although beta2 changes during burn-in.

  `update` takes `knobs` with the scalars "learning_rate" and "beta2".

  Args:
    epsilon: see above.
    share: the main phase's part c of all updates, which lazy regularisation adds to: k / (k + 1) with one every k
      iterations. The learning rate is then multiplied by c, beta2 raised to it (Karras et al. 2020, arXiv 1912.04958,
      appendix B), so that k + 1 updates move and forget as k did.
  """

  def init(params: Any) -> AdamState:
    return AdamState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

  def update(
    gradients: Any, state: AdamState, params: Any = None, *, knobs: Any, **extra: Any
  ) -> tuple[Any, AdamState]:
    del params, extra
    learning_rate, beta2 = share * knobs["learning_rate"], knobs["beta2"] ** share
    made = state.updates + 1
    second_moment = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * jnp.square(g), state.second_moment, gradients)
    correction = 1 - beta2 ** made.astype(jnp.float32)
    updates = jax.tree.map(
      lambda g, v: -learning_rate * g / (jnp.sqrt(v / correction) + epsilon), gradients, second_moment
    )
    return updates, AdamState(made, second_moment)

  return optax.GradientTransformationExtraArgs(init, update)
