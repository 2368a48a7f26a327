"""Properties of SAGAN and its phases; test_zoo.py has those of all GANs with state."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import golden_cases
from helpers.meshes import mesh_of
from helpers.zoo import data

from r3gan_jax.algorithms import sagan
from r3gan_jax.algorithms.base import split_keys
from r3gan_jax.algorithms.capabilities import HasPictures
from r3gan_jax.algorithms.images import Images
from r3gan_jax.errors import UserError
from r3gan_jax.networks.spectral_norm import power_iteration
from r3gan_jax.training.step import global_gradients

IMAGES = Images(16, 16, 1, 3)
SETTINGS = sagan.Settings(
  generator_widths=(8, 8, 8), discriminator_widths=(8, 8), whole_blocks=1, attention_side=8, noise_dim=8
)
BATCH = 8
KEYS = jax.random.split(jax.random.key(1), BATCH)


def built(images=IMAGES, **changes):
  return sagan.build(dataclasses.replace(SETTINGS, **changes), images, "cpu")


ALGORITHM = built()


@pytest.fixture(scope="module")
def start():
  """(params, carry) with weights of attention, for which gamma is not 0."""
  params, carry = jax.jit(lambda: ALGORITHM.init(jax.random.key(0)))()
  for network in params.values():
    network["attention_8"]["gamma"] = jnp.asarray(0.5)
  return params, carry


def gradients_of(phase, params, carry, batch, algorithm=ALGORITHM, devices=1):
  phase = {phase.name: phase for phase in algorithm.phases}[phase]
  return jax.jit(global_gradients(phase, mesh_of(devices), None))(params, carry, batch, KEYS, {})


def in_float64(start):
  """Returns the arguments of `gradients_of`."""
  batch = data(ALGORITHM, BATCH)
  params, carry = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), start)
  return params, carry, {"image": jnp.asarray(batch["image"] / 127.5 - 1), "label": batch["label"]}


def by_hand(params, carry):
  """Returns parameters whose kernels are divided by |W u|."""

  def divided(path, leaf):
    vectors = carry
    for key in path:
      vectors = vectors.get(key.key, {}) if isinstance(vectors, dict) else {}
    return leaf if isinstance(vectors, dict) else leaf / jnp.linalg.norm(leaf.reshape(-1, leaf.shape[-1]) @ vectors)

  return jax.tree_util.tree_map_with_path(divided, params)


@pytest.mark.parametrize("network", sagan.PHASES)
def test_gradients_against_the_losses_by_hand(start, network):
  """In float64: hinge, fakes of drawn classes, weights of both networks over |W u|; and 8 devices are as one."""
  with jax.enable_x64(True):
    params, carry, batch = in_float64(start)
    drawing_keys = split_keys(KEYS, {"discriminator": 2, "generator": 1}[network])[0]

    @jax.jit
    def expected(of_network):
      moved = {**params, network: of_network}
      of_d, of_g = (by_hand(moved[name], carry[f"{name}_vectors"]) for name in sagan.PHASES)

      def local(keys):
        z_keys, label_keys = split_keys(keys, 2)
        labels = ALGORITHM._drawn_labels(label_keys)
        variables = {"params": of_g, "moments": carry["generator_moments"]}
        noise = ALGORITHM.noise(z_keys)
        return ALGORITHM.generator.apply(variables, noise, labels, train=True, mutable=["moments"])[0], labels

      spec = jax.sharding.PartitionSpec("data")
      fake, labels = jax.jit(jax.shard_map(local, mesh=mesh_of(1), in_specs=spec, out_specs=spec))(drawing_keys)
      b = ALGORITHM.discriminator.apply({"params": of_d}, fake, labels)
      if network == "generator":
        return -jnp.mean(b)
      a = ALGORITHM.discriminator.apply({"params": of_d}, batch["image"], batch["label"])
      return jnp.mean(jnp.maximum(0, 1 - a)) + jnp.mean(jnp.maximum(0, 1 + b))

    gradients, carry_of_one, metrics = gradients_of(network, params, carry, batch)
    loss, expected_gradients = jax.value_and_grad(expected)(params[network])
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-10)

    def assert_close(actual, expected):
      """Biases before batch norm have no gradient but rounding errors."""
      jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-7, atol=1e-11), actual, expected)

    assert_close(gradients[network], expected_gradients)
    of_eight, carry_of_eight, _ = gradients_of(network, params, carry, batch, devices=8)
    assert_close(of_eight[network], expected_gradients)
    golden_cases.assert_trees_close(carry_of_eight, carry_of_one, 1e-10)


def test_vectors_of_a_network_take_a_step_where_it_is_updated(start):
  """From its parameters alone; those of the other network stay."""
  for phase in ALGORITHM.phases:
    after = phase.refresh(*start)
    for network in sagan.PHASES:
      name = f"{network}_vectors"
      moves = network == phase.name
      expected = power_iteration(start[0][network], start[1][name]) if moves else start[1][name]
      jax.tree.map(np.testing.assert_array_equal, after[name], expected)
      assert moves == any(jax.tree.leaves(jax.tree.map(lambda a, b: bool(np.any(a != b)), after[name], start[1][name])))


def test_weights_have_no_scale(start):
  """Logits and images stay where all kernels double."""
  params, carry, batch = *start, data(ALGORITHM, BATCH)

  def doubled(path, leaf):
    return 2 * leaf if path[-1].key == "kernel" else leaf

  scaled = jax.tree_util.tree_map_with_path(doubled, params)
  found, expected = (gradients_of("discriminator", p, carry, batch)[2] for p in (scaled, params))
  for name, value in expected.items():
    np.testing.assert_allclose(found[name], value, rtol=1e-4)


def test_a_generator_without_spectral_norm(start):
  free = built(generator_spectral_norm=False)
  params, carry = free.init(jax.random.key(0))
  assert set(carry) == {"generator_moments", "discriminator_vectors"}
  of_generator = {phase.name: phase for phase in free.phases}["generator"]
  assert of_generator.refresh(params, carry) is carry
  noise, labels = free.noise(KEYS), jnp.zeros(BATCH, jnp.int32)
  variables = {"params": params["generator"], "moments": carry["generator_moments"]}
  expected = free.generator.apply(variables, noise, labels, train=False)
  np.testing.assert_array_equal(free.generate(params, carry, noise, labels), expected)


def test_samples_are_normalised_by_vectors_of_their_own(start):
  """Those of averaged parameters: any others give the same images."""
  noise, labels = ALGORITHM.noise(KEYS), jnp.arange(BATCH) % 3
  images = ALGORITHM.generate(*start, noise, labels)
  stepped = {**start[1], "generator_vectors": power_iteration(start[0]["generator"], start[1]["generator_vectors"], 50)}
  np.testing.assert_allclose(images, ALGORITHM.generate(start[0], stepped, noise, labels), atol=0.02)
  with pytest.raises(ValueError, match="labels are missing"):
    ALGORITHM.generate(*start, noise, None)


def test_a_generator_may_learn_from_more_fakes_than_there_are_reals(start):
  """Two batches: the loss is the mean over both."""
  twice = built(generator_batches=2)
  _, _, metrics = gradients_of("generator", *start, data(ALGORITHM, BATCH), twice)
  drawn = split_keys(KEYS, 2).reshape(-1)
  spec = jax.sharding.PartitionSpec("data")

  def local(keys):
    fake, labels, _ = twice._fakes(start[0]["generator"], start[1], keys)
    return twice._judge(start[0]["discriminator"], start[1])(fake, labels)

  logits = jax.jit(jax.shard_map(local, mesh=mesh_of(1), in_specs=spec, out_specs=spec))(drawn)
  assert logits.shape == (2 * BATCH,)
  np.testing.assert_allclose(metrics["loss"], -jnp.mean(logits), rtol=1e-4)


def test_without_classes(start):
  """Networks have no rows for them, and samples need no labels."""
  plain = built(IMAGES._replace(num_classes=0))
  params, carry = plain.init(jax.random.key(0))
  assert "class_table" not in params["discriminator"] and "class_table" in start[0]["discriminator"]
  assert plain.generate(params, carry, plain.noise(KEYS), None).shape == (BATCH, 16, 16, 1)
  _, _, metrics = gradients_of("discriminator", params, carry, {"image": data(plain, BATCH)["image"]}, plain)
  assert np.isfinite(metrics["loss"])


def test_pictures_show_what_places_attend_to(start):
  """A row is a sample and a map for each of three places, which are white; the largest weight is 0.5, none is -1."""
  assert isinstance(ALGORITHM, HasPictures)
  (picture,) = jax.jit(ALGORITHM.pictures)(*start, jnp.zeros((5, 16, 16, 1))).values()
  assert picture.shape == (5, 16, 64, 1)
  noise = ALGORITHM.noise(jax.random.split(jax.random.key(0), 5))
  np.testing.assert_allclose(picture[:, :, :16], ALGORITHM.generate(*start, noise, jnp.arange(5) % 3), atol=1e-5)
  for index, (row, column) in enumerate(((4, 4), (2, 2), (6, 4))):
    of_place = np.array(picture[:, :, 16 * (index + 1) : 16 * (index + 2)])
    query = of_place[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
    np.testing.assert_array_equal(query, 1)
    query[:] = -1
    assert (of_place.max(axis=(1, 2, 3)) <= 0.5 + 1e-6).all() and of_place.min() >= -1
  assert built(attention_side=0).pictures(*start, jnp.zeros((5, 16, 16, 1))) == {}


def test_g_and_d_have_rates_of_their_own(start):
  """The first update of Adam is the rate."""
  hyperparameters = {name: schedule(0) for name, schedule in ALGORITHM.schedules.items()}
  for network, rate in (("generator", 1e-4), ("discriminator", 4e-4)):
    params = jax.tree.map(jnp.ones_like, start[0][network])
    optimizer = ALGORITHM.optimizers[network]
    updates, _ = optimizer.update(params, optimizer.init(params), params, hyperparameters=hyperparameters)
    for leaf in jax.tree.leaves(updates):
      np.testing.assert_allclose(leaf, -rate, rtol=1e-5)


@pytest.mark.parametrize(
  "changes, wrong",
  [
    ({"generator_widths": (8, 8)}, r"config\.gan\.generator_widths = \(8, 8\) has 2 entries.* need 3"),
    (
      {"whole_blocks": 2},
      r"config\.gan\.discriminator_widths = \(8, 8\): all but the last config\.gan\.whole_blocks = 2",
    ),
    ({"discriminator_widths": (8,) * 6}, r"config\.gan\.discriminator_widths = .* never an odd side"),
    ({"attention_side": 16}, r"config\.gan\.attention_side = 16: choose a resolution of both networks' blocks, \[8\]"),
    ({"generator_widths": (8, 12, 8)}, r"config\.gan\.generator_widths has 12 channels .* needs a multiple of 8"),
    ({"discriminator_widths": (4, 8)}, r"config\.gan\.discriminator_widths has 4 channels .* needs a multiple of 8"),
  ],
)
def test_settings_that_do_not_fit_are_refused(changes, wrong):
  with pytest.raises(UserError, match=wrong):
    built(**changes)
