"""Laws of DCGAN: its moments are of the whole batch, wherever that lies, and its samples are each their own."""

import golden_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo import data, trained

from r3gan_jax.algorithms import dcgan
from r3gan_jax.algorithms.base import Images
from r3gan_jax.errors import UserError
from r3gan_jax.sampling import Sampler
from r3gan_jax.training.mesh import make_mesh
from r3gan_jax.training.state import averaged
from r3gan_jax.training.step import global_gradients

IMAGES = Images(16, 16, 3, 0)
SETTINGS = dcgan.Settings(widths=(8, 8), kernel_size=4, noise_dim=8, ema_half_life=32.0, learning_rate=1e-2)
ALGORITHM = dcgan.build(SETTINGS, IMAGES, "cpu")
BATCH = 16


@pytest.fixture(scope="module")
def state():
  return trained(ALGORITHM, BATCH, iterations=3)


def test_how_the_batch_is_divided_does_not_matter(state):
  """1 and 8 devices: the gradients' sums are of another order, which Adam enlarges."""
  divided = trained(ALGORITHM, BATCH, iterations=3, devices=8)
  for tree, expected in ((divided.params, state.params), (divided.ema, state.ema), (divided.carry, state.carry)):
    assert golden_cases.relative_errors(tree, expected)["all"] < 1e-4


def test_gradients_of_8_devices_are_those_of_one():
  """In float64, before Adam."""
  state = jax.jit(lambda: ALGORITHM.init(jax.random.key(0)))()
  with jax.enable_x64(True):
    given = (
      *jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), state),
      {"image": jnp.asarray(data(ALGORITHM, BATCH)["image"] / 127.5 - 1)},
    )
    rngs = jax.random.split(jax.random.key(1), BATCH)
    for phase in ALGORITHM.phases:
      one, eight = (jax.jit(global_gradients(phase, make_mesh(n), None))(*given, rngs, {}) for n in (1, 8))
      golden_cases.assert_trees_close(eight, one, 1e-8)


def test_reals_and_fakes_are_normalised_apart():
  """The logits of reals do not depend on the fakes; the running moments of D follow the reals alone."""
  discriminator = next(phase for phase in ALGORITHM.phases if phase.name == "discriminator")
  gradients_of = jax.jit(global_gradients(discriminator, make_mesh(1), None))
  params, carry = jax.jit(lambda: ALGORITHM.init(jax.random.key(0)))()
  moments, logits = [], []
  for seed in (1, 2):
    rngs = jax.random.split(jax.random.key(seed), BATCH)
    _, moved, metrics = gradients_of(params, carry, data(ALGORITHM, BATCH), rngs, {})
    moments.append(moved["discriminator_moments"])
    logits.append((metrics["real_logits"], metrics["fake_logits"]))
    assert jax.tree.all(jax.tree.map(jnp.array_equal, moved["generator_moments"], carry["generator_moments"]))
  jax.tree.map(np.testing.assert_array_equal, *moments)
  assert logits[0][0] == logits[1][0] and logits[0][1] != logits[1][1]
  assert not jax.tree.all(jax.tree.map(jnp.array_equal, moments[0], carry["discriminator_moments"]))


def test_an_image_of_the_average_is_its_own(state):
  """Whatever the batch that it is drawn in; by the average's own moments."""
  params, carry = averaged(ALGORITHM, state)
  noise = ALGORITHM.noise(jax.random.split(jax.random.key(5), 8))
  together = ALGORITHM.generate(params, carry, noise, None)
  alone = jnp.concatenate([ALGORITHM.generate(params, carry, row[None], None) for row in noise])
  np.testing.assert_allclose(together, alone, atol=1e-5 * np.abs(together).max())
  live = ALGORITHM.generate(params, state.carry, noise, None)
  assert np.abs(together - live).max() > 0.1 * np.abs(together).max(), "by the moments of G itself"
  sampler = Sampler(ALGORITHM, make_mesh(1), batch_per_device=4)
  np.testing.assert_array_equal(sampler(params, carry, np.arange(9))[8:], sampler(params, carry, np.array([8])))


def test_the_loss_at_the_start_and_the_generator_s_gradient():
  """D's scales are about 1 and its head small, so it is undecided; without a D, G's gradient is 0."""
  params, carry = jax.jit(lambda: ALGORITHM.init(jax.random.key(0)))()
  params["discriminator"]["linear"]["kernel"] = jnp.zeros_like(params["discriminator"]["linear"]["kernel"])
  rngs = jax.random.split(jax.random.key(1), BATCH)
  losses = {}
  for phase in ALGORITHM.phases:
    gradients, _, metrics = jax.jit(global_gradients(phase, make_mesh(1), None))(
      params, carry, data(ALGORITHM, BATCH), rngs, {}
    )
    losses[phase.name] = float(metrics["loss"])
  assert losses == pytest.approx({"discriminator": 2 * np.log(2), "generator": np.log(2)})
  assert all(not leaf.any() for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize(
  "images, wrong",
  [
    (Images(32, 32, 3, 0), r"config\.gan\.widths = \(8, 8\): 2 doublings of 4x4 give 16x16"),
    (Images(16, 16, 3, 10), r"config\.data\.num_classes = 10: dcgan takes no classes"),
  ],
)
def test_images_that_do_not_fit_are_refused(images, wrong):
  with pytest.raises(UserError, match=wrong):
    dcgan.build(SETTINGS, images, "cpu")
