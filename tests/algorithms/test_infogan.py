"""Properties of InfoGAN alone; test_zoo.py has those of all GANs with batch norm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.meshes import mesh_of
from helpers.zoo import data

from r3gan_jax.algorithms import infogan
from r3gan_jax.algorithms.capabilities import HasPictures
from r3gan_jax.algorithms.images import Images
from r3gan_jax.errors import UserError
from r3gan_jax.training.step import global_gradients

IMAGES = Images(8, 8, 1, 0)
BATCH = 16
KEYS = jax.random.split(jax.random.key(1), BATCH)


def built(images=IMAGES, **changes):
  settings = {"widths": (8, 4), "dense_width": 16, "q_width": 8, "noise_dim": 3, "categories": 5} | changes
  return infogan.build(infogan.Settings(**settings), images, "cpu")


ALGORITHM = built()


@pytest.fixture(scope="module")
def start():
  return jax.jit(lambda: ALGORITHM.init(jax.random.key(0)))()


def gradients_of(phase, params, carry, batch, algorithm=ALGORITHM, devices=1):
  phase = {phase.name: phase for phase in algorithm.phases}[phase]
  return jax.jit(global_gradients(phase, mesh_of(devices), None))(params, carry, batch, KEYS, {})


def in_float64(start):
  """Returns the arguments of `gradients_of`, with larger weights."""
  random = np.random.default_rng(0)
  params, carry = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), start)
  params = jax.tree.map(lambda p: p + 0.1 * random.standard_normal(p.shape), params)
  return params, carry, {"image": jnp.asarray(data(ALGORITHM, BATCH)["image"] / 127.5 - 1)}


def assert_close(actual, expected):
  """Biases before batch norm have no gradient but rounding errors, hence the absolute tolerance."""
  jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-7, atol=1e-12), actual, expected)


def applied(network, params, carry, inputs):
  """Returns what a network makes of a batch in training."""
  spec = jax.sharding.PartitionSpec("data")

  def local(inputs):
    variables = {"params": params[network], "moments": carry[f"{network}_moments"]}
    return getattr(ALGORITHM, network).apply(variables, inputs, train=True, mutable=["moments"])[0]

  # D's logits [N] and Q's guesses [N, codes], or images.
  return jax.jit(jax.shard_map(local, mesh=mesh_of(1), in_specs=spec, out_specs=spec))(inputs)


def test_information_of_a_category():
  """ln 10 where Q is sure and right, 0 where it is the prior, and never more."""
  category = jnp.eye(10)
  np.testing.assert_allclose(infogan.category_information(1000 * category, category), 2.302585, rtol=1e-6)
  np.testing.assert_allclose(infogan.category_information(jnp.full((10, 10), 3.0), category), 0.0, atol=1e-6)
  logits = 5 * jax.random.normal(jax.random.key(0), (10, 10))
  assert (infogan.category_information(logits, category) <= 2.302586).all()


def test_information_is_bounded_by_that_of_a_toy():
  """Three codes, four images: Q attains I(c; x) as the posterior, and with any other Q L_I is below."""
  random = np.random.default_rng(0)
  images_of = random.dirichlet(np.ones(4), size=3)  # p(x | c)
  joint = images_of / 3
  mutual = np.sum(joint * np.log(joint / joint.sum(0) / joint.sum(1, keepdims=True)))

  def bound(q):
    """Returns the expectation of L_I, from q(c | x) [4, 3]."""
    logits = jnp.log(jnp.asarray(q, jnp.float32))
    return sum(
      float(joint[c] @ infogan.category_information(logits, jnp.tile(jnp.eye(3)[c], (4, 1)))) for c in range(3)
    )

  assert bound((joint / joint.sum(0)).T) == pytest.approx(mutual, abs=1e-6)
  assert all(bound(random.dirichlet(np.ones(3), size=4)) < mutual for _ in range(20))


def test_information_of_a_continuous_code():
  """With its constants -.2258 where the mean is right, and -.3925 on average where it is 0."""
  codes = (jnp.arange(10_000, dtype=jnp.float32)[:, None] + 0.5) / 5000 - 1
  constants = np.log(2) - 0.5 * np.log(2 * np.pi)
  assert infogan.gaussian_information(codes, codes).mean() + constants == pytest.approx(-0.2258, abs=5e-5)
  assert infogan.gaussian_information(0 * codes, codes).mean() + constants == pytest.approx(-0.3925, abs=5e-5)
  two = jnp.concatenate([codes, codes], axis=1)
  np.testing.assert_allclose(infogan.gaussian_information(0 * two, two), -(codes[:, 0] ** 2), rtol=1e-6)


def test_noise_and_codes():
  noise = np.asarray(ALGORITHM.noise(jax.random.split(jax.random.key(3), 4000)))
  z, category, continuous = noise[:, :3], noise[:, 3:8], noise[:, 8:]
  assert ALGORITHM.noise_dim == 10 == noise.shape[1]
  np.testing.assert_array_equal(np.sort(category, axis=1), np.tile([0, 0, 0, 0, 1], (4000, 1)))
  np.testing.assert_allclose(category.mean(axis=0), 0.2, atol=0.03)
  for part in (z, continuous):
    assert np.abs(part).max() <= 1 and np.abs(part.mean(axis=0)).max() < 0.05
    np.testing.assert_allclose(part.std(axis=0), 1 / np.sqrt(3), atol=0.02)
  assert np.abs(np.corrcoef(noise[:, [0, 1, 2, 3, 8, 9]].T) - np.eye(6)).max() < 0.06


def test_gradients_of_8_devices_are_those_of_one(start):
  """Computed in float64, before Adam."""
  with jax.enable_x64(True):
    for phase in infogan.PHASES:
      one, eight = (gradients_of(phase, *in_float64(start), devices=n) for n in (1, 8))
      assert_close(eight, one)


@pytest.mark.parametrize("network", infogan.PHASES)
def test_gradients_against_the_losses_by_hand(start, network):
  """In float64, with w = 0.3: in both losses L_I is subtracted, of fakes only, for the codes that G got."""
  with jax.enable_x64(True):
    params, carry, batch = in_float64(start)
    noise = ALGORITHM.noise(KEYS)

    @jax.jit
    def expected(of_network):
      moved = {**params, network: of_network}
      a, _ = applied("discriminator", moved, carry, (batch["image"] + 1) / 2)
      b, guesses = applied("discriminator", moved, carry, applied("generator", moved, carry, noise))
      q = jnp.sum(jax.nn.softmax(guesses[:, :5]) * noise[:, 3:8], axis=1)
      errors = jnp.sum((guesses[:, 5:] - noise[:, 8:]) ** 2, axis=1)
      information = jnp.mean(jnp.log(5 * q) - errors / 2)
      of_g = -jnp.mean(jnp.log(jax.nn.sigmoid(b)))
      of_d = -jnp.mean(jnp.log(jax.nn.sigmoid(a))) - jnp.mean(jnp.log(jax.nn.sigmoid(-b)))
      return (of_d if network == "discriminator" else of_g) - 0.3 * information

    gradients, _, metrics = gradients_of(network, params, carry, batch, built(information_weight=0.3))
    loss, by_hand = jax.value_and_grad(expected)(params[network])
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-10)
    assert_close(gradients[network], by_hand)


@pytest.mark.parametrize("network", infogan.PHASES)
def test_without_the_information_q_has_no_part(start, network):
  """With w = 0 it has no gradient, and all others are the same, to the bit, for any Q."""
  params, carry = start
  unweighted = built(information_weight=0.0)
  of_q = {name for name in params["discriminator"] if name.split("_")[0] == "q" or name == "norm_of_q"}
  assert len(of_q) == 3
  moved = jax.tree.map(lambda p: 3 * p, {name: params["discriminator"][name] for name in of_q})
  found = []
  for discriminator in (params["discriminator"], params["discriminator"] | moved):
    given = {**params, "discriminator": discriminator}
    gradients, _, _ = gradients_of(network, given, carry, data(ALGORITHM, BATCH), unweighted)
    found.append({name: leaves for name, leaves in gradients[network].items() if name not in of_q})
    assert not any(leaf.any() for name in of_q & set(gradients[network]) for leaf in gradients[network][name].values())
  jax.tree.map(np.testing.assert_array_equal, *found)


def test_samples(start):
  """Pixels of G in [0, 1] become [-1, 1]; truncation leaves the category."""
  noise = ALGORITHM.noise(KEYS)
  variables = {"params": start[0]["generator"], "moments": start[1]["generator_moments"]}
  pixels = ALGORITHM.generator.apply(variables, noise, train=False)
  assert pixels.min() > 0 and pixels.max() < 1
  np.testing.assert_allclose(ALGORITHM.generate(*start, noise, None), 2 * pixels - 1, atol=1e-6)
  only_categories = jnp.zeros_like(noise).at[:, 3:8].set(noise[:, 3:8])
  expected = 2 * ALGORITHM.generator.apply(variables, only_categories, train=False) - 1
  np.testing.assert_allclose(ALGORITHM.generate(*start, noise, None, 0.0), expected, atol=1e-6)


def test_traversals(start):
  """Columns of images of one z: the i-th has category i, or one continuous code between -2 and 2."""
  assert isinstance(ALGORITHM, HasPictures)
  pictures = jax.jit(ALGORITHM.pictures)(*start, jnp.zeros((4, 8, 8, 1)))
  shapes = {name: picture.shape for name, picture in pictures.items()}
  assert shapes == {
    "traversals_of_the_category": (10, 40, 8, 1),
    "traversals_of_code_1": (10, 80, 8, 1),
    "traversals_of_code_2": (10, 80, 8, 1),
  }
  noise = ALGORITHM.noise(jax.random.split(jax.random.key(0), 10))[7]
  changed = {
    "traversals_of_the_category": [noise.at[3:8].set(row) for row in jnp.eye(5)],
    "traversals_of_code_1": [noise.at[8].set(value) for value in jnp.linspace(-2, 2, 10)],
    "traversals_of_code_2": [noise.at[9].set(value) for value in jnp.linspace(-2, 2, 10)],
  }
  for name, column in changed.items():
    expected = ALGORITHM.generate(*start, jnp.stack(column), None).reshape(-1, 8, 1)
    np.testing.assert_allclose(pictures[name][7], expected, atol=1e-6)


def test_g_and_d_have_rates_of_their_own(start):
  """The first update of Adam is the rate."""
  hyperparameters = {name: schedule(0) for name, schedule in ALGORITHM.schedules.items()}
  for network, rate in (("generator", 1e-3), ("discriminator", 2e-4)):
    params = jax.tree.map(jnp.ones_like, start[0][network])
    optimizer = ALGORITHM.optimizers[network]
    updates, _ = optimizer.update(params, optimizer.init(params), params, hyperparameters=hyperparameters)
    for leaf in jax.tree.leaves(updates):
      np.testing.assert_allclose(leaf, -rate, rtol=1e-5)


@pytest.mark.parametrize(
  "images, wrong",
  [
    (Images(8, 8, 1, 10), r"config\.data\.num_classes = 10: infogan takes no classes"),
    (Images(30, 30, 1, 0), r"config\.data\.resolution = 30: infogan's networks need a multiple of 4"),
  ],
)
def test_images_that_do_not_fit_are_refused(images, wrong):
  with pytest.raises(UserError, match=wrong):
    built(images)
