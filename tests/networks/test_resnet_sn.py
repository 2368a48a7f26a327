"""The residual networks of GANs with spectral normalisation: sizes, attention, and conditional batch norm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from helpers.meshes import mesh_of
from jax.sharding import PartitionSpec as P

from r3gan_jax.networks.attention import Attention
from r3gan_jax.networks.resnet_sn import (
  AuxiliaryClassifier,
  ConditionalBatchNorm,
  Discriminator,
  DownBlock,
  Generator,
  UpBlock,
)

WIDTHS = (64, 64, 64, 64)
X = np.random.default_rng(0).standard_normal((3, 8, 8, 16)).astype(np.float32)


def parameters(network, *inputs, **options):
  shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), *inputs, **options))
  return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


def of_generator(**fields):
  labels = jnp.zeros(1, jnp.int32) if fields.get("num_classes") else None
  network = Generator(**{"widths": WIDTHS, "axis_name": "data"} | fields)
  return parameters(network, jnp.zeros((1, 128)), labels, train=False)


def of_discriminator(cls=Discriminator, channels=3, **fields):
  labels = jnp.zeros(1, jnp.int32) if fields.get("num_classes") else None
  return parameters(cls(**{"widths": WIDTHS} | fields), jnp.zeros((1, 32, 32, channels)), labels)


def test_parameters_at_32_pixels():
  """Plain, with classes, with attention; and SNGAN's published sizes, at widths of 256 and 128."""
  assert (of_generator(), of_discriminator()) == (368_771, 264_769)
  assert (of_generator(image_channels=1), of_discriminator(channels=1)) == (367_617, 263_489)
  assert (of_generator(num_classes=10), of_discriminator(num_classes=10)) == (375_683, 265_409)
  assert of_discriminator(AuxiliaryClassifier, num_classes=10) == 265_419
  attention = {"num_classes": 10, "attention_side": 16}
  assert (of_generator(**attention), of_discriminator(**attention)) == (380_804, 270_530)
  assert of_generator(widths=(256,) * 4) == 4_276_739
  assert of_discriminator(widths=(128,) * 4, num_classes=10, head_bias=False) == 1_055_104


def test_attention_begins_as_the_identity_and_gamma_has_a_gradient():
  layer = Attention(nn.initializers.glorot_uniform())
  params = layer.init(jax.random.key(0), X)["params"]
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 2 * 16 * 2 + 2 * 16 * 8 + 1
  np.testing.assert_array_equal(layer.apply({"params": params}, X), X)
  gradient = jax.grad(lambda p: jnp.sum(X * layer.apply({"params": p}, X)))(params)
  assert abs(gradient["gamma"]) > 1e-3


@pytest.mark.parametrize("heads, masked", [(1, False), (2, False), (2, True)])
def test_attention_against_numpy(heads, masked):
  """Queries see the largest of 2x2 places; heads see parts of the channels, and each its own places."""
  random = np.random.default_rng(1)
  masks = random.random((heads, 64, 16)) < 0.5
  masks[..., 3] = True
  layer = Attention(nn.initializers.normal(1.0), heads, (lambda side: masks) if masked else None)
  params = layer.init(jax.random.key(0), X)["params"] | {"gamma": jnp.asarray(0.7)}
  y, state = layer.apply({"params": params}, X, mutable=["intermediates"])
  kernels = {name: np.asarray(params[name]["kernel"], np.float64) for name in ("theta", "phi", "g", "o")}

  def pooled(x):
    return x.reshape(3, 4, 2, 4, 2, -1).max((2, 4)).reshape(3, 16, -1)

  queries = (X @ kernels["theta"]).reshape(3, 64, -1)
  keys, values = pooled(X @ kernels["phi"]), pooled(X @ kernels["g"])
  seen = []
  for head, (q, k, v) in enumerate(zip(*(np.split(a, heads, -1) for a in (queries, keys, values)), strict=True)):
    weights = np.exp(q @ k.swapaxes(1, 2)) * (masks[head] if masked else 1)
    weights /= weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(state["intermediates"]["weights"][0][:, head], weights, atol=1e-5)
    seen.append(weights @ v)
  expected = X + 0.7 * np.concatenate(seen, -1).reshape(3, 8, 8, 8) @ kernels["o"]
  np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


def test_attention_knows_no_places():
  """Permuted blocks of 2x2 places permute the result."""
  layer = Attention(nn.initializers.normal(1.0))
  params = layer.init(jax.random.key(0), X)["params"] | {"gamma": jnp.asarray(1.0)}
  order = np.random.default_rng(0).permutation(16)

  def permuted(x):
    blocks = np.asarray(x).reshape(3, 4, 2, 4, 2, 16).swapaxes(2, 3).reshape(3, 16, 2, 2, 16)[:, order]
    return blocks.reshape(3, 4, 4, 2, 2, 16).swapaxes(2, 3).reshape(3, 8, 8, 16)

  after = layer.apply({"params": params}, permuted(X))
  np.testing.assert_allclose(after, permuted(layer.apply({"params": params}, X)), atol=1e-4)


