"""Properties of EBGAN alone; test_zoo.py has those of all GANs with state."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import golden_cases
from helpers.meshes import mesh_of
from helpers.zoo import data

from r3gan_jax.algorithms import ebgan
from r3gan_jax.algorithms.capabilities import HasPictures
from r3gan_jax.algorithms.images import Images
from r3gan_jax.errors import UserError
from r3gan_jax.training.step import global_gradients

SETTINGS = ebgan.Settings(generator_widths=(8, 8), discriminator_widths=(8, 8), noise_dim=8, margin=10.0)
IMAGES = Images(16, 16, 1, 0)
ALGORITHM = ebgan.build(SETTINGS, IMAGES, "cpu")
BATCH = 16
KEYS = jax.random.split(jax.random.key(1), BATCH)
SPEC = jax.sharding.PartitionSpec("data")


@pytest.fixture(scope="module")
def start():
  return jax.jit(lambda: ALGORITHM.init(jax.random.key(0)))()


def gradients_of(phase, params, carry, batch, algorithm=ALGORITHM, devices=1):
  phase = {phase.name: phase for phase in algorithm.phases}[phase]
  return jax.jit(global_gradients(phase, mesh_of(devices), None))(params, carry, batch, KEYS, {})


def in_float64(start):
  """Returns the arguments of `gradients_of`, with weights that leave no reconstruction near 0."""
  random = np.random.default_rng(0)
  params, carry = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), start)
  params = jax.tree.map(lambda p: p + 0.1 * random.standard_normal(p.shape), params)
  return params, carry, {"image": jnp.asarray(data(ALGORITHM, BATCH)["image"] / 127.5 - 1)}


def assert_close(actual, expected):
  """In float64. Biases before batch norm have no gradient but rounding errors, hence the absolute tolerance."""
  jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-7, atol=1e-11), actual, expected)


def applied(network, params, carry, inputs):
  """Returns what a network makes of a batch in training."""

  def local(inputs):
    variables = {"params": params[network], "moments": carry[f"{network}_moments"]}
    return getattr(ALGORITHM, network).apply(variables, inputs, train=True, mutable=["moments"])[0]

  return jax.jit(jax.shard_map(local, mesh=mesh_of(1), in_specs=SPEC, out_specs=SPEC))(inputs)


def pulling_away(codes, devices=1):
  """Returns the mean over a batch of codes."""
  sharded = jax.shard_map(
    lambda codes: ebgan.pulling_away(codes, "data"), mesh=mesh_of(devices), in_specs=SPEC, out_specs=SPEC
  )
  return float(jnp.mean(sharded(jnp.asarray(codes, jnp.float32))))


@pytest.mark.parametrize(
  "codes, expected",
  [
    ([(1, 0), (1, 1), (0, 2)], 1 / 3),
    ([(3, 4), (3, 4)], 1),
    ([(3, 4), (-3, -4)], 1),
    ([(1, 0, 0), (0, 2, 0), (0, 0, 3)], 0),
    ([(0, 0), (1, 1)], 0),
  ],
)
def test_the_pulling_away_term_by_hand(codes, expected):
  assert pulling_away(codes) == pytest.approx(expected, abs=1e-6)


def test_the_pulling_away_term_ignores_lengths_and_signs():
  """Of random codes it is about 1 / length."""
  random = np.random.default_rng(0)
  codes, factors = random.standard_normal((256, 50)), 3 * random.standard_normal((256, 1))
  assert pulling_away(codes) == pytest.approx(1 / 50, rel=0.05)
  assert pulling_away(factors * codes) == pytest.approx(pulling_away(codes), rel=1e-5)


def test_the_pulling_away_term_is_over_pairs_of_the_global_batch():
  """Each device has two equal codes, orthogonal to those of the other."""
  assert pulling_away([(1, 0), (1, 0), (0, 1), (0, 1)], devices=2) == pytest.approx(1 / 3, abs=1e-6)


def test_the_energy_is_a_norm_over_all_pixels():
  energies = ebgan.energy(jnp.stack([jnp.ones((4, 4, 1)), jnp.zeros((4, 4, 1))]), jnp.zeros((2, 4, 4, 1)))
  np.testing.assert_allclose(energies, [4, 0], atol=1e-5)


def test_gradients_of_8_devices_are_those_of_one(start):
  """Computed in float64, before Adam."""
  with jax.enable_x64(True):
    given = in_float64(start)
    for phase in ebgan.PHASES:
      one, eight = (gradients_of(phase, *given, devices=n) for n in (1, 8))
      assert_close(eight, one)


def test_codes_of_different_devices_repel(start):
  """The gradient of the term alone is the same on one device and on 8: no device is alone with its codes."""
  with jax.enable_x64(True):
    params, carry, batch = in_float64(start)
    algorithm = dataclasses.replace(ALGORITHM, pulling_away_weight=1e6)
    one, eight = (gradients_of("generator", params, carry, batch, algorithm, devices=n) for n in (1, 8))
    golden_cases.assert_trees_close(eight[0], one[0], 1e-8)


@pytest.mark.parametrize("network", ebgan.PHASES)
def test_gradients_against_the_losses_by_hand(start, network):
  """In float64, with a margin between the energies of fakes: the hinge is each image's own."""
  with jax.enable_x64(True):
    params, carry, batch = in_float64(start)

    def judge(params, images):
      reconstructions, codes = applied("discriminator", params, carry, images)
      return jnp.linalg.norm((images - reconstructions).reshape(BATCH, -1), axis=1), codes

    def fakes(params):
      return applied("generator", params, carry, ALGORITHM.noise(KEYS))

    margin = float(jnp.median(judge(params, fakes(params))[0]))
    algorithm = dataclasses.replace(ALGORITHM, margin=margin, pulling_away_weight=3.0)

    @jax.jit
    def expected(of_network):
      moved = {**params, network: of_network}
      of_fakes, codes = judge(moved, fakes(moved))
      if network == "discriminator":
        return jnp.mean(judge(moved, batch["image"])[0]) + jnp.sum(jnp.maximum(0, margin - of_fakes)) / BATCH
      lengths = jnp.linalg.norm(codes, axis=1)
      cosines = codes @ codes.T / lengths[:, None] / lengths[None]
      return jnp.mean(of_fakes) + 3 * (jnp.sum(cosines**2) - BATCH) / BATCH / (BATCH - 1)

    gradients, _, metrics = gradients_of(network, params, carry, batch, algorithm)
    loss, by_hand = jax.value_and_grad(expected)(params[network])
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-10)
    assert_close(gradients[network], by_hand)


