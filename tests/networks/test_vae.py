"""Stable Diffusion's autoencoder against numbers recorded from diffusers, with random weights (tests/golden)."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import sd_vae
from helpers.golden_cases import relative_errors

from r3gan_jax.interop.sd_vae import read_autoencoder
from r3gan_jax.networks.vae import Autoencoder, decode_tiled


@pytest.fixture(scope="module")
def golden():
  with np.load(sd_vae.GOLDEN) as file:
    return dict(file)


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
  """Name -> (module, parameters) of both networks of the helper."""
  return {name: read_autoencoder(sd_vae.write(tmp_path_factory.mktemp(name), name)) for name in sd_vae.NETWORKS}


def encode(autoencoder, params, images):
  return jax.jit(partial(autoencoder.apply, method="encode"))({"params": params}, images)


def decode(autoencoder, params, latents):
  return jax.jit(partial(autoencoder.apply, method="decode"))({"params": params}, latents)


def tiled(autoencoder, params, latents, tile, overlap):
  return jax.jit(partial(decode_tiled, autoencoder, tile=tile, overlap=overlap))(params, latents)


def assert_close(actual, expected, relative):
  """No number differs by more than `relative` times the largest."""
  assert actual.dtype == np.float32
  np.testing.assert_allclose(actual, expected, rtol=0, atol=relative * np.abs(expected).max())


@pytest.mark.card
@pytest.mark.parametrize("case", sd_vae.CASES)
def test_golden_latents_and_images(golden, networks, case):
  network, _ = sd_vae.CASES[case]
  autoencoder, params = networks[network]
  mean, std = encode(autoencoder, params, golden[f"{case}/images"])
  assert_close(mean, golden[f"{case}/mean"], 1e-5)
  assert_close(std, golden[f"{case}/std"], 1e-5)
  assert_close(decode(autoencoder, params, golden[f"{case}/latents"]), golden[f"{case}/decoded"], 1e-5)


@pytest.mark.parametrize("case", sd_vae.TILES)
def test_golden_tiles(golden, networks, case):
  _, tile, overlap = sd_vae.TILES[case]
  latents, expected = golden[f"{case}/latents"], golden[f"{case}/decoded"]
  assert_close(tiled(*networks["grey"], latents, tile, overlap), expected, 1e-5)
  whole = decode(*networks["grey"], latents)
  assert np.abs(whole - expected).max() > 0.1, "tiles have group norm and attention of their own"


def test_what_fits_in_a_tile_is_decoded_as_a_whole(golden, networks):
  latents = golden["tiles/latents"]
  made = tiled(*networks["grey"], latents, 14, 2)
  np.testing.assert_array_equal(made, decode(*networks["grey"], latents))


def test_tiles_without_overlap(networks):
  """They are decoded as if they were images of their own."""
  latents = np.random.default_rng(1).standard_normal((1, 4, 8, 3)).astype(np.float32)
  both = decode(*networks["grey"], np.concatenate([latents[:, :, :4], latents[:, :, 4:]]))
  assert_close(tiled(*networks["grey"], latents, 4, 0), np.concatenate(both, axis=1)[None], 1e-6)
  with pytest.raises(ValueError, match="give 0 to 2"):
    tiled(*networks["grey"], latents, 4, 3)


def test_bfloat16(golden, networks):
  """Within 2 % of float32, by norm: a rounding is 0.2 %, and dozens follow one another."""
  autoencoder, params = networks["rgb"]
  half = autoencoder.clone(dtype=jnp.bfloat16)
  made = (*encode(half, params, golden["square/images"]), decode(half, params, golden["square/latents"]))
  expected = [golden[f"square/{name}"] for name in ("mean", "std", "decoded")]
  assert all(value.dtype == np.float32 for value in made)
  errors = relative_errors(dict(enumerate(made)), dict(enumerate(expected)))
  assert all(1e-4 < error < 0.02 for error in errors.values()), errors
  initial = jax.eval_shape(half.init, jax.random.key(0), golden["square/images"])
  assert {leaf.dtype for leaf in jax.tree.leaves(initial)} == {jnp.dtype(jnp.float32)}


def test_the_variance_is_clipped(golden, networks):
  autoencoder, params = networks["grey"]
  bias = np.array([0, 0, 0, 100, -100, 2], np.float32)
  params = params | {"quant_conv": {"kernel": np.zeros((1, 1, 6, 6), np.float32), "bias": bias}}
  _, std = encode(autoencoder, params, golden["pixels/images"])
  np.testing.assert_allclose(std[0, 0, 0], np.exp([10, -15, 1]), rtol=1e-5)


def test_images_of_other_sides_are_refused(networks):
  with pytest.raises(ValueError, match=r"images of \(32, 36\): crop both sides to multiples of 8"):
    encode(*networks["rgb"], np.zeros((1, 32, 36, 3), np.float32))


def test_parameters_of_stable_diffusions_own():
  """As many as diffusers counts: 83,653,863; encoder, decoder and the 1x1 convolutions 34,163,664, 49,490,179, 92."""
  shapes = jax.eval_shape(Autoencoder().init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
  counts = {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in shapes.items()}
  assert counts == {"encoder": 34163592, "quant_conv": 72, "post_quant_conv": 20, "decoder": 49490179}