@pytest.mark.parametrize("kernel_init", [None, nn.initializers.normal(0.5)])
def test_conditional_batch_norm(kernel_init):
  """(1 + A c) times the normalised activation, plus B c; rows begin at 0."""
  layer = ConditionalBatchNorm("data", kernel_init)
  condition = np.random.default_rng(2).standard_normal((3, 5)).astype(np.float32)
  variables = layer.init(jax.random.key(0), X, condition, train=False)
  params = variables["params"]
  maps = [params[name] if kernel_init is None else params[name]["kernel"] for name in ("scale", "bias")]
  assert all(m.shape == (5, 16) for m in maps) and (kernel_init is None) == (not any(m.any() for m in maps))

  def apply(x, c):
    return layer.apply(variables, x, c, train=True, mutable=["moments"])[0]

  y = jax.jit(jax.shard_map(apply, mesh=mesh_of(1), in_specs=P("data"), out_specs=P("data")))(X, condition)
  norm = (X - X.mean((0, 1, 2))) / np.sqrt(X.var((0, 1, 2)) + 1e-5)
  scale, bias = (np.asarray(condition @ m)[:, None, None] for m in maps)
  np.testing.assert_allclose(y, (1 + scale) * norm + bias, atol=1e-4)


def test_without_a_condition_there_is_one_scale_and_bias():
  layer = ConditionalBatchNorm("data")
  variables = layer.init(jax.random.key(0), X, None, train=False)
  params = {"scale": jnp.arange(16.0)[None], "bias": jnp.ones((1, 16))}
  y = layer.apply({**variables, "params": params}, X, None, train=False)
  np.testing.assert_allclose(y, X / np.sqrt(1 + 1e-5) * (1 + np.arange(16)) + 1, rtol=1e-4, atol=1e-5)


def test_shortcuts_carry_the_input_and_not_its_relu():
  """With zero kernels on the way, a block is its shortcut: means or repeated pixels, by a 1x1 convolution or none."""

  def shortcut_of(block, *inputs, **options):
    variables = block.init(jax.random.key(0), X, *inputs, **options)
    params = {**variables["params"]}
    params["conv_2"] = jax.tree.map(jnp.zeros_like, params["conv_2"])
    kernel = params["shortcut"]["kernel"] if "shortcut" in params else None
    return block.apply({**variables, "params": params}, X, *inputs, **options), kernel

  init = nn.initializers.glorot_uniform()
  y, kernel = shortcut_of(UpBlock(4, "data", init), None, train=False)
  np.testing.assert_allclose(y, (X.repeat(2, axis=1).repeat(2, axis=2)) @ kernel, atol=1e-5)
  y, kernel = shortcut_of(DownBlock(4, init))
  np.testing.assert_allclose(y, X.reshape(3, 4, 2, 4, 2, 16).mean((2, 4)) @ kernel, atol=1e-5)
  y, kernel = shortcut_of(DownBlock(16, init, halves=False))
  np.testing.assert_allclose(y, X, atol=1e-6)
  assert kernel is None
  assert shortcut_of(DownBlock(4, init, halves=False))[0].shape == (3, 8, 8, 4)


def test_discriminators_sum_over_places_and_classes_are_projected():
  """On features that are all 1: the logit is 64 places times the sum of the head's kernel and of the class's row."""

  class OfOnes(Discriminator):
    def features(self, x):
      return jnp.ones((x.shape[0], 8, 8, 16))

  class Telling(AuxiliaryClassifier):
    def features(self, x):
      return jnp.ones((x.shape[0], 8, 8, 16))

  network = OfOnes((16, 16), num_classes=3)
  labels = jnp.array([2, 0, 1], jnp.int32)
  params = network.init(jax.random.key(0), X, labels)["params"]
  rows = np.asarray(params["class_table"]["kernel"])[labels]
  expected = 64 * (params["linear"]["kernel"].sum() + rows.sum(axis=1))
  np.testing.assert_allclose(network.apply({"params": params}, X, labels), expected, rtol=1e-4)
  with pytest.raises(ValueError, match="labels are missing"):
    network.apply({"params": params}, X)
  telling = Telling((16, 16), num_classes=3)
  params = telling.init(jax.random.key(0), X)["params"]
  logits, classes = telling.apply({"params": params}, X)
  np.testing.assert_allclose(logits, 64 * np.tile(params["linear"]["kernel"].sum(), 3), rtol=1e-4)
  np.testing.assert_allclose(classes, np.tile(params["classes"].sum(axis=0), (3, 1)), rtol=1e-4)
