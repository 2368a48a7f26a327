"""Optimisers as optax transformations whose hyper-parameters are this iteration's hyperparameters.

`adam_without_momentum` is R3GAN's. Others are optax's own, `at_rate`:

    at_rate(optax.scale_by_adam(b1=0.5))                                                Adam
    at_rate(optax.chain(optax.add_decayed_weights(1e-5), optax.scale_by_adam(b1=0.5)))  with L2, added to the gradient
    at_rate(optax.trace(decay=0.9))                                                     SGD with momentum
    at_rate(optax.scale_by_rms(decay=0.9), "critic_learning_rate")                      RMSprop, at a rate of its own
"""

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

  `update` takes `hyperparameters` with the scalars "learning_rate" and "beta2".

  Args:
    epsilon: see above.
    share: the main phase's part c of all updates, which lazy regularisation adds to: k / (k + 1) with one every k
      iterations. The learning rate is then multiplied by c, beta2 raised to it (Karras et al. 2020, arXiv 1912.04958,
      appendix B), so that k + 1 updates move and forget as k did.
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
      lambda g, v: -learning_rate * g / (jnp.sqrt(v / correction) + epsilon), gradients, second_moment
    )
    return updates, AdamState(made, second_moment)

  return optax.GradientTransformationExtraArgs(init, update)


def at_rate(
  direction: optax.GradientTransformation, hyperparameter: str = "learning_rate", share: float = 1.0
) -> optax.GradientTransformationExtraArgs:
  """`direction`, times minus the learning rate that is the hyperparameter of this name.

  `share`: as of `adam_without_momentum`, for lazy regularisation; the betas of `direction` are raised to it where it is
  made, e.g. `at_rate(optax.scale_by_adam(b1=b1**c, b2=b2**c), share=c)`.
  """

  def update(gradients: Any, state: Any, params: Any = None, *, hyperparameters: Any, **extra: Any) -> tuple[Any, Any]:
    del extra
    with jax.numpy_dtype_promotion("standard"):  # optax raises floats to integers
      updates, state = direction.update(gradients, state, params)
    rate = share * hyperparameters[hyperparameter]
    return jax.tree.map(lambda u: -rate * u, updates), state

  return optax.GradientTransformationExtraArgs(direction.init, update)


class ResetState(NamedTuple):
  """`value`: the hyperparameter at the last update, float32; `inner`: the optimiser's own state."""

  value: jax.Array
  inner: Any


def reset_on_change(
  optimizer: optax.GradientTransformationExtraArgs, hyperparameter: str
) -> optax.GradientTransformationExtraArgs:
  """`optimizer`, which forgets its moments whenever the hyperparameter of this name takes another value.

  As in progressive growing (Karras et al. 2018, arXiv 1710.10196), where a resolution begins.
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
