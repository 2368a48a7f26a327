"""GAN and CGAN: one phase for both players, dropout by sample, and the laws of their perceptrons."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import golden_cases
from helpers.meshes import mesh_of
from helpers.states import arrays_of
from helpers.zoo import data, trained

from r3gan_jax import factory
from r3gan_jax.algorithms import cgan, gan
from r3gan_jax.algorithms.images import Images
from r3gan_jax.errors import UserError
from r3gan_jax.networks.layers import dropout
from r3gan_jax.networks.mlp import Discriminator, Generator, Maxout
from r3gan_jax.training.checkpoint import Checkpoints
from r3gan_jax.training.state import abstract_state
from r3gan_jax.training.step import global_gradients

from configs.zoo import cgan as cgan_recipe  # isort: skip

BATCH = 16
ALGORITHMS = {
  "gan": gan.build(gan.Settings((16, 12), (6, 5), noise_dim=4, ema_half_life=32.0), Images(4, 4, 1, 0), "cpu"),
  "saturating": gan.build(gan.Settings((16, 12), (6, 5), noise_dim=4, saturating=True), Images(4, 4, 1, 0), "cpu"),
  "cgan": cgan.build(
    cgan.Settings((16, 12), 8, (6, 5), label_units=3, noise_dim=4, ema_half_life=32.0), Images(4, 4, 1, 3), "cpu"
  ),
}
KEYS = jax.random.split(jax.random.key(1), BATCH)


def generator_loss(algorithm, probability):
  """Returns G's loss of what D takes a fake for."""
  return jnp.log(1 - probability) if algorithm.saturating else -jnp.log(probability)


@pytest.fixture(params=("gan", "cgan"))
def algorithm(request):
  return ALGORITHMS[request.param]


def start(algorithm, dtype=jnp.float32):
  """Returns initial parameters, moved so that no gradient is tiny."""
  random = np.random.default_rng(0)
  with jax.enable_x64(False):
    params, _ = algorithm.init(jax.random.key(0))
  return jax.tree.map(lambda p: jnp.asarray(np.asarray(p) + 0.2 * random.standard_normal(p.shape), dtype), params)


def in_float64(algorithm):
  """Returns (params, carry, batch); call it with x64 enabled."""
  batch = data(algorithm, BATCH)
  return start(algorithm, jnp.float64), {}, batch | {"image": jnp.asarray(batch["image"] / 127.5 - 1)}


def gradients_of(algorithm, devices=1, micro_batch=None):
  return jax.jit(global_gradients(algorithm.phases[0], mesh_of(devices), micro_batch))


def counts(params):
  return [sum(leaf.size for leaf in jax.tree.leaves(params[name])) for name in ("generator", "discriminator")]


@pytest.mark.parametrize("channels, expected", [(1, [2_792_224, 1_519_441]), (3, [5_251_872, 3_977_041])])
def test_parameters_at_32_pixels(channels, expected):
  """At 28 pixels: test_configs.py."""
  algorithm = gan.build(gan.Settings(), Images(32, 32, channels, 0), "cpu")
  assert counts(jax.eval_shape(algorithm.init, jax.random.key(0))[0]) == expected


CGAN_START = cgan.Settings(widths=(50, 50), label_width=50, units=(40, 40), label_units=40)


@pytest.mark.parametrize(
  "algorithm, wider",
  [
    (gan.build(gan.Settings(widths=(50, 50), units=(40, 40)), Images(8, 8, 1, 0), "cpu"), ()),
    (cgan.build(CGAN_START, Images(8, 8, 1, 10), "cpu"), ("linear_0", "linear_0_of_label", "maxout_0_of_label")),
  ],
)
def test_the_start(algorithm, wider):
  """Uniform weights within 0.05 in G and 0.005 in D; zero biases, but for the logit of the mean pixel in G's last."""
  for network, bound in (("generator", 0.05), ("discriminator", 0.005)):
    for path, leaf in jax.tree.leaves_with_path(algorithm.init(jax.random.key(0))[0][network]):
      name = jax.tree_util.keystr(path)
      if "kernel" in name:
        limit = bound * (10 if path[0].key in wider else 1)
        assert 0.9 * limit < np.abs(leaf).max() <= limit and leaf.std() == pytest.approx(limit / np.sqrt(3), rel=0.15)
      else:
        logit = np.log(0.1307 / 0.8693) if network == "generator" and "['linear']" in name else 0
        np.testing.assert_allclose(leaf, logit, rtol=1e-6)


