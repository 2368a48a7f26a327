"""Properties of every GAN with state besides parameters; a new one is a line of `ALGORITHMS`."""

import dataclasses
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import golden_cases
from helpers.meshes import mesh_of
from helpers.states import arrays_of
from helpers.zoo import trained

from r3gan_jax import factory
from r3gan_jax.algorithms import (
  acgan,
  autogan,
  began,
  bigan,
  biggan,
  dcgan,
  ebgan,
  infogan,
  msggan,
  progan,
  rgan,
  sagan,
  sgan,
  stylegan,
  wgan_gp,
  ylg,
)
from r3gan_jax.algorithms.capabilities import HasBoundedNoise
from r3gan_jax.algorithms.images import Images
from r3gan_jax.errors import UserError
from r3gan_jax.sampling import Sampler, noise_path
from r3gan_jax.training.checkpoint import Checkpoints
from r3gan_jax.training.state import abstract_state, averaged
from r3gan_jax.training.transfer import transferred_state

BATCH = 16
OF_CONVOLUTIONS = {"widths": (8, 8), "noise_dim": 8, "ema_half_life": 32.0}
OF_RESNETS = {
  **{"generator_widths": (8, 8, 8), "discriminator_widths": (8, 8), "whole_blocks": 1, "attention_side": 8},
  **{"noise_dim": 8, "discriminator_updates": 2, "ema_half_life": 32.0},
}
OF_AUTOGAN = {
  **{"generator_width": 8, "discriminator_width": 8},
  **{"noise_dim": 8, "discriminator_updates": 2, "ema_half_life": 32.0},
}
OF_YLG = OF_RESNETS | {"generator_widths": (8, 64, 8), "discriminator_widths": (64, 8)}
OF_RGAN = OF_RESNETS | {"attention_side": 0, "label_noise": 0.5}
OF_KARRAS = {"widths": (8, 8, 8), "noise_dim": 8, "stddev_group": 2, "ema_half_life": 32.0}
GROWING = {"hold_images": 8, "ramp_images": 16}  # the first fade begins between the two iterations
ALGORITHMS = {
  "acgan": (acgan, acgan.Settings("own", (8, 8), (8, 8, 8, 8), noise_dim=8, ema_half_life=32.0)),
  "autogan": (autogan, autogan.Settings(**OF_AUTOGAN)),
  "began": (began, began.Settings(width=4, noise_dim=8, ema_half_life=32.0)),
  "bigan": (bigan, bigan.Settings(width=16, noise_dim=8, ema_half_life=32.0)),
  "biggan": (biggan, biggan.Settings(**OF_RESNETS | {"noise_dim": 12}, embed_dim=4)),
  "dcgan": (dcgan, dcgan.Settings(**OF_CONVOLUTIONS, kernel_size=4)),
  "ebgan": (ebgan, ebgan.Settings((8, 8), (8, 8), noise_dim=8, margin=10.0, ema_half_life=32.0)),
  "infogan": (infogan, infogan.Settings((8, 8), 16, 8, noise_dim=8, ema_half_life=32.0)),
  "msggan": (msggan, msggan.Settings(**OF_KARRAS, optimizer="adam")),  # first steps of RMSprop are 10 times as large
  "progan": (progan, progan.Settings(**OF_KARRAS, **GROWING, penalty_norm=1.0)),
  "rgan": (rgan, rgan.Settings(**OF_RGAN)),
  "sagan": (sagan, sagan.Settings(**OF_RESNETS)),
  "sgan": (sgan, sgan.Settings(**OF_CONVOLUTIONS)),
  "stylegan": (stylegan, stylegan.Settings(**OF_KARRAS, **GROWING)),
  "wgan_gp": (wgan_gp, wgan_gp.Settings(**OF_CONVOLUTIONS, critic_updates=2)),
  "ylg": (ylg, ylg.Settings(**OF_YLG)),
}
BIASED = ("autogan", "biggan", "ebgan", "infogan", "rgan", "sagan", "ylg")  # before batch norm
CLASSES = {"acgan": 3, "biggan": 3, "rgan": 3, "sagan": 3, "sgan": 3}  # of the data
WITH_OR_WITHOUT_CLASSES = ("biggan", "sagan", "ylg")
NEAR_A_SPHERE = ("autogan", "biggan", "msggan", "progan", "rgan", "sagan", "stylegan", "wgan_gp", "ylg")  # noise


@pytest.fixture(scope="module", params=ALGORITHMS)
def case(request):
  """(name, algorithm, state after two iterations on one device)."""
  algorithm = built(request.param)
  return request.param, algorithm, trained(algorithm, BATCH, iterations=2)


def built(name, **changes):
  module, settings = ALGORITHMS[name]
  return module.build(dataclasses.replace(settings, **changes), Images(16, 16, 1, CLASSES.get(name, 0)), "cpu")


def test_how_the_batch_is_divided_does_not_matter(case):
  """1 and 8 devices agree up to the order of summation, which Adam amplifies.

  Biases before batch norm have no effect: all of their gradient is rounding errors.
  """
  name, algorithm, state = case
  divided = trained(algorithm, BATCH, iterations=2, devices=8)
  for tree, expected in ((divided.params, state.params), (divided.ema, state.ema), (divided.carry, state.carry)):
    assert golden_cases.relative_errors(tree, expected)["all"] < (1e-3 if name in BIASED else 1e-4)


