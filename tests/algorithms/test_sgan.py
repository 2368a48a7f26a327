"""Properties of SGAN alone; test_zoo.py has those of all GANs with batch norm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import golden_cases
from helpers.meshes import mesh_of
from helpers.zoo import data

from configs.zoo import sgan as recipe
from r3gan_jax import factory
from r3gan_jax.algorithms import sgan
from r3gan_jax.algorithms.images import Images
from r3gan_jax.errors import UserError
from r3gan_jax.training.state import abstract_batches
from r3gan_jax.training.step import global_gradients

SETTINGS = sgan.Settings(widths=(8, 8), noise_dim=8)
IMAGES = Images(16, 16, 1, 10)
BATCH = 16
LABELS = {
  "of some": np.array([3, -1, 9, -1, -1, -1, 0, -1, -1, -1, -1, 7, -1, -1, -1, -1], np.int32),
  "of all": np.arange(BATCH, dtype=np.int32) % 10,
  "of none": np.full(BATCH, -1, np.int32),
}


def built(**changes):
  return sgan.build(sgan.Settings(widths=(8, 8), noise_dim=8, **changes), IMAGES, "cpu")


ALGORITHM = built()


@pytest.fixture(scope="module")
def start():
  return jax.jit(lambda: ALGORITHM.init(jax.random.key(0)))()


def batch_of(labels):
  return data(ALGORITHM, BATCH) | {"label": LABELS[labels]}


def gradients_of(phase, params, carry, batch, algorithm=ALGORITHM, devices=1):
  keys = jax.random.split(jax.random.key(1), BATCH)
  phase = {phase.name: phase for phase in algorithm.phases}[phase]
  return jax.jit(global_gradients(phase, mesh_of(devices), None))(params, carry, batch, keys, {})


def with_head(params, kernel, bias):
  """Returns parameters whose D has this last layer."""
  head = {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}
  return {**params, "discriminator": params["discriminator"] | {"classes": head}}


def in_float64(start, labels):
  params, carry = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), start)
  return params, carry, {"image": jnp.asarray(batch_of(labels)["image"] / 127.5 - 1), "label": LABELS[labels]}


@pytest.mark.parametrize("labels", LABELS)
def test_gradients_of_8_devices_are_those_of_one(start, labels):
  """Computed in float64, although devices have different numbers of labels."""
  with jax.enable_x64(True):
    for phase in sgan.PHASES:
      one, eight = (gradients_of(phase, *in_float64(start, labels), devices=n) for n in (1, 8))
      golden_cases.assert_trees_close(eight, one, 1e-8)


@pytest.mark.parametrize("labels, labelled, unlabelled", [("of some", 1, 1), ("of all", 1, 0), ("of none", 0, 1)])
def test_an_undecided_discriminator(start, labels, labelled, unlabelled):
  """With zero logits each of the 11 classes has the same probability; a term without images is 0."""
  params = with_head(start[0], np.zeros((128, 10)), np.zeros(10))
  _, _, metrics = gradients_of("discriminator", params, start[1], batch_of(labels))
  assert metrics["labelled_loss"] == pytest.approx(2.397895 * labelled, abs=1e-6)
  assert metrics["unlabelled_loss"] == pytest.approx(0.095310 * unlabelled, abs=1e-6)
  assert metrics["fake_loss"] == pytest.approx(2.397895, abs=1e-6)
  assert metrics["loss"] == metrics["labelled_loss"] + metrics["unlabelled_loss"] + metrics["fake_loss"]
  _, _, metrics = gradients_of("generator", params, start[1], batch_of(labels))
  assert metrics["loss"] == pytest.approx(0.095310, abs=1e-6)


def probabilities(algorithm, params, carry, images):
  """Returns the log-probabilities of K classes and of "fake", by a softmax over K + 1 logits that are shifted."""
  spec = jax.sharding.PartitionSpec("data")

  def local(images):
    variables = {"params": params["discriminator"], "moments": carry["discriminator_moments"]}
    return algorithm.discriminator.apply(variables, images, train=True, mutable=["moments"])[0]

  logits = jax.jit(jax.shard_map(local, mesh=mesh_of(1), in_specs=spec, out_specs=spec))(images)
  return jax.nn.log_softmax(jnp.concatenate([logits, jnp.zeros((len(images), 1))], axis=1) + 5.0)


def test_losses_are_those_of_a_softmax_over_all_classes_and_fake(start):
  """By hand in float64, each a mean over its own kind; the share of labels does not matter."""
  random = np.random.default_rng(0)
  with jax.enable_x64(True):
    params, carry, batch = in_float64(start, "of some")
    params = jax.tree.map(lambda p: p + 0.1 * random.standard_normal(p.shape), params)
    keys = jax.random.split(jax.random.key(1), BATCH)
    spec = jax.sharding.PartitionSpec("data")
    generate = jax.jit(
      jax.shard_map(
        lambda keys: ALGORITHM._generate(params["generator"], carry, keys)[0],
        mesh=mesh_of(1),
        in_specs=spec,
        out_specs=spec,
      )
    )
    of_reals, of_fakes = (probabilities(ALGORITHM, params, carry, x) for x in (batch["image"], generate(keys)))
    labelled = LABELS["of some"] >= 0
    real = jnp.log(-jnp.expm1(of_reals[:, 10]))  # of not being fake
    expected = {
      "labelled_loss": -jnp.mean(of_reals[labelled, LABELS["of some"][labelled]]),
      "unlabelled_loss": -jnp.mean(real[~labelled]),
      "fake_loss": -jnp.mean(of_fakes[:, 10]),
    }
    _, _, metrics = gradients_of("discriminator", params, carry, batch)
    for name, value in expected.items():
      np.testing.assert_allclose(metrics[name], value, rtol=1e-10)
    of_g = {
      saturating: gradients_of("generator", params, carry, batch, built(saturating=saturating))[2]["loss"]
      for saturating in (False, True)
    }
    np.testing.assert_allclose(of_g[False], -jnp.mean(jnp.log(-jnp.expm1(of_fakes[:, 10]))), rtol=1e-10)
    np.testing.assert_allclose(of_g[True], jnp.mean(of_fakes[:, 10]), rtol=1e-10)


def test_the_paper_s_discriminator_ignores_unlabelled_reals(start):
  """But for their part in batch norm's moments."""
  silent = built(unlabelled=False)
  labelled = {name: gradients_of("discriminator", *start, batch_of(name), silent) for name in LABELS}
  metrics = labelled["of some"][2]
  assert metrics["unlabelled_loss"] > 0 and metrics["loss"] == metrics["labelled_loss"] + metrics["fake_loss"]
  all_of_them = gradients_of("discriminator", *start, batch_of("of all"))
  jax.tree.map(np.testing.assert_array_equal, labelled["of all"], all_of_them)
  none = gradients_of("discriminator", *start, batch_of("of none"))
  assert not np.array_equal(
    none[0]["discriminator"]["classes"]["bias"], labelled["of none"][0]["discriminator"]["classes"]["bias"]
  )


