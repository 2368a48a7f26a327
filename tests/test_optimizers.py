import jax
import jax.numpy as jnp
import numpy as np

from r3gan_jax.optimizers import adam_without_momentum
from r3gan_jax.training.ema import ema_decay, update_ema


def test_adam_follows_its_formula_while_beta2_changes():
  """v, the current beta2's correction, and the update, in float64 by hand."""
  optimizer = adam_without_momentum(epsilon=1e-8)
  params = {"w": jnp.array([1.0, -2.0])}
  state = optimizer.init(params)
  assert len(jax.tree.leaves(state)) == 2, "no first moment is stored"
  v = np.zeros(2)
  for t, (gradient, learning_rate, beta2) in enumerate(
    [([0.1, -3.0], 0.1, 0.9), ([0.2, 0.0], 0.05, 0.95), ([-1.0, 1e-3], 0.01, 0.99)], start=1
  ):
    knobs = {"learning_rate": jnp.float32(learning_rate), "beta2": jnp.float32(beta2)}
    updates, state = optimizer.update({"w": jnp.array(gradient)}, state, params, knobs=knobs)
    v = beta2 * v + (1 - beta2) * np.square(gradient)
    expected = -learning_rate * np.array(gradient) / (np.sqrt(v / (1 - beta2**t)) + 1e-8)
    np.testing.assert_allclose(updates["w"], expected, rtol=2e-5)


def test_ema_decay():
  np.testing.assert_allclose(ema_decay(jnp.float32(100.0), 100), 0.5)
  np.testing.assert_allclose(ema_decay(jnp.float32(200.0), 100), 0.5**0.5, rtol=1e-6)
  assert ema_decay(jnp.float32(0.0), 1) == 0, "no half-life: the average is the parameters"


def test_ema_keeps_half_after_a_half_life():
  average, params = {"w": jnp.float32(1.0)}, {"w": jnp.float32(3.0)}
  for _ in range(4):
    average = update_ema(average, params, ema_decay(jnp.float32(32.0), 8))
  np.testing.assert_allclose(average["w"], 2.0, rtol=1e-6)