def test_an_image_of_the_average_is_its_own(case):
  """It does not depend on the batch, and is normalised by the averaged moments."""
  _, algorithm, state = case
  params, carry = averaged(algorithm, state)
  generate = jax.jit(lambda carry, noise, labels: algorithm.generate(params, carry, noise, labels))
  noise = algorithm.noise(jax.random.split(jax.random.key(5), 8))
  labels = jnp.arange(8) % algorithm.num_classes if algorithm.num_classes else None
  together = generate(carry, noise, labels)
  alone = jnp.concatenate(
    [generate(carry, noise[i : i + 1], None if labels is None else labels[i : i + 1]) for i in range(8)]
  )
  np.testing.assert_allclose(together, alone, atol=1e-4 * np.abs(together).max())
  if "generator_moments" in carry:
    assert np.abs(together - generate(state.carry, noise, labels)).max() > 1e-2 * np.abs(together).max(), (
      "by G's own moments"
    )
  sampler = Sampler(algorithm, mesh_of(1), batch_per_device=4)
  np.testing.assert_array_equal(sampler(params, carry, np.arange(9))[8:], sampler(params, carry, np.array([8])))


def recipe(name):
  """Returns the GAN's smoke recipe."""
  return importlib.import_module(f"configs.zoo.{name}").get_config("smoke")


@pytest.mark.parametrize("name", ["cgan", "gan", *ALGORITHMS])
def test_ways_between_samples_stay_where_noise_is(name):
  """In the box of noise that has one, a mixture of InfoGAN's categories, and else near the sphere of N(0, 1)."""
  algorithm = factory.build_algorithm(recipe(name))
  noise = np.asarray(algorithm.noise(jax.random.split(jax.random.key(0), 64)))
  way = noise_path(algorithm, noise, 5)
  np.testing.assert_array_equal(way[::5], noise)
  assert isinstance(algorithm, HasBoundedNoise) == (name not in NEAR_A_SPHERE)
  if name in NEAR_A_SPHERE:
    lengths = np.linalg.norm(way, axis=1)
    assert lengths.min() > 0.95 * np.linalg.norm(noise, axis=1).min()
    return
  lowest, highest = algorithm.noise_bounds
  assert (way >= lowest).all() and (way <= highest).all()
  np.testing.assert_allclose(way[2], 0.6 * noise[0] + 0.4 * noise[1], atol=1e-6)
  # The box is not larger than the noise, of which 64 samples are.
  np.testing.assert_allclose(noise.min(axis=0), lowest, atol=0.3 * highest.max())
  np.testing.assert_allclose(noise.max(axis=0), highest, atol=0.3 * highest.max())
  if name == "infogan":
    first = algorithm.noise_dim - algorithm.continuous_codes - algorithm.categories
    np.testing.assert_allclose(way[:, first : first + algorithm.categories].sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("name", ["cgan", "gan", *sorted(ALGORITHMS.keys() - WITH_OR_WITHOUT_CLASSES)])
def test_classes_where_a_gan_takes_none_or_none_where_it_does_are_refused(name):
  config = recipe(name)
  config.data.num_classes = 0 if config.data.num_classes else 10
  with pytest.raises(UserError, match=rf"^config\.data\.num_classes = {config.data.num_classes}: {name} "):
    factory.build_algorithm(config)


def test_micro_batches_that_divide_what_is_coupled_are_refused_by_name(case):
  name, algorithm, _ = case
  for phase in algorithm.phases:
    config = recipe(name)
    config.run.micro_batch[phase.name] = 2
    wrong = rf" = 2: {name} needs whole batches" if phase.group is None else rf": 2 images .*{name}'s group size 4"
    with pytest.raises(UserError, match=rf"config\.run\.micro_batch\.{phase.name}{wrong}"):
      factory.build_experiment(config, device_count=1)


def test_a_resumed_run_is_an_uninterrupted_one(case, tmp_path):
  """Bitwise, with a checkpoint after each iteration: networks, moments, averages and optimisers."""
  _, algorithm, state = case

  def resumed(state):
    checkpoints = Checkpoints(tmp_path / str(state.images_seen))
    assert checkpoints.save(state)
    restored = checkpoints.restore_latest(abstract_state(algorithm, mesh_of(1)))
    checkpoints.close()
    return restored

  jax.tree.map(np.testing.assert_array_equal, *map(arrays_of, (state, trained(algorithm, BATCH, 2, 1, resumed))))


def test_a_run_begun_with_another_one_takes_its_state_along(case):
  """Moments and averages as well as parameters; if sizes differ, those that fit."""
  name, algorithm, state = case
  start, _ = transferred_state(algorithm, 1, mesh_of(1), algorithm, state)
  for part in ("params", "carry", "ema"):
    jax.tree.map(np.testing.assert_array_equal, getattr(start, part), getattr(state, part))
  assert start.images_seen == 0
  # StyleGAN's mean w has the length of z.
  changed = built(name, widths=(4, 8, 8)) if name == "stylegan" else built(name, noise_dim=6)
  carry = transferred_state(changed, 1, mesh_of(1), algorithm, state)[0].carry
  jax.tree.map(np.testing.assert_array_equal, carry, state.carry)