@pytest.mark.parametrize("mean, painted", [(0.3, 0.3), (0.0, 1e-3), (1.0, 1 - 1e-3)])
def test_zero_weights_paint_the_mean_image(mean, painted):
  algorithm = gan.build(gan.Settings((3,), (3,), noise_dim=2, mean_pixel=mean), Images(4, 4, 1, 0), "cpu")
  params = algorithm.init(jax.random.key(0))[0]
  zero = jax.tree.map_with_path(lambda path, p: p if path[-1].key == "bias" else 0 * p, params)
  images = algorithm.generate(zero, {}, algorithm.noise(KEYS), None)
  assert images.shape == (BATCH, 4, 4, 1)
  np.testing.assert_allclose(images, 2 * painted - 1, atol=1e-6)


def test_noise():
  """Uniform in a cube of variance 1, and in the unit cube."""
  keys = jax.random.split(jax.random.key(0), 20_000)
  for name, low, high in (("gan", -np.sqrt(3), np.sqrt(3)), ("cgan", 0, 1)):
    z = ALGORITHMS[name].noise(keys)
    np.testing.assert_allclose((z.min(), z.max()), (low, high), atol=1e-3)
    np.testing.assert_allclose((z.mean(), z.std()), ((low + high) / 2, (high - low) / np.sqrt(12)), atol=0.01)


def test_truncation_ends_at_the_centre_of_the_cube(algorithm):
  labels = jnp.zeros(BATCH, jnp.int32) if algorithm.num_classes else None
  images = algorithm.generate(start(algorithm), {}, algorithm.noise(KEYS), labels, truncation=0.0)
  center = jnp.full((1, 4), 0.5 if algorithm.num_classes else 0.0)
  expected = algorithm.generate(start(algorithm), {}, center, labels if labels is None else labels[:1])
  np.testing.assert_allclose(images, jnp.broadcast_to(expected, images.shape), atol=1e-6)


@pytest.mark.parametrize("algorithm", ALGORITHMS, indirect=True)
def test_an_undecided_discriminator(algorithm):
  """D's loss is ln 2, G's that of 1/2, and G's gradient is zero."""
  params = start(algorithm)
  head = jax.tree.map(jnp.zeros_like, params["discriminator"]["linear"])
  params = {**params, "discriminator": params["discriminator"] | {"linear": head}}
  gradients, _, metrics = gradients_of(algorithm)(params, {}, data(algorithm, BATCH), KEYS, {})
  assert metrics["loss"] == pytest.approx(np.log(2))
  assert metrics["generator_loss"] == pytest.approx(float(generator_loss(algorithm, 0.5)))
  assert not any(leaf.any() for leaf in jax.tree.leaves(gradients["generator"]))
  assert gradients["discriminator"]["linear"]["kernel"].any()


@pytest.mark.parametrize("algorithm", ALGORITHMS, indirect=True)
@pytest.mark.parametrize("network", gan.NETWORKS)
def test_gradients_against_finite_differences(algorithm, network):
  """-log sigmoid by hand, at the parameters from before the phase, with one set of fakes and masks, in float64."""
  with jax.enable_x64(True):
    params, carry, batch = in_float64(algorithm)
    random = np.random.default_rng(3)
    direction = jax.tree.map(lambda p: jnp.asarray(random.standard_normal(p.shape)), params[network])
    z_keys, of_generator, of_real, of_fake = jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, 4))(KEYS), 1, 0)
    pixels, labels = (batch["image"].reshape(BATCH, -1) + 1) / 2, batch.get("label")
    fake_labels = None if labels is None else labels[np.arange(BATCH) ^ 1]

    @jax.jit
    def loss(step):
      moved = {**params, network: jax.tree.map(lambda p, d: p + step * d, params[network], direction)}
      variables = {name: {"params": moved[name]} for name in moved}
      fake = algorithm.generator.apply(variables["generator"], algorithm.noise(z_keys), fake_labels, of_generator)
      a = algorithm.discriminator.apply(variables["discriminator"], pixels, labels, of_real)
      b = algorithm.discriminator.apply(variables["discriminator"], fake, fake_labels, of_fake)
      real, fake = 1 / (1 + jnp.exp(-a)), 1 / (1 + jnp.exp(-b))
      if network == "generator":
        return jnp.mean(generator_loss(algorithm, fake))
      return -jnp.mean(jnp.log(real) + jnp.log(1 - fake)) / 2

    gradients, _, metrics = gradients_of(algorithm)(params, carry, batch, KEYS, {})
    np.testing.assert_allclose(metrics["loss" if network == "discriminator" else "generator_loss"], loss(0.0))
    along = sum(jnp.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (gradients[network], direction)), strict=True))
    np.testing.assert_allclose(along, (loss(1e-7) - loss(-1e-7)) / 2e-7, rtol=1e-5)