def test_a_discriminator_without_a_generator(start):
  """It learns from labelled images alone, whatever G does."""
  alone = built(unlabelled=False, fakes=False)
  other = {**start[0], "generator": jax.tree.map(lambda p: 2 * p, start[0]["generator"])}
  found = [gradients_of("discriminator", p, start[1], batch_of("of some"), alone) for p in (start[0], other)]
  assert found[0][2]["fake_loss"] != found[1][2]["fake_loss"]
  assert found[0][2]["loss"] == found[0][2]["labelled_loss"]
  jax.tree.map(np.testing.assert_array_equal, found[0][0], found[1][0])


def test_the_running_error_follows_labelled_images(start):
  """D says 3 of everything: it is wrong for three of four labels; a batch without labels changes nothing."""
  params = with_head(start[0], np.zeros((128, 10)), np.eye(10)[3])
  assert start[1]["classification_error"] == pytest.approx(0.9), "at chance"
  for labels, error in (("of some", 0.9 + 0.01 * (0.75 - 0.9)), ("of none", 0.9)):
    for devices in (1, 8):
      _, carry, metrics = gradients_of("discriminator", params, start[1], batch_of(labels), devices=devices)
      assert metrics["classification_error"] == pytest.approx(error) == carry["classification_error"]


def test_classes_of_images(start):
  """By running moments, so that an image's class is its own; "fake" is never the answer."""
  images = jnp.asarray(data(ALGORITHM, 6)["image"] / np.float32(127.5) - 1)
  logits = ALGORITHM.classify(*start, images)
  assert logits.shape == (6, 10)
  np.testing.assert_allclose(logits[2:3], ALGORITHM.classify(*start, images[2:3]), atol=1e-6)
  moments = jax.tree.map(lambda x: x + 1, start[1]["discriminator_moments"])
  other = ALGORITHM.classify(start[0], {**start[1], "discriminator_moments": moments}, images)
  assert np.abs(other - logits).max() > 1e-3


def test_samples_are_unconditional_but_batches_have_labels():
  config = recipe.get_config("smoke")
  experiment = factory.build_experiment(config, device_count=1)
  assert experiment.algorithm.num_classes == 0 and config.data.labelled_images == 10
  assert all(
    set(batch) == {"image", "label"}
    for batch in abstract_batches(experiment.algorithm, mesh_of(1), experiment.batch_sizes)
  )


@pytest.mark.parametrize(
  "images, wrong",
  [
    (Images(16, 16, 1, 0), r"config\.data\.num_classes = 0: sgan learns to classify"),
    (Images(32, 32, 1, 10), r"config\.gan\.widths = \(8, 8\) has 2 entries.* need 3"),
  ],
)
def test_images_that_do_not_fit_are_refused(images, wrong):
  with pytest.raises(UserError, match=wrong):
    sgan.build(SETTINGS, images, "cpu")
