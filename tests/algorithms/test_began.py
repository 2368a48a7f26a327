"""Properties of BEGAN alone; test_zoo.py has those of all GANs with state."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import golden_cases
from helpers.meshes import mesh_of
from helpers.zoo import data

from r3gan_jax.algorithms import began
from r3gan_jax.algorithms.capabilities import HasPictures
from r3gan_jax.algorithms.images import Images
from r3gan_jax.errors import UserError
from r3gan_jax.training.step import global_gradients

IMAGES = Images(16, 16, 3, 0)
ALGORITHM = began.build(began.Settings(width=4, noise_dim=8), IMAGES, "cpu")
BATCH = 16
KEYS = jax.random.split(jax.random.key(1), BATCH)


@pytest.fixture(scope="module")
def start():
  return jax.jit(lambda: ALGORITHM.init(jax.random.key(0)))()


def gradients_of(params, carry, batch, algorithm=ALGORITHM, devices=1):
  return jax.jit(global_gradients(algorithm.phases[0], mesh_of(devices), None))(params, carry, batch, KEYS, {})


def in_float64(start, k):
  """Returns the arguments of `gradients_of`."""
  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), start[0])
  return params, {"k": jnp.asarray(k)}, {"image": jnp.asarray(data(ALGORITHM, BATCH)["image"] / 127.5 - 1)}


@pytest.mark.parametrize("fake, change, measure", [(0.2, 3e-4, 1.3), (0.5, 0, 1.0), (0.9, -4e-4, 1.4)])
def test_balance_and_convergence_by_hand(fake, change, measure):
  """For L(real) = 1, diversity 0.5 and the rate 0.001."""
  assert began.balanced(0.5, 1.0, fake, 0.5, 0.001) == pytest.approx(0.5 + change, abs=1e-7)
  assert began.convergence(1.0, fake, 0.5) == pytest.approx(measure)


@pytest.mark.parametrize("k, fake, expected", [(0.0, 0.9, 0.0), (1.0, 0.2, 1.0), (0.9999, 0.2, 1.0)])
def test_k_stays_between_0_and_1(k, fake, expected):
  assert began.balanced(k, 1.0, fake, 0.5, 0.001) == expected


def test_k_rests_where_the_errors_are_in_balance():
  """On a toy whose L(G) falls with k: it settles where L(G) = diversity L(real), from both sides."""
  for k in (0.0, 1.0):
    for _ in range(400):
      k = began.balanced(k, 1.0, 0.2 + k, 0.5, 0.05)
    assert k == pytest.approx(0.3, abs=1e-4)


@pytest.mark.parametrize("k", [0.0, 0.3])
def test_gradients_against_the_losses_by_hand(start, k):
  """In float64. D's fakes are constant; in G's loss, D(G(z)) and its target G(z) both move."""
  with jax.enable_x64(True):
    params, carry, batch = in_float64(start, k)

    def error(params, images):
      reconstructions, _ = ALGORITHM.discriminator.apply({"params": params["discriminator"]}, images)
      return jnp.sum(jnp.abs(reconstructions - images)) / images.size

    def fakes(params):
      return ALGORITHM.generator.apply({"params": params["generator"]}, ALGORITHM.noise(KEYS))

    def loss(network, of_network):
      moved = {**params, network: of_network}
      if network == "generator":
        return error(moved, fakes(moved))
      return error(moved, batch["image"]) - k * error(moved, fakes(params))

    gradients, moved, metrics = gradients_of(params, carry, batch)
    for network in began.NETWORKS:
      by_hand = jax.jit(jax.grad(lambda p, network=network: loss(network, p)))(params[network])
      golden_cases.assert_trees_close(gradients[network], by_hand, 1e-8)
    real, fake = float(error(params, batch["image"])), float(error(params, fakes(params)))
    expected = {"real_error": real, "fake_error": fake, "k": k, "convergence": real + abs(0.5 * real - fake)}
    assert jax.tree.map(float, metrics) == pytest.approx(expected, rel=1e-10)
    assert float(moved["k"]) == pytest.approx(max(0, k + 0.001 * (0.5 * real - fake)), rel=1e-10)


def test_without_k_the_discriminator_is_an_autoencoder_of_reals(start):
  """Whatever G does; so it starts."""
  assert start[1] == {"k": 0}
  other = {**start[0], "generator": jax.tree.map(lambda p: 2 * p, start[0]["generator"])}
  first, second = (gradients_of(p, start[1], data(ALGORITHM, BATCH)) for p in (start[0], other))
  assert first[2]["fake_error"] != second[2]["fake_error"]
  jax.tree.map(np.testing.assert_array_equal, first[0]["discriminator"], second[0]["discriminator"])


def test_8_devices_are_as_one(start):
  """In float64: gradients, k and the measure of convergence, whose absolute value is of global means.

  A diversity between the devices' own ratios gives terms of both signs.
  """
  with jax.enable_x64(True):
    params, carry, batch = in_float64(start, 0.5)
    batch["image"] *= jnp.linspace(0.1, 1, BATCH)[:, None, None, None]
    metrics = gradients_of(params, carry, batch)[2]
    ratio = float(metrics["fake_error"] / metrics["real_error"])
    algorithm = dataclasses.replace(ALGORITHM, diversity=ratio)
    one, eight = (gradients_of(params, carry, batch, algorithm, devices=n) for n in (1, 8))
    golden_cases.assert_trees_close(eight[:2], one[:2], 1e-8)
    assert jax.tree.map(float, eight[2]) == pytest.approx(jax.tree.map(float, one[2]), rel=1e-9)
    assert one[2]["convergence"] == pytest.approx(float(one[2]["real_error"]), rel=1e-9)


def test_the_networks(start):
  """G's output and D's are linear, and upsampling repeats pixels."""
  params, _ = start
  generator = params["generator"]
  assert set(params["discriminator"]["decoder"]) == set(generator)
  brighter = {**generator, "to_image": {**generator["to_image"], "bias": jnp.full(3, 5.0)}}
  noise = ALGORITHM.noise(KEYS)
  images, brighter = (ALGORITHM.generate({"generator": p}, {}, noise, None) for p in (generator, brighter))
  np.testing.assert_allclose(brighter - images, 5, rtol=1e-5)
  centre = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1)
  pointwise = jax.tree.map(lambda p: p * centre if p.ndim == 4 else p, generator)
  blocks = ALGORITHM.generate({"generator": pointwise}, {}, noise, None).reshape(BATCH, 8, 2, 8, 2, 3)
  np.testing.assert_array_equal(blocks, np.broadcast_to(blocks[:, :, :1, :, :1], blocks.shape))


def test_the_learning_rate_is_held_and_then_falls():
  rate = began.build(
    began.Settings(width=4, learning_rate=(1e-4, 1e-6), hold_images=100, decay_images=200), IMAGES, "cpu"
  ).schedules["learning_rate"]
  assert [float(rate(n)) for n in (0, 100, 200, 300, 900)] == pytest.approx([1e-4, 1e-4, 1e-5, 1e-6, 1e-6])


def test_pictures(start):
  """Each real beside its reconstruction and beside the other real of the nearest code."""
  assert isinstance(ALGORITHM, HasPictures)
  images = np.repeat(data(ALGORITHM, 3)["image"] / np.float32(127.5) - 1, 2, axis=0)
  pictures = jax.jit(ALGORITHM.pictures)(*start, jnp.asarray(images))
  reconstructions = ALGORITHM.discriminator.apply({"params": start[0]["discriminator"]}, images)[0]
  expected = {"reals_and_reconstructions": reconstructions, "reals_and_nearest_codes": images}  # its copy
  assert set(pictures) == set(expected)
  for name, beside in expected.items():
    np.testing.assert_allclose(pictures[name], jnp.concatenate([images, beside], axis=2), atol=1e-6)


@pytest.mark.parametrize(
  "images, wrong",
  [
    (Images(16, 16, 1, 10), r"config\.data\.num_classes = 10: began takes no classes"),
    (Images(28, 28, 1, 0), r"config\.data\.resolution = 28: began's networks need 8 times a power of 2"),
    (Images(24, 24, 1, 0), r"config\.data\.resolution = 24: began's networks need 8 times a power of 2"),
  ],
)
def test_images_that_do_not_fit_are_refused(images, wrong):
  with pytest.raises(UserError, match=wrong):
    began.build(began.Settings(), images, "cpu")
