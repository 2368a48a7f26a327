"""Properties of AC-GAN alone; test_zoo.py has those of all GANs with batch norm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import golden_cases
from helpers.meshes import mesh_of
from helpers.zoo import data

from r3gan_jax.algorithms import acgan, dcgan
from r3gan_jax.algorithms.base import split_keys
from r3gan_jax.algorithms.images import Images
from r3gan_jax.errors import UserError
from r3gan_jax.networks.acgan import Discriminator
from r3gan_jax.training.step import global_gradients

IMAGES = Images(16, 16, 3, 10)
BATCH = 16
OWN = acgan.Settings("own", (8, 8), (8, 8, 8, 8), noise_dim=8)
OF_DCGAN = acgan.Settings("dcgan", (8, 8), (8, 8), dropout=0.0, noise_dim=8)
ALGORITHM = acgan.build(OF_DCGAN, IMAGES, "cpu")
KEYS = jax.random.split(jax.random.key(1), BATCH)


@pytest.fixture(scope="module")
def start():
  return jax.jit(lambda: ALGORITHM.init(jax.random.key(0)))()


def gradients_of(phase, params, carry, batch, algorithm=ALGORITHM, devices=1):
  phase = {phase.name: phase for phase in algorithm.phases}[phase]
  return jax.jit(global_gradients(phase, mesh_of(devices), None))(params, carry, batch, KEYS, {})


def in_float64(start):
  """Returns the arguments of `gradients_of`."""
  batch = data(ALGORITHM, BATCH)
  params, carry = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), start)
  return params, carry, {"image": jnp.asarray(batch["image"] / 127.5 - 1), "label": batch["label"]}


def sharded(function, *inputs):
  """Applies a function that takes means over the devices' axis on one device."""
  spec = jax.sharding.PartitionSpec("data")
  return jax.jit(jax.shard_map(function, mesh=mesh_of(1), in_specs=spec, out_specs=spec))(*inputs)


@pytest.mark.parametrize("settings", [OWN, OF_DCGAN], ids=lambda settings: settings.networks)
def test_gradients_of_8_devices_are_those_of_one(settings):
  """Computed in float64, dropout included, which has a key for each sample."""
  algorithm = acgan.build(settings, IMAGES, "cpu")
  start = jax.jit(lambda: algorithm.init(jax.random.key(0)))()
  with jax.enable_x64(True):
    given = in_float64(start)
    for phase in acgan.PHASES:
      one, eight = (gradients_of(phase, *given, algorithm, devices=n) for n in (1, 8))
      golden_cases.assert_trees_close(eight, one, 1e-8)


def test_an_undecided_discriminator(start):
  """With zero logits, D(x) costs 2 ln 2 and each class ln 10, and nothing reaches G."""
  heads = {name: jax.tree.map(jnp.zeros_like, start[0]["discriminator"][name]) for name in ("linear", "classes")}
  params = {**start[0], "discriminator": start[0]["discriminator"] | heads}
  _, _, metrics = gradients_of("discriminator", params, start[1], data(ALGORITHM, BATCH))
  assert metrics["real_class_loss"] == pytest.approx(np.log(10)) == metrics["fake_class_loss"]
  assert metrics["loss"] == pytest.approx(2 * np.log(2) + 2 * np.log(10))
  gradients, _, metrics = gradients_of("generator", params, start[1], data(ALGORITHM, BATCH))
  assert metrics["class_loss"] == pytest.approx(np.log(10))
  assert metrics["loss"] == pytest.approx(np.log(2) + np.log(10))
  assert not any(leaf.any() for leaf in jax.tree.leaves(gradients["generator"]))


@pytest.mark.parametrize("network", ["discriminator", "generator"])
def test_gradients_against_the_losses_by_hand(start, network):
  """In float64, with the weight of classes 0.3."""
  random = np.random.default_rng(0)
  algorithm = acgan.build(acgan.Settings(**{**vars(OF_DCGAN), "class_weight": 0.3}), IMAGES, "cpu")
  with jax.enable_x64(True):
    params, carry, batch = in_float64(start)
    params = jax.tree.map(lambda p: p + 0.1 * random.standard_normal(p.shape), params)
    drawing_keys = split_keys(KEYS, {"discriminator": 3, "generator": 2}[network])[0]

    @jax.jit
    def expected(of_network):
      moved = {**params, network: of_network}

      def local(image, drawing_keys):
        def judge(x):
          variables = {"params": moved["discriminator"], "moments": carry["discriminator_moments"]}
          logits, classes = algorithm.discriminator.apply(variables, x, train=True, mutable=["moments"])[0]
          return logits[:, None], classes

        fake, fake_labels, _ = algorithm._fakes(moved["generator"], carry, drawing_keys)
        return *judge(image), *judge(fake), fake_labels

      a, real_classes, b, fake_classes, fake_labels = sharded(local, batch["image"], drawing_keys)

      def of_classes(logits, labels):
        return -jnp.mean(jnp.log(jax.nn.softmax(logits)[jnp.arange(BATCH), labels]))

      of_fakes = 0.3 * of_classes(fake_classes, fake_labels)
      if network == "generator":
        return -jnp.mean(jnp.log(jax.nn.sigmoid(b))) + of_fakes
      adversarial = -jnp.mean(jnp.log(jax.nn.sigmoid(a))) - jnp.mean(jnp.log(jax.nn.sigmoid(-b)))
      return adversarial + of_fakes + 0.3 * of_classes(real_classes, batch["label"])

    gradients, _, metrics = gradients_of(network, params, carry, batch, algorithm)
    loss, by_hand = jax.value_and_grad(expected)(params[network])
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-10)
    golden_cases.assert_trees_close(gradients[network], by_hand, 1e-8)