@pytest.mark.parametrize("devices, micro_batch", [(8, None), (1, 4), (2, 2)])
def test_how_the_batch_is_divided_does_not_matter(algorithm, devices, micro_batch):
  with jax.enable_x64(True):
    given = in_float64(algorithm)
    whole = gradients_of(algorithm)(*given, KEYS, {})
    golden_cases.assert_trees_close(gradients_of(algorithm, devices, micro_batch)(*given, KEYS, {}), whole, 1e-12)


def test_a_resumed_run_is_an_uninterrupted_one(algorithm, tmp_path):
  """Bitwise, with a checkpoint before each iteration: networks, average and velocities."""

  def resumed(state):
    checkpoints = Checkpoints(tmp_path / str(state.images_seen))
    assert checkpoints.save(state)
    restored = checkpoints.restore_latest(abstract_state(algorithm, mesh_of(1)))
    checkpoints.close()
    return restored

  states = (trained(algorithm, BATCH, 3, interrupted=interruption) for interruption in (lambda state: state, resumed))
  jax.tree.map(np.testing.assert_array_equal, *map(arrays_of, states))


def test_schedules():
  """The learning rate falls by a factor per step of 100 images to a floor; the momentum rises for 250 epochs."""
  for module, factor in ((gan, 1.000004), (cgan, 1.00004)):
    schedules = gan.schedules(module.Settings())
    for step in (0, 1_000, 150_000):
      expected = max(0.1 / factor**step, 1e-6)
      np.testing.assert_allclose(schedules["learning_rate"](100 * step), expected, rtol=1e-4)
    for epoch, momentum in ((0, 0.5), (125, 0.6), (250, 0.7), (1000, 0.7)):
      np.testing.assert_allclose(schedules["momentum"](60_000 * epoch), momentum, rtol=1e-6)
  assert gan.schedules(gan.Settings())["learning_rate"](15_000_000) == pytest.approx(0.0549, abs=5e-5)
  rate = gan.schedules(cgan.Settings())["learning_rate"]
  assert rate(100 * 280_000) > 1.3e-6 and rate(100 * 287_829) == pytest.approx(1e-6, rel=1e-4) == rate(10**9)


def test_maxout():
  """max(x, -x, 3) of each of two inputs, by hand."""
  kernel = jnp.array([[1.0, -1, 0, 0, 0, 0], [0, 0, 0, 1, -1, 0]])
  params = {"linear": {"kernel": kernel, "bias": jnp.array([0.0, 0, 3, 0, 0, 3])}}
  y = Maxout(units=2, pieces=3).apply({"params": params}, jnp.array([[1.0, -4.0], [5.0, 2.0]]))
  np.testing.assert_array_equal(y, [[3, 4], [5, 3]])


def test_dropout_is_of_each_sample_by_itself():
  """Its mean is x; a mask depends on the sample's key and the layer alone; without keys there is none."""
  x = jnp.ones((BATCH, 1000))
  dropped = dropout(x, KEYS, 0, 0.8)
  assert set(np.unique(dropped)) == {np.float32(0), np.float32(1.25)} and dropped.mean() == pytest.approx(1, abs=0.02)
  np.testing.assert_array_equal(dropped[5:7], dropout(x[5:7], KEYS[5:7], 0, 0.8))
  assert (dropped[0] != dropped[1]).any() and (dropped != dropout(x, KEYS, 1, 0.8)).any()
  np.testing.assert_array_equal(dropout(x, None, 0, 0.8), x)


@pytest.mark.parametrize("name, layers", [("gan", (0.8, 0.5, 0.5)), ("cgan", (1, 0.5, 0.5))])
def test_where_dropout_is(name, layers):
  """Before D's layers, and before G's joint layer and output in CGAN."""
  discriminator, generator = ALGORITHMS[name].discriminator, ALGORITHMS[name].generator
  assert (discriminator.keep_pixels, discriminator.keep, discriminator.keep) == layers
  assert generator.keep == (1 if name == "gan" else 0.5)
  params, labels = start(ALGORITHMS[name]), jnp.zeros(BATCH, jnp.int32)
  z = jnp.ones((BATCH, 4))
  painted = generator.apply({"params": params["generator"]}, z, labels, KEYS)
  assert (painted[0] == painted[1]).all() == (name == "gan")
  logits = discriminator.apply({"params": params["discriminator"]}, jnp.ones((BATCH, 16)), labels, KEYS)
  assert len(np.unique(logits)) > BATCH // 2


