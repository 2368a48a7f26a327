"""StyleGAN's synthesis network against its laws, hand values, and plain convolutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from r3gan_jax.networks.karras import Mapping
from r3gan_jax.networks.stylegan import Epilogue, Synthesis

WIDTHS = (8, 6, 4)
NETWORK = Synthesis(WIDTHS, 2, growing=True)
IMAGES = jax.jit(NETWORK.apply)


def synthesised(*given):
  return IMAGES(*given)[-1]


def draw(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def noise(samples, seed=5):
  return [draw(samples, side, side, 1, seed=seed + layer) for layer, side in enumerate(NETWORK.sides)]


@pytest.fixture(scope="module")
def initial():
  return jax.jit(NETWORK.init)(jax.random.key(0), draw(1, 6, 5), noise(1))


@pytest.fixture(scope="module")
def params(initial):
  """Perturbed, so that biases and noise strengths are not zero."""
  leaves, structure = jax.tree.flatten(initial)
  return structure.unflatten([leaf + 0.3 * draw(*leaf.shape, seed=i) for i, leaf in enumerate(leaves)])


def test_parameter_counts():
  """By hand, at 32x32 with w of 64; the authors' networks of 1024x1024 are in tests/test_configs.py."""
  synthesis = Synthesis((64, 64, 64, 32))
  planes = [jnp.zeros((1, side, side, 1)) for side in synthesis.sides]
  assert synthesis.sides == [4, 4, 8, 8, 16, 16, 32, 32]
  growing = Synthesis((64, 64, 64, 32), growing=True)
  shapes = (
    jax.eval_shape(synthesis.init, jax.random.key(0), jnp.zeros((1, 8, 64)), planes),
    jax.eval_shape(growing.init, jax.random.key(0), jnp.zeros((1, 8, 64)), planes),
    jax.eval_shape(Mapping(64).init, jax.random.key(0), jnp.zeros((1, 64))),
  )
  assert [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in shapes] == [272_227, 272_812, 33_280]


def convolved(params, x):
  """Returns a convolution by XLA, with equalised weights."""
  kernel = params["kernel"] / float(np.sqrt(np.prod(params["kernel"].shape[:-1])))
  return np.asarray(
    jax.lax.conv_general_dilated(
      jnp.asarray(x, jnp.float32), kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
  )


def epilogue(params, x, w, plane):
  x = x + params["noise_strength"] * np.asarray(plane) + params["bias"]
  x = np.where(x > 0, x, 0.2 * x)
  x = (x - x.mean(axis=(1, 2), keepdims=True)) / x.std(axis=(1, 2), keepdims=True)
  style = np.asarray(w) @ params["style"]["kernel"] / 5**0.5 + params["style"]["bias"]
  scale, shift = np.split(style[:, None, None], 2, axis=-1)
  return x * (scale + 1) + shift


def test_by_hand(params):
  """From the constant on: repeated pixels, convolution, the filter 1-2-1, noise, bias, activation, norm and style."""
  w, planes = draw(3, 6, 5), noise(3)
  layers = jax.tree.map(np.asarray, params)["params"]
  images = IMAGES(params, w, planes)
  x = np.broadcast_to(layers["constant"], (3, 4, 4, 8))
  for stage in range(3):
    if stage > 0:
      x = convolved(layers[f"stage_{stage}_conv0"], np.repeat(np.repeat(x, 2, axis=1), 2, axis=2))
      padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
      x = sum(
        weight * padded[:, i : i + x.shape[1], j : j + x.shape[2]]
        for i, row in enumerate(np.outer([0.25, 0.5, 0.25], [0.25, 0.5, 0.25]))
        for j, weight in enumerate(row)
      )
    x = epilogue(layers[f"stage_{stage}_style0"], x, w[:, 2 * stage], planes[2 * stage])
    x = convolved(layers[f"stage_{stage}_conv1"], x)
    x = epilogue(layers[f"stage_{stage}_style1"], x, w[:, 2 * stage + 1], planes[2 * stage + 1])
    image = convolved(layers[f"stage_{stage}_to_image"], x) + layers[f"stage_{stage}_to_image"]["bias"]
    np.testing.assert_allclose(images[stage], image, atol=2e-3)


def test_without_styles_features_are_normalised():
  """Each channel of each sample has mean 0 and deviation 1, whatever the scale of what comes in."""
  layer, x, plane = Epilogue(), draw(2, 8, 8, 3) * jnp.array([[[[1.0, 100.0, 0.1]]]]), draw(2, 8, 8, 1)
  params = layer.init(jax.random.key(0), x, jnp.zeros((2, 5)), plane)
  y = layer.apply(params, x, jnp.zeros((2, 5)), plane)
  np.testing.assert_allclose(jnp.mean(y, axis=(1, 2)), 0, atol=1e-5)
  np.testing.assert_allclose(jnp.std(y, axis=(1, 2)), 1, rtol=1e-4)


def test_initially_noise_does_not_matter_and_the_constant_is_one(initial, params):
  w = jnp.repeat(draw(1, 6, 5), 2, axis=0)
  first, second = synthesised(initial, w, noise(2))
  np.testing.assert_allclose(first, second, atol=1e-5)
  assert (initial["params"]["constant"] == 1).all()
  first, second = synthesised(params, w, noise(2))
  assert np.abs(first - second).mean() > 0.01


def test_each_w_and_each_noise_goes_to_its_own_layer(params):
  """If all layers but one ignore w and noise, only theirs matter."""
  w, planes = draw(1, 6, 5), noise(1)
  leaves = flatten_dict(params, sep="/")
  for layer in range(6):
    own = f"stage_{layer // 2}_style{layer % 2}/"
    blind = {
      name: 0 * leaf if name.endswith(("style/kernel", "noise_strength")) and own not in name else leaf
      for name, leaf in leaves.items()
    }
    blind = unflatten_dict(blind, sep="/")
    image = synthesised(blind, w, planes)
    by_style = [i for i in range(6) if (synthesised(blind, w.at[:, i].add(1), planes) != image).any()]
    by_noise = [
      i for i in range(6) if (synthesised(blind, w, [-p if i == j else p for j, p in enumerate(planes)]) != image).any()
    ]
    assert by_style == by_noise == [layer]
