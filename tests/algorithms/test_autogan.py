"""AutoGAN is SAGAN's phases with other networks; test_zoo.py has the properties of all GANs with state."""

import dataclasses

import jax
import pytest

from r3gan_jax.algorithms import autogan
from r3gan_jax.algorithms.images import Images
from r3gan_jax.errors import UserError

IMAGES = Images(32, 32, 1, 0)
SETTINGS = autogan.Settings(generator_width=8, discriminator_width=8, noise_dim=8)


def built(images=IMAGES, **changes):
  return autogan.build(dataclasses.replace(SETTINGS, **changes), images, "cpu")


def test_training_is_sngan_s():
  """Five updates of D, with spectral norm, for one of G, without, on two batches of fakes; there is no attention."""
  algorithm = built()
  of_d, of_g = algorithm.phases
  assert (of_d.repeat, of_g.repeat, algorithm.generator_batches) == (5, 1, 2)
  params, carry = algorithm.init(jax.random.key(0))
  assert set(carry) == {"generator_moments", "discriminator_vectors"}
  assert set(params["discriminator"]["linear"]) == {"kernel"}
  assert algorithm.pictures(params, carry, None) == {}


@pytest.mark.parametrize("side, lowest", [(32, 4), (48, 6)])
def test_three_cells_reach_the_resolution(side, lowest):
  """As the paper's networks for CIFAR-10 and for STL-10."""
  algorithm = built(Images(side, side, 3, 0))
  assert algorithm.generator.lowest_side == lowest
  params, carry = jax.eval_shape(algorithm.init, jax.random.key(0))
  noise = jax.ShapeDtypeStruct((2, 8), "float32")
  images = jax.eval_shape(lambda *given: algorithm.generate(*given, None), params, carry, noise)
  assert images.shape == (2, side, side, 3)


@pytest.mark.parametrize(
  "images, changes, wrong",
  [
    (Images(32, 32, 1, 10), {}, r"config\.data\.num_classes = 10: autogan takes no classes"),
    (Images(28, 28, 1, 0), {}, r"config\.data\.resolution = 28: autogan's three cells need a multiple of 8"),
    (IMAGES, {"architecture": (1, 0)}, r"config\.gan\.architecture = \(1, 0\) has 2 entries"),
  ],
)
def test_settings_that_do_not_fit_are_refused(images, changes, wrong):
  with pytest.raises(UserError, match=wrong):
    built(images, **changes)
