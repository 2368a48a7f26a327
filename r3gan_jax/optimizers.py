"""Optimisers as optax transformations whose `update` takes the hyperparameters of the iteration.

`adam_without_momentum` is R3GAN's, and `sgd` has a scheduled momentum. Others are optax's own, with a scheduled rate by
`at_rate`:

    at_rate(optax.scale_by_adam(b1=0.5))                                                Adam
    at_rate(optax.chain(optax.add_decayed_weights(1e-5), optax.scale_by_adam(b1=0.5)))  with L2, added to the gradient
    at_rate(optax.trace(decay=0.9))                                                     SGD with momentum
    at_rate(optax.scale_by_rms(decay=0.9), "critic_learning_rate")                      RMSprop, with its own rate
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class AdamState(NamedTuple):
  """`updates`: their number, int32; `second_moment`: the running mean of squared gradients, like the parameters."""

  updates: jax.Array
  second_moment: Any


def adam_without_momentum(share: float = 1.0) -> optax.GradientTransformationExtraArgs:
  """Adam with beta1 = 0 and scheduled learning rate and beta2 ([P] appendix: "Adam beta1 = 0").

      v <- beta2 v + (1 - beta2) g^2
      update = -learning_rate * g / (sqrt(v / (1 - beta2^t)) + 1e-8)

  With beta1 = 0 the first moment is the gradient itself, so none is stored. As in the official code, the bias
  correction uses the *current* beta2, although beta2 changes during burn-in.

  `update` takes `hyperparameters` with the scalars "learning_rate" and "beta2".

  Args:
    share: compensates for the additional updates of lazy regularisation (Karras et al. 2020, arXiv 1912.04958, appendix
      B): c = k / (k + 1) with one more update every k iterations. The learning rate is multiplied by c and beta2 raised
      to the power c, so that k + 1 updates move and forget as much as k did.
  """

  def init(params: Any) -> AdamState:
    return AdamState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

  def update(
    gradients: Any, state: AdamState, params: Any = None, *, hyperparameters: Any, **extra: Any
  ) -> tuple[Any, AdamState]:
    del params, extra
    learning_rate, beta2 = share * hyperparameters["learning_rate"], hyperparameters["beta2"] ** share
    made = state.updates + 1
    second_moment = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * jnp.square(g), state.second_moment, gradients)
    correction = 1 - beta2 ** made.astype(jnp.float32)
    updates = jax.tree.map(
      lambda g, v: -learning_rate * g / (jnp.sqrt(v / correction) + 1e-8), gradients, second_moment
    )
    return updates, AdamState(made, second_moment)

  return optax.GradientTransformationExtraArgs(init, update)


def at_rate(
  direction: optax.GradientTransformation, hyperparameter: str = "learning_rate"
) -> optax.GradientTransformationExtraArgs:
  """Returns `direction`, multiplied by minus the learning rate, the hyperparameter of this name."""

  def update(gradients: Any, state: Any, params: Any = None, *, hyperparameters: Any, **extra: Any) -> tuple[Any, Any]:
    del extra
    with jax.numpy_dtype_promotion("standard"):  # optax computes float ** int
      updates, state = direction.update(gradients, state, params)
    return jax.tree.map(lambda u: -hyperparameters[hyperparameter] * u, updates), state

  return optax.GradientTransformationExtraArgs(direction.init, update)


def sgd() -> optax.GradientTransformationExtraArgs:
  """Gradient descent with a scheduled learning rate and momentum.

      v <- momentum v - learning_rate g
      update = v

  `update` takes `hyperparameters` with the scalars "learning_rate" and "momentum".
  """

  def init(params: Any) -> Any:
    return jax.tree.map(jnp.zeros_like, params)

  def update(gradients: Any, state: Any, params: Any = None, *, hyperparameters: Any, **extra: Any) -> tuple[Any, Any]:
    del params, extra
    momentum, learning_rate = hyperparameters["momentum"], hyperparameters["learning_rate"]
    velocity = jax.tree.map(lambda v, g: momentum * v - learning_rate * g, state, gradients)
    return velocity, velocity

  return optax.GradientTransformationExtraArgs(init, update)


class ResetState(NamedTuple):
  """`value`: the hyperparameter at the last update, float32; `inner`: the optimiser's state."""

  value: jax.Array
  inner: Any


def reset_on_change(
  optimizer: optax.GradientTransformationExtraArgs, hyperparameter: str
) -> optax.GradientTransformationExtraArgs:
  """Returns `optimizer`, which resets its state whenever the hyperparameter of this name changes.

  Progressive growing does so at every new resolution (Karras et al. 2018, arXiv 1710.10196).
  """

  def init(params: Any) -> ResetState:
    return ResetState(jnp.full((), -jnp.inf), optimizer.init(params))

  def update(
    gradients: Any, state: ResetState, params: Any, *, hyperparameters: Any, **extra: Any
  ) -> tuple[Any, ResetState]:
    changed = hyperparameters[hyperparameter] != state.value
    inner = jax.tree.map(lambda new, old: jnp.where(changed, new, old), optimizer.init(params), state.inner)
    updates, inner = optimizer.update(gradients, inner, params, hyperparameters=hyperparameters, **extra)
    return updates, ResetState(hyperparameters[hyperparameter], inner)

  return optax.GradientTransformationExtraArgs(init, update)
