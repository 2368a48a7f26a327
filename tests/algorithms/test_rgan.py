"""Properties of rGAN alone; test_sagan.py has those of its phases, test_zoo.py those of all GANs with state."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.meshes import mesh_of
from helpers.zoo import data

from r3gan_jax.algorithms import rgan
from r3gan_jax.algorithms.base import split_keys
from r3gan_jax.algorithms.capabilities import HasClassifier, HasPictures
from r3gan_jax.algorithms.images import Images
from r3gan_jax.data.relabelled import transition_matrix
from r3gan_jax.errors import UserError
from r3gan_jax.training.step import global_gradients

IMAGES = Images(16, 16, 1, 10)
SETTINGS = rgan.Settings(
  **{"generator_widths": (8, 8, 8), "discriminator_widths": (8, 8), "whole_blocks": 1, "noise_dim": 8},
  label_noise=0.5,
)
BATCH = 8
KEYS = jax.random.split(jax.random.key(1), BATCH)
CIFAR10_PAIRS = ((9, 1), (2, 0), (4, 7), (3, 5), (5, 3))


def built(images=IMAGES, **changes):
  return rgan.build(dataclasses.replace(SETTINGS, **changes), images, "cpu")


RAC, RC = built(), built(form="c")


def gradients_of(phase, algorithm, params, carry, batch):
  phase = {phase.name: phase for phase in algorithm.phases}[phase]
  return jax.jit(global_gradients(phase, mesh_of(1), None))(params, carry, batch, KEYS, {})


def sharded(function, *inputs):
  spec = jax.sharding.PartitionSpec("data")
  return jax.jit(jax.shard_map(function, mesh=mesh_of(1), in_specs=spec, out_specs=spec))(*inputs)


def test_the_loss_of_noisy_labels_by_hand():
  """Logits (2, 0, ..., 0) and label 0, half of the labels redrawn; without noise it is the usual loss to the bit."""
  logits, labels = jnp.eye(10)[:1] * 2, jnp.zeros(1, jnp.int32)
  half = transition_matrix(10, 0.5)
  assert half[3, 3] == pytest.approx(0.55) and half[3, 4] == pytest.approx(0.05)
  np.testing.assert_allclose(rgan.forward_corrected(logits, labels, half), 1.2894, atol=5e-5)
  np.testing.assert_allclose(rgan.forward_corrected(logits, labels, np.eye(10)), 0.7966, atol=5e-5)
  random = jax.random.normal(jax.random.key(0), (20, 10))
  labels = jnp.arange(20) % 10
  clean = optax.softmax_cross_entropy_with_integer_labels(random, labels)
  np.testing.assert_allclose(rgan.forward_corrected(random, labels, np.eye(10)), clean, rtol=1e-5)


def test_labels_that_say_nothing_teach_nothing():
  """If all are redrawn, the loss is ln 10 and has no gradient."""
  logits = jax.random.normal(jax.random.key(0), (4, 10))
  labels = jnp.arange(4)
  loss, gradient = jax.value_and_grad(
    lambda logits: jnp.mean(rgan.forward_corrected(logits, labels, transition_matrix(10, 1.0)))
  )(logits)
  assert loss == pytest.approx(np.log(10), rel=1e-5)
  np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_the_noise_is_that_of_an_asymmetric_matrix():
  """T_ij is p(noisy j | clean i): trucks become cars, and of what is called a car 0.5882 is one. Not transposed."""
  matrix = transition_matrix(10, 0.7, CIFAR10_PAIRS)
  labels = jnp.arange(10_000) % 10
  noisy = rgan.noisy_labels(labels, matrix, jax.random.split(jax.random.key(0), 10_000))
  found = np.zeros((10, 10))
  np.add.at(found, (np.asarray(labels), np.asarray(noisy)), 1 / 1000)
  np.testing.assert_allclose(found, matrix, atol=0.05)
  assert found[9, 1] > 0.6 and found[1, 9] == 0
  assert found[1, 1] / found[:, 1].sum() == pytest.approx(0.5882, abs=0.02)
  gradient = jax.grad(lambda logits: jnp.sum(rgan.forward_corrected(logits, jnp.array([1]), matrix)))(
    jnp.zeros((1, 10))
  )
  assert gradient[0, 1] < 0 and gradient[0, 9] < 0 and (np.delete(gradient[0], [1, 9]) > 0).all()


@pytest.mark.parametrize("network", rgan.PHASES)
def test_losses_of_rac_gan_by_hand(network):
  """D: hinge, and noisy labels of reals through T; G: its classes are clean, with the weight 0.1."""
  params, carry = RAC.init(jax.random.key(0))
  batch = data(RAC, BATCH)
  _, _, metrics = gradients_of(network, RAC, params, carry, batch)
  if network == "discriminator":
    drawing_keys, real_keys = split_keys(KEYS, 2)
  else:
    drawing_keys = split_keys(KEYS, 2).reshape(-1)

  def local(keys):
    fake, labels, _ = RAC._fakes(params["generator"], carry, keys)
    return *RAC._judge(params["discriminator"], carry)(fake, None), labels

  b, classes, labels = sharded(local, drawing_keys)
  if network == "generator":
    assert len(b) == 2 * BATCH
    of_classes = -jnp.mean(jnp.log(jax.nn.softmax(classes)[jnp.arange(2 * BATCH), labels]))
    np.testing.assert_allclose(metrics["loss"], -jnp.mean(b) + 0.1 * of_classes, rtol=1e-4)
    return
  real = RAC._real(batch, real_keys)
  a, classes = RAC._judge(params["discriminator"], carry)(real, None)
  probabilities = np.asarray(jax.nn.softmax(classes), np.float64) @ transition_matrix(10, 0.5)
  of_classes = -np.mean(np.log(probabilities[np.arange(BATCH), batch["label"]]))
  np.testing.assert_allclose(metrics["class_loss"], of_classes, rtol=1e-5)
  hinge = jnp.mean(jnp.maximum(0, 1 - a)) + jnp.mean(jnp.maximum(0, 1 + b))
  np.testing.assert_allclose(metrics["loss"], hinge + of_classes, rtol=1e-5)


def test_fakes_of_rc_gan_reach_d_with_noisy_labels():
  """G draws the clean class: labels differ from it as often as T says; without noise they are those of a cGAN."""
  params, carry = RC.init(jax.random.key(0))
  keys = jax.random.split(jax.random.key(3), 2000)

  def drawn(algorithm):
    def local(keys):
      _, noisy, _ = algorithm._fakes(params["generator"], carry, keys)
      _, clean, _ = super(rgan.RCGAN, algorithm)._fakes(params["generator"], carry, split_keys(keys, 2)[0])
      return noisy, clean

    return sharded(local, keys)

  noisy, clean = drawn(RC)
  assert np.mean(noisy == clean) == pytest.approx(0.55, abs=0.04)
  assert np.corrcoef(noisy, clean)[0, 1] == pytest.approx(0.5, abs=0.06)
  np.testing.assert_array_equal(*drawn(built(form="c", label_noise=0.0)))


def test_networks():
  """G has no spectral norm, nor has C; rcGAN's last layer has no bias, and its table is normalised."""
  for algorithm, classes in ((RAC, "classes"), (RC, "class_table")):
    params, carry = algorithm.init(jax.random.key(0))
    assert set(carry) == {"generator_moments", "discriminator_vectors"}
    assert classes in params["discriminator"]
    assert ("class_table" in carry["discriminator_vectors"]) == (algorithm is RC)
    assert ("bias" in params["discriminator"]["linear"]) == (algorithm is RAC)
    assert "classes" not in carry["discriminator_vectors"]


