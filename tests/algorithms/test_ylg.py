"""YLG is SAGAN with masks; test_zoo.py has the properties of all GANs with state."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.zoo import data

from r3gan_jax.algorithms import ylg
from r3gan_jax.algorithms.images import Images
from r3gan_jax.errors import UserError
from r3gan_jax.networks.ylg import HEADS, aligned_masks, tiled_masks

IMAGES = Images(16, 16, 1, 3)
SETTINGS = ylg.Settings(
  **{"generator_widths": (8, 64, 8), "discriminator_widths": (64, 8), "whole_blocks": 1, "attention_side": 8},
  noise_dim=8,
)


def built(**changes):
  return ylg.build(dataclasses.replace(SETTINGS, **changes), IMAGES, "cpu")


def attended(network, params, *inputs, **options):
  """Returns the weights of its attention, [N, heads, queries, keys]."""
  _, state = network.apply(params, *inputs, **options, mutable=["intermediates"])
  return state["intermediates"]["attention_8"]["weights"][0]


@pytest.mark.parametrize("tiled", [False, True])
def test_both_networks_attend_to_what_the_masks_show(tiled):
  """And to all of it: weights are 0 where the mask is, and nowhere else."""
  algorithm = built(tiled=tiled)
  params, carry = algorithm.init(jax.random.key(0))
  labels = jnp.array([0, 1], jnp.int32)
  variables = {"params": params["generator"], "moments": carry["generator_moments"]}
  noise = algorithm.noise(jax.random.split(jax.random.key(0), 2))
  images = jnp.asarray(data(algorithm, 2)["image"], jnp.float32) / 255
  masks = (tiled_masks if tiled else aligned_masks)(8)
  assert masks.shape == (HEADS, 64, 16)
  for weights in (
    attended(algorithm.generator, variables, noise, labels, train=False),
    attended(algorithm.discriminator, {"params": params["discriminator"]}, images, labels),
  ):
    np.testing.assert_array_equal(weights > 0, np.broadcast_to(masks, weights.shape))
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-5)


def test_eight_heads_need_64_channels():
  wrong = r"config\.gan\.generator_widths has 8 channels .* needs a multiple of 64"
  with pytest.raises(UserError, match=wrong):
    built(generator_widths=(8, 8, 8))
