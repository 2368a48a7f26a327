import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from r3gan_jax.optimizers import adam_without_momentum, at_rate, reset_on_change, sgd
from r3gan_jax.training.ema import ema_decay, update_ema


def test_adam_follows_its_formula_while_beta2_changes():
  """v, the bias correction with the current beta2, and the update, by hand in float64."""
  optimizer = adam_without_momentum()
  params = {"w": jnp.array([1.0, -2.0])}
  state = optimizer.init(params)
  assert len(jax.tree.leaves(state)) == 2, "no first moment is stored"
  v = np.zeros(2)
  for t, (gradient, learning_rate, beta2) in enumerate(
    [([0.1, -3.0], 0.1, 0.9), ([0.2, 0.0], 0.05, 0.95), ([-1.0, 1e-3], 0.01, 0.99)], start=1
  ):
    hyperparameters = {"learning_rate": jnp.float32(learning_rate), "beta2": jnp.float32(beta2)}
    updates, state = optimizer.update({"w": jnp.array(gradient)}, state, params, hyperparameters=hyperparameters)
    v = beta2 * v + (1 - beta2) * np.square(gradient)
    expected = -learning_rate * np.array(gradient) / (np.sqrt(v / (1 - beta2**t)) + 1e-8)
    np.testing.assert_allclose(updates["w"], expected, rtol=2e-5)


def hyperparameters(**values):
  return {name: jnp.float32(value) for name, value in values.items()}


@pytest.mark.parametrize(
  "direction, reference",
  [
    (optax.trace(decay=0.9), optax.sgd(0.01, momentum=0.9)),
    (optax.scale_by_rms(decay=0.9), optax.rmsprop(0.01, decay=0.9)),
    (optax.scale_by_adam(b1=0.5), optax.adam(0.01, b1=0.5)),
  ],
)
def test_optax_at_a_scheduled_rate(direction, reference):
  """At a constant rate as optax's own."""
  params = {"w": jnp.array([1.0, -2.0])}
  ours = at_rate(direction, "rate")
  state, expected_state = ours.init(params), reference.init(params)
  for gradient in ([0.1, -3.0], [0.2, 0.5]):
    gradient = {"w": jnp.array(gradient)}
    updates, state = ours.update(gradient, state, params, hyperparameters=hyperparameters(rate=0.01))
    with jax.numpy_dtype_promotion("standard"):
      expected, expected_state = reference.update(gradient, expected_state, params)
    np.testing.assert_allclose(updates["w"], expected["w"], rtol=1e-6)


def test_l2_is_added_to_the_gradient_before_adam():
  """Unlike AdamW's decay: with gradient 0, a parameter moves by the whole learning rate, however small the factor."""
  optimizer = at_rate(optax.chain(optax.add_decayed_weights(1e-3), optax.scale_by_adam(b1=0.5)))
  params = {"w": jnp.array([2.0])}
  updates, _ = optimizer.update(
    {"w": jnp.zeros(1)}, optimizer.init(params), params, hyperparameters=hyperparameters(learning_rate=0.1)
  )
  np.testing.assert_allclose(updates["w"], -0.1, rtol=1e-4)


def test_moments_are_reset_when_the_hyperparameter_changes():
  """After three updates and a change, the next two are the first two of a new optimiser."""
  params, gradient = {"w": jnp.array([1.0])}, {"w": jnp.array([2.0])}
  optimizer = reset_on_change(at_rate(optax.trace(decay=0.5)), "stage")
  state, made = optimizer.init(params), []
  for stage in (0, 0, 0, 1, 1):
    updates, state = jax.jit(optimizer.update)(
      gradient, state, params, hyperparameters=hyperparameters(learning_rate=1, stage=stage)
    )
    made.append(float(updates["w"][0]))
  assert made == [-2.0, -3.0, -3.5, -2.0, -3.0]


def test_momentum_and_rate_are_those_of_the_iteration():
  """v = m v - r g, by hand: -0.2, then 0.5 (-0.2) - 0.1, then 0.75 (-0.2) - 0.05."""
  params, optimizer = {"w": jnp.array([1.0])}, sgd()
  state, made = optimizer.init(params), []
  for momentum, learning_rate in ((0.9, 0.2), (0.5, 0.1), (0.75, 0.05)):
    given = hyperparameters(momentum=momentum, learning_rate=learning_rate)
    updates, state = optimizer.update({"w": jnp.array([1.0])}, state, params, hyperparameters=given)
    made.append(updates["w"][0])
  np.testing.assert_allclose(made, (-0.2, -0.2, -0.2), rtol=1e-6)


def test_ema_decay():
  np.testing.assert_allclose(ema_decay(jnp.float32(100.0), 100), 0.5)
  np.testing.assert_allclose(ema_decay(jnp.float32(200.0), 100), 0.5**0.5, rtol=1e-6)
  assert ema_decay(jnp.float32(0.0), 1) == 0, "without a half-life the average is the parameters"


def test_ema_keeps_half_after_a_half_life():
  average, params = {"w": jnp.float32(1.0)}, {"w": jnp.float32(3.0)}
  for _ in range(4):
    average = update_ema(average, params, ema_decay(jnp.float32(32.0), 8))
  np.testing.assert_allclose(average["w"], 2.0, rtol=1e-6)
