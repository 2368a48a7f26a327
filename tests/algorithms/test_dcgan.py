"""Properties of DCGAN alone; test_zoo.py has those of all GANs with batch norm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import golden_cases
from helpers.meshes import mesh_of
from helpers.zoo import data

from r3gan_jax.algorithms import dcgan
from r3gan_jax.algorithms.images import Images
from r3gan_jax.errors import UserError
from r3gan_jax.training.step import global_gradients

SETTINGS = dcgan.Settings(widths=(8, 8), kernel_size=4, noise_dim=8)
ALGORITHM = dcgan.build(SETTINGS, Images(16, 16, 3, 0), "cpu")
BATCH = 16


@pytest.fixture(scope="module")
def start():
  return jax.jit(lambda: ALGORITHM.init(jax.random.key(0)))()


def test_gradients_of_8_devices_are_those_of_one(start):
  """Computed in float64, before Adam."""
  with jax.enable_x64(True):
    given = (
      *jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), start),
      {"image": jnp.asarray(data(ALGORITHM, BATCH)["image"] / 127.5 - 1)},
    )
    keys = jax.random.split(jax.random.key(1), BATCH)
    for phase in ALGORITHM.phases:
      one, eight = (jax.jit(global_gradients(phase, mesh_of(n), None))(*given, keys, {}) for n in (1, 8))
      golden_cases.assert_trees_close(eight, one, 1e-8)


def test_reals_and_fakes_are_normalised_apart(start):
  """The logits of reals do not depend on the fakes; D's running moments are those of the reals."""
  params, carry = start
  gradients_of = jax.jit(global_gradients(ALGORITHM.phases[0], mesh_of(1), None))
  moments, logits = [], []
  for seed in (1, 2):
    keys = jax.random.split(jax.random.key(seed), BATCH)
    _, moved, metrics = gradients_of(params, carry, data(ALGORITHM, BATCH), keys, {})
    moments.append(moved["discriminator_moments"])
    logits.append((metrics["real_logits"], metrics["fake_logits"]))
    jax.tree.map(np.testing.assert_array_equal, moved["generator_moments"], carry["generator_moments"])
  jax.tree.map(np.testing.assert_array_equal, *moments)
  assert logits[0][0] == logits[1][0] and logits[0][1] != logits[1][1]
  assert not jax.tree.all(jax.tree.map(jnp.array_equal, moments[0], carry["discriminator_moments"]))


def test_an_undecided_discriminator(start):
  """Its loss is 2 ln 2, G's is ln 2, and G's gradient is zero."""
  params, carry = start
  head = {"kernel": jnp.zeros_like(params["discriminator"]["linear"]["kernel"])}
  params = {**params, "discriminator": params["discriminator"] | {"linear": head}}
  keys = jax.random.split(jax.random.key(1), BATCH)
  losses = {}
  for phase in ALGORITHM.phases:
    gradients_of = jax.jit(global_gradients(phase, mesh_of(1), None))
    gradients, _, metrics = gradients_of(params, carry, data(ALGORITHM, BATCH), keys, {})
    losses[phase.name] = float(metrics["loss"])
  assert losses == pytest.approx({"discriminator": 2 * np.log(2), "generator": np.log(2)})
  assert all(not leaf.any() for leaf in jax.tree.leaves(gradients["generator"]))


@pytest.mark.parametrize(
  "images, wrong",
  [
    (Images(32, 32, 3, 0), r"config\.gan\.widths = \(8, 8\) has 2 entries.* need 3"),
    (Images(16, 16, 3, 10), r"config\.data\.num_classes = 10: dcgan takes no classes"),
  ],
)
def test_images_that_do_not_fit_are_refused(images, wrong):
  with pytest.raises(UserError, match=wrong):
    dcgan.build(SETTINGS, images, "cpu")