def test_reals_are_noisy_by_one_level():
  """Values of neighbouring bytes do not meet, and each image has noise of its own."""
  image = np.zeros((BATCH, 16, 16, 1), np.uint8)
  real = np.asarray(RAC._real({"image": image}, KEYS))
  assert real.min() >= -1 and real.max() <= -1 + 1 / 128 and real.std() == pytest.approx(1 / 128 / 12**0.5, rel=0.05)
  assert len({row.tobytes() for row in real}) == BATCH


def test_rates_fall_to_zero():
  schedules = built(decay_images=1000).schedules
  for network in rgan.PHASES:
    rates = [float(schedules[f"{network}_learning_rate"](images)) for images in (0, 500, 1000, 2000)]
    np.testing.assert_allclose(rates, [2e-4, 1e-4, 0, 0], atol=1e-12)


def test_only_rac_gan_classifies():
  params, carry = RAC.init(jax.random.key(0))
  images = jnp.asarray(data(RAC, 4)["image"] / np.float32(127.5) - 1)
  logits = RAC.classify(params, carry, images)
  assert logits.shape == (4, 10) and isinstance(RAC, HasClassifier) and not isinstance(RC, HasClassifier)
  np.testing.assert_allclose(logits[1:2], RAC.classify(params, carry, images[1:2]), atol=1e-5)


@pytest.mark.parametrize("algorithm", [RAC, RC], ids=["rac", "rc"])
def test_pictures_show_clean_classes_beside_noisy_ones(algorithm):
  """Without noise all of a row are of one class."""
  assert isinstance(algorithm, HasPictures)
  params, carry = algorithm.init(jax.random.key(0))
  params["generator"] = jax.tree.map(lambda leaf: leaf + 0.1, params["generator"])
  (picture,) = jax.jit(algorithm.pictures)(params, carry, jnp.zeros((12, 16, 16, 1))).values()
  assert picture.shape == (12, 16, 4 * 16, 1)
  noise = algorithm.noise(jax.random.split(jax.random.key(1), 12))
  clean = algorithm.generate(params, carry, noise, jnp.arange(12, dtype=jnp.int32) % 10)
  np.testing.assert_allclose(picture[:, :, :16], clean, atol=1e-5)


@pytest.mark.parametrize(
  "changes, images, wrong",
  [
    ({}, Images(16, 16, 1, 0), r"config\.data\.num_classes = 0: rgan is conditional"),
    ({"label_noise_pairs": ((9, 10),)}, IMAGES, r"config\.gan\.label_noise_pairs: \(9, 10\) must be"),
    ({"label_noise": 1.5}, IMAGES, r"config\.gan\.label_noise = 1\.5 must lie"),
  ],
)
def test_settings_that_do_not_fit_are_refused(changes, images, wrong):
  with pytest.raises(UserError, match=wrong):
    built(images, **changes)