def test_fakes_beyond_the_margin_do_not_train_the_discriminator(start):
  """With a margin of 0 it is an autoencoder of reals, whatever G does."""
  algorithm = dataclasses.replace(ALGORITHM, margin=0.0)
  other = {**start[0], "generator": jax.tree.map(lambda p: 2 * p, start[0]["generator"])}
  found = [gradients_of("discriminator", p, start[1], data(ALGORITHM, BATCH), algorithm) for p in (start[0], other)]
  assert found[0][2]["fake_energy"] != found[1][2]["fake_energy"]
  assert found[0][2]["loss"] == found[0][2]["real_energy"]
  jax.tree.map(np.testing.assert_array_equal, found[0][0], found[1][0])


def test_at_equilibrium_the_discriminator_s_loss_is_the_margin(start):
  """Where fakes are as reals, and below the margin."""
  real = data(ALGORITHM, BATCH)

  class Perfect(ebgan.EBGAN):
    def _generate(self, generator, carry, keys):
      return jnp.asarray(real["image"] / np.float32(127.5) - 1), carry["generator_moments"]

  perfect = Perfect(**{**vars(ALGORITHM), "margin": 40.0})
  metrics = gradients_of("discriminator", *start, real, perfect)[2]
  assert 0 < metrics["real_energy"] < 40 and metrics["loss"] == pytest.approx(40)


def test_running_moments(start):
  """D's are those of the reals alone, and only G's move in its phase."""
  moments = []
  for factor in (1, 2):
    params = {**start[0], "generator": jax.tree.map(lambda p, factor=factor: factor * p, start[0]["generator"])}
    carry = gradients_of("discriminator", params, start[1], data(ALGORITHM, BATCH))[1]
    moments.append(carry["discriminator_moments"])
    jax.tree.map(np.testing.assert_array_equal, carry["generator_moments"], start[1]["generator_moments"])
  jax.tree.map(np.testing.assert_array_equal, *moments)
  assert not jax.tree.all(jax.tree.map(jnp.array_equal, moments[0], start[1]["discriminator_moments"]))
  carry = gradients_of("generator", *start, data(ALGORITHM, BATCH))[1]
  jax.tree.map(np.testing.assert_array_equal, carry["discriminator_moments"], start[1]["discriminator_moments"])
  assert not jax.tree.all(jax.tree.map(jnp.array_equal, carry["generator_moments"], start[1]["generator_moments"]))


def test_pictures(start):
  """Each real beside its reconstruction, by running moments, and beside the other real of the nearest code."""
  assert isinstance(ALGORITHM, HasPictures)
  images = np.repeat(data(ALGORITHM, 3)["image"] / np.float32(127.5) - 1, 2, axis=0)
  pictures = jax.jit(ALGORITHM.pictures)(*start, jnp.asarray(images))
  assert {name: picture.shape for name, picture in pictures.items()} == dict.fromkeys(
    ("reals_and_reconstructions", "reals_and_nearest_codes"), (6, 16, 32, 1)
  )
  for picture in pictures.values():
    np.testing.assert_array_equal(picture[:, :, :16], images)
  variables = {"params": start[0]["discriminator"], "moments": start[1]["discriminator_moments"]}
  alone = ALGORITHM.discriminator.apply(variables, images[4:5], train=False)[0]
  np.testing.assert_allclose(pictures["reals_and_reconstructions"][4, :, 16:], alone[0], atol=1e-6)
  np.testing.assert_array_equal(pictures["reals_and_nearest_codes"][:, :, 16:], images)  # its copy


def test_weights_of_the_discriminator_are_small():
  params = jax.jit(ebgan.build(ebgan.Settings(), Images(64, 64, 3, 0), "cpu").init)(jax.random.key(0))[0]
  kernel = params["discriminator"]["encode_8"]["kernel"]
  assert kernel.shape == (4, 4, 128, 256) and float(jnp.std(kernel)) == pytest.approx(0.002, rel=0.01)


@pytest.mark.parametrize(
  "images, changes, wrong",
  [
    (Images(16, 16, 1, 10), {}, r"config\.data\.num_classes = 10: ebgan takes no classes"),
    (Images(32, 32, 1, 0), {}, r"config\.gan\.generator_widths = \(8, 8\) has 2 entries.* need 3"),
    (IMAGES, {"discriminator_widths": ()}, r"discriminator_widths = \(\) must halve config\.data\.resolution = 16"),
    (IMAGES, {"discriminator_widths": (8,) * 5}, r"discriminator_widths = .* and never an odd side"),
  ],
)
def test_settings_that_do_not_fit_are_refused(images, changes, wrong):
  with pytest.raises(UserError, match=wrong):
    ebgan.build(dataclasses.replace(SETTINGS, **changes), images, "cpu")