def test_without_the_weight_of_classes_d_is_dcgan_s(start):
  """Its gradients, given the same fakes, but for the head of the classes, which has none."""
  unweighted = acgan.build(acgan.Settings(**{**vars(OF_DCGAN), "class_weight": 0.0}), IMAGES, "cpu")
  settings = dcgan.Settings(widths=(8, 8), kernel_size=4, noise_dim=8, l2=0.0)
  plain = dcgan.build(settings, Images(16, 16, 3, 0), "cpu")

  class SameFakes(dcgan.DCGAN):
    def _generate(self, generator, carry, keys):
      images, _, moments = ALGORITHM._fakes(generator, carry, split_keys(keys, 3)[0])
      return images, moments

  plain = SameFakes(**{name: getattr(plain, name) for name in plain.__dataclass_fields__})
  batch = data(ALGORITHM, BATCH)
  gradients, _, _ = gradients_of("discriminator", *start, batch, unweighted)
  of_network = dict(gradients["discriminator"])
  assert not any(leaf.any() for leaf in jax.tree.leaves(of_network.pop("classes")))
  without = {name: value for name, value in start[0]["discriminator"].items() if name != "classes"}
  expected, _, _ = gradients_of("discriminator", {**start[0], "discriminator": without}, start[1], batch, plain)
  golden_cases.assert_trees_close(of_network, expected["discriminator"], 1e-6)


def test_classes_of_fakes_are_drawn_a_sample_and_uniform(start):
  keys = jax.random.split(jax.random.key(3), 2000)
  images, labels, _ = sharded(lambda keys: (*ALGORITHM._fakes(start[0]["generator"], start[1], keys)[:2], keys), keys)
  assert np.abs(np.bincount(labels, minlength=10) / 2000 - 0.1).max() < 0.025
  np.testing.assert_array_equal(
    labels[5:7], sharded(lambda keys: ALGORITHM._fakes(start[0]["generator"], start[1], keys)[1], keys[5:7])
  )
  assert images.shape == (2000, 16, 16, 3)


def test_samples_are_of_the_class_asked_for(start):
  """G's input is z and the one-hot class; truncation changes z alone."""
  noise = ALGORITHM.noise(KEYS[:3])
  labels = jnp.array([0, 4, 9], jnp.int32)
  by_hand = jnp.concatenate([noise, jnp.eye(10)[labels]], axis=1)
  variables = {"params": start[0]["generator"], "moments": start[1]["generator_moments"]}
  images = ALGORITHM.generate(*start, noise, labels)
  np.testing.assert_array_equal(images, ALGORITHM.generator.apply(variables, by_hand, train=False))
  assert np.abs(images - ALGORITHM.generate(*start, noise, (labels + 1) % 10)).max() > 1e-5
  typical = ALGORITHM.generate(*start, noise, jnp.array([2, 2, 3], jnp.int32), 0.0)
  np.testing.assert_allclose(typical[0], typical[1], atol=1e-6)
  assert np.abs(typical[0] - typical[2]).max() > 1e-5
  with pytest.raises(ValueError, match="labels are missing"):
    ALGORITHM.generate(*start, noise, None)


def test_dropout_halves_the_features_of_each_sample_by_its_own_key():
  """In a network of one layer of which all features are 1: kept ones double, and a sample's do not depend on others."""
  network = Discriminator((64, 64), "data", 10, dropout=0.5)
  images = jnp.ones((4, 8, 8, 1))
  variables = network.init(jax.random.key(0), images, train=False)
  keys = jax.random.split(jax.random.key(1), 4)

  def features(keys, rows=slice(None)):
    """Returns what the heads see, by heads that are the identity."""
    params = {**variables["params"], "norm_of_conv_4": {"scale": jnp.zeros(64), "bias": jnp.ones(64)}}
    heads = Discriminator((64, 64), "data", 1024, dropout=0.5)
    params["classes"] = {"kernel": jnp.eye(1024), "bias": jnp.zeros(1024)}
    given = {"params": params, "moments": variables["moments"]}
    return heads.apply(given, images[rows], keys, train=False)[1]

  dropped = features(keys)
  assert set(np.unique(dropped)) == {0.0, 2.0}
  assert np.abs((dropped > 0).mean(axis=1) - 0.5).max() < 0.08
  assert len({row.tobytes() for row in np.asarray(dropped)}) == 4
  np.testing.assert_array_equal(dropped[2:3], features(keys[2:3], slice(2, 3)))
  np.testing.assert_array_equal(features(None), np.ones((4, 1024)))


@pytest.mark.parametrize(
  "changes, images, wrong",
  [
    ({}, Images(16, 16, 3, 0), r"config\.data\.num_classes = 0: acgan is conditional"),
    ({}, Images(32, 32, 3, 10), r"config\.gan\.generator_widths = \(8, 8\) has 2 entries.* need 3"),
    ({"discriminator_widths": (8, 8)}, IMAGES, r"discriminator_widths = \(8, 8\) has 2 entries.* 'own' need 4"),
    (
      {"networks": "dcgan", "discriminator_widths": (8, 8)},
      IMAGES,
      r"config\.gan\.dropout = 0\.5: config\.gan\.networks = 'dcgan' have none: set it to 0",
    ),
  ],
)
def test_settings_that_do_not_fit_are_refused(changes, images, wrong):
  with pytest.raises(UserError, match=wrong):
    acgan.build(acgan.Settings(**{**vars(OWN), **changes}), images, "cpu")
