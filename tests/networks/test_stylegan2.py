"""StyleGAN2's layers against their definitions, one sample at a time and in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from r3gan_jax.networks.karras import STDDEV_GROUP, Mapping
from r3gan_jax.networks.stylegan2 import Discriminator, Synthesis, modulated_conv
from r3gan_jax.ops.strided_conv import upsampling_conv

WIDTHS = (12, 8, 6)


def draw(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("upsample", [True, False])
def test_modulated_convolution_is_a_convolution_of_its_own_for_each_sample(demodulate, upsample):
  x, kernel, style = draw(3, 6, 6, 5), draw(3, 3, 5, 4, seed=1), 1 + draw(3, 5, seed=2)
  ours = jax.jit(modulated_conv, static_argnums=(3, 4))(x, kernel, style, demodulate, upsample)
  for sample in range(3):
    own = np.asarray(kernel, np.float64) * np.asarray(style[sample], np.float64)[:, None]
    if demodulate:
      own = own / np.sqrt(np.square(own).sum((0, 1, 2)))
    one, own = x[sample : sample + 1], jnp.asarray(own, jnp.float32)
    if upsample:
      expected = upsampling_conv(one, own)
    else:
      expected = jax.lax.conv_general_dilated(one, own, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(ours[sample], expected[0], atol=2e-5)


def test_demodulated_outputs_have_unit_deviation_whatever_the_style():
  """For inputs of unit standard deviation (section 2.2, equation 2), away from borders."""
  x, kernel = draw(4, 32, 32, 16), draw(3, 3, 16, 8, seed=1)
  style = jnp.array([1.0, 100.0, 0.01, 1.0])[:, None] * jnp.exp(draw(4, 16, seed=2))
  y = jax.jit(modulated_conv, static_argnums=(3, 4))(x, kernel, style, True, False)[:, 1:-1, 1:-1]
  np.testing.assert_allclose(np.std(y, axis=(1, 2)), 1, atol=0.15)


def networks(bfloat16_stages=0):
  return Synthesis(WIDTHS, 2, bfloat16_stages), Discriminator(WIDTHS, bfloat16_stages)


@pytest.fixture(scope="module")
def params():
  synthesis, discriminator = networks()
  return jax.jit(
    lambda: (
      synthesis.init(jax.random.key(0), jnp.zeros((1, synthesis.inputs, 10))),
      discriminator.init(jax.random.key(1), jnp.zeros((4, 16, 16, 2))),
    )
  )()


def test_logits_depend_on_the_group_only(params):
  """Splitting a batch between groups does not change the logits."""
  judge = jax.jit(networks()[1].apply)
  images = draw(8, 16, 16, 2)
  logits = judge(params[1], images)
  np.testing.assert_allclose(judge(params[1], images[4:]), logits[4:], rtol=1e-5, atol=1e-6)
  other = judge(params[1], images.at[0].mul(2))
  assert (np.abs(other - logits)[:4] > 1e-5).all() and (other == logits)[4:].all()


def test_pixel_noise(params):
  """Its strength is initially 0. It depends only on the sample's key; without keys it is the same for all samples."""
  synthesis, _ = networks()
  synthesise = jax.jit(synthesis.apply)
  w = jnp.broadcast_to(draw(1, 1, 10), (3, synthesis.inputs, 10))
  keys = jax.random.split(jax.random.key(2), 3)
  plain = synthesise(params[0], w)
  np.testing.assert_allclose(synthesise(params[0], w, keys), plain, atol=1e-6)
  noisy = jax.tree_util.tree_map_with_path(
    lambda path, leaf: jnp.ones_like(leaf) if path[-1].key == "noise_strength" else leaf, params[0]
  )
  assert sum(path[-1].key == "noise_strength" for path, _ in jax.tree_util.tree_leaves_with_path(noisy)) == 5
  fixed, drawn = synthesise(noisy, w), synthesise(noisy, w, keys)
  np.testing.assert_allclose(fixed[0], fixed[2], atol=1e-6)
  for one, other in ((fixed, plain), (drawn[0], drawn[1]), (drawn, fixed)):
    assert np.abs(one - other).mean() > 0.1
  np.testing.assert_allclose(synthesise(noisy, w[1:2], keys[1:2])[0], drawn[1], atol=1e-5)


def test_each_w_goes_to_its_own_layers(params):
  """If all layers but one ignore w, only that layer's w matters; ToImage shares the next stage's first w."""
  synthesis, _ = networks()
  synthesise = jax.jit(synthesis.apply)
  w = draw(1, synthesis.inputs, 10)
  leaves = flatten_dict(params[0], sep="/")
  sighted = {"stage_0_conv1": 0} | {f"stage_{s}_conv{i}": 2 * s - 1 + i for s in (1, 2) for i in (0, 1)}
  sighted |= {f"stage_{s}_to_image": 2 * s + 1 for s in (0, 1, 2)}
  for layer, expected in sighted.items():
    blind = {n: 0 * x if n.endswith("style/kernel") and f"/{layer}/" not in n else x for n, x in leaves.items()}
    blind = unflatten_dict(blind, sep="/")
    image = synthesise(blind, w)
    moved = [i for i in range(synthesis.inputs) if (synthesise(blind, w.at[:, i].add(1)) != image).any()]
    assert moved == [expected], layer


def test_bfloat16_stages_stay_close(params):
  full, mixed = networks(), networks(bfloat16_stages=2)
  w = draw(4, full[0].inputs, 10)
  images = [jax.jit(network.apply)(params[0], w) for network, _ in (full, mixed)]
  logits = [jax.jit(network.apply)(params[1], images[0]) for _, network in (full, mixed)]
  for exact, close in (images, logits):
    assert exact.dtype == close.dtype == jnp.float32
    assert 0 < np.linalg.norm(exact - close) / np.linalg.norm(exact) < 0.03


def test_parameter_counts_as_published():
  """[P] Table 2, configuration A: FFHQ at 256x256."""
  widths = (512, 512, 512, 512, 256, 128, 64)
  mapping, synthesis, discriminator = Mapping(), Synthesis(widths), Discriminator(widths)
  shapes = jax.eval_shape(
    lambda key: (
      [mapping.init(key, jnp.zeros((1, 512))), synthesis.init(key, jnp.zeros((1, 14, 512)))],
      discriminator.init(key, jnp.zeros((STDDEV_GROUP, 256, 256, 3))),
    ),
    jax.random.key(0),
  )
  assert [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in shapes] == [24_767_458, 24_001_089]