def without_labels(params, features, joint):
  """Returns parameters of the unconditional network, and those of the conditional one that ignores labels."""
  kernel = params[joint].get("linear", params[joint])["kernel"]
  blind = jnp.where(jnp.arange(len(kernel))[:, None] < features, kernel, 0)

  def replaced(kernel):
    inner = params[joint].get("linear")
    return {**params, joint: {"linear": inner | {"kernel": kernel}} if inner else params[joint] | {"kernel": kernel}}

  unconditional = replaced(kernel[:features])
  return {name: unconditional[name] for name in unconditional if not name.endswith("of_label")}, replaced(blind)


def test_without_weights_of_labels_it_is_gan():
  """Exactly, G and D; so their labels may be permuted."""
  params, labels = start(ALGORITHMS["cgan"]), data(ALGORITHMS["cgan"], BATCH)["label"]
  conditional = ALGORITHMS["cgan"]
  generator, blind_generator = without_labels(params["generator"], 16, "linear_1")
  discriminator, blind_discriminator = without_labels(params["discriminator"], 6, "maxout_1")
  random = np.random.default_rng(0)
  for network, plain, reduced, blind, length in (
    (conditional.generator, Generator((16, 12), 16, 0.1307), generator, blind_generator, 4),
    (conditional.discriminator, Discriminator((6, 5), (5, 4)), discriminator, blind_discriminator, 16),
  ):
    x = jnp.asarray(random.standard_normal((BATCH, length)), jnp.float32)
    expected = plain.apply({"params": reduced}, x, None, None)
    for given in (labels, labels[::-1]):
      np.testing.assert_allclose(network.apply({"params": blind}, x, given, None), expected, atol=1e-6)
  seen = conditional.discriminator.apply({"params": params["discriminator"]}, x, labels, None)
  assert (seen != conditional.discriminator.apply({"params": params["discriminator"]}, x, labels[::-1], None)).any()


def test_labels_of_fakes():
  """They are the batch's, so have the frequencies of the data, but not in its order; a pair is never split."""
  algorithm, labels = ALGORITHMS["cgan"], jnp.array([0, 1, 1, 1, 2, 0], jnp.int32)
  np.testing.assert_array_equal(algorithm.fake_labels({"label": labels}), [1, 0, 1, 1, 0, 2])
  config = cgan_recipe.get_config("smoke")
  config.run.micro_batch.both = 1
  with pytest.raises(UserError, match=re.escape("are not a multiple of cgan's group size 2")):
    factory.build_experiment(config, device_count=1)


def test_impossible_settings():
  with pytest.raises(UserError, match="num_classes = 10: gan takes no classes"):
    gan.build(gan.Settings(), Images(28, 28, 1, 10), "cpu")
  with pytest.raises(UserError, match="num_classes = 0: cgan needs classes"):
    cgan.build(cgan.Settings(), Images(28, 28, 1, 0), "cpu")
  config = cgan_recipe.get_config("smoke")
  for name, value, message in (
    ("mean_pixel", 1.5, "config.gan.mean_pixel = 1.5 must lie between 0 and 1"),
    ("widths", (8, 8, 8), "config.gan.widths = (8, 8, 8): give 2 values"),
    ("momentum", (0.5, 1.0), "config.gan.momentum = (0.5, 1.0): 1.0 must lie from 0 to below 1"),
  ):
    with config.unlocked():
      changed = config.copy_and_resolve_references()
      changed.gan[name] = value
    with pytest.raises(UserError, match=re.escape(message)):
      factory.build_experiment(changed, device_count=1)


def test_the_label_is_needed():
  with pytest.raises(ValueError, match="labels are missing"):
    ALGORITHMS["cgan"].generate(start(ALGORITHMS["cgan"]), {}, jnp.ones((2, 4)), None)


def test_settings_have_one_default_for_both():
  """What the two GANs share."""
  shared = {field.name for field in dataclasses.fields(gan.Settings)}
  shared -= {"widths", "units", "pieces", "decay_images", "saturating"}
  assert all(getattr(gan.Settings(), name) == getattr(cgan.Settings(), name) for name in shared)
