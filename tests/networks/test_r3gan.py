"""Shapes, dtypes and initialisation of the networks; tests/algorithms/test_r3gan.py tests their numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from r3gan_jax.networks.r3gan import Discriminator, Generator

SHAPE = {"widths": (24, 16, 16), "cardinalities": (3, 2, 4), "blocks": (1, 2, 1)}


def build(channels=3, classes=0, bfloat16_stages=0, **shape):
  shape = SHAPE | shape
  generator = Generator(
    **shape, noise_dim=8, num_classes=classes, embed_dim=8, image_channels=channels, bfloat16_stages=bfloat16_stages
  )
  discriminator = Discriminator(
    **shape, num_classes=classes, embed_dim=shape["widths"][0], bfloat16_stages=bfloat16_stages
  )
  return generator, discriminator


def init(generator, discriminator, channels=3, side=16, classes=0):
  labels = jnp.zeros(2, jnp.int32) if classes else None
  z, images = jnp.zeros((2, 8)), jnp.zeros((2, side, side, channels))
  return generator.init(jax.random.key(0), z, labels), discriminator.init(jax.random.key(1), images, labels)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("classes", [0, 5])
def test_shapes(channels, classes):
  generator, discriminator = build(channels, classes)
  variables = jax.eval_shape(lambda: init(generator, discriminator, channels, classes=classes))
  labels = jnp.array([0, classes - 1]) if classes else None
  images = jax.eval_shape(generator.apply, variables[0], jnp.ones((2, 8)), labels)
  assert images.shape == (2, 16, 16, channels)
  logits = jax.eval_shape(discriminator.apply, variables[1], images, labels)
  assert (logits.shape, logits.dtype) == ((2,), jnp.float32)


@pytest.mark.parametrize("stages", [1, 2, 5])
def test_any_number_of_stages(stages):
  networks = build(widths=(8,) * stages, cardinalities=(2,) * stages, blocks=(1,) * stages)
  side = 4 * 2 ** (stages - 1)
  variables = jax.eval_shape(lambda: init(*networks, side=side))
  assert jax.eval_shape(networks[0].apply, variables[0], jnp.ones((2, 8))).shape == (2, side, side, 3)


def test_initialisation():
  """The standard deviations of the official code; the last layer of every block starts at zero."""
  shape = {"widths": (256, 128), "cardinalities": (16, 8), "blocks": (2, 3)}
  generator, discriminator = build(classes=5, **shape)
  variables = jax.jit(lambda: init(generator, discriminator, side=8, classes=5))()
  blocks = 5
  block_gain = np.sqrt(2 / 1.04) * blocks**-0.25
  expected = {
    ("stage_0_block_0", "conv1"): block_gain / np.sqrt(256),
    ("stage_0_block_0", "conv2"): block_gain / np.sqrt(32 * 9),
    ("stage_1_block_2", "conv1"): block_gain / np.sqrt(128),
    ("stage_1_block_2", "conv3"): 0,
    ("stage_1_block_2", "bias1"): 0,
    ("stage_1_block_2", "bias2"): 0,
  }
  generator_only = {
    ("basis", "constant"): 1,
    ("basis", "linear", "kernel"): 1 / np.sqrt(16),
    ("up_1", "conv", "kernel"): 1 / np.sqrt(256),
    ("to_image", "kernel"): 1 / np.sqrt(128),
    ("class_embedding", "kernel"): 1 / np.sqrt(5),
  }
  discriminator_only = {
    ("basis", "constant"): 1 / 4,
    ("basis", "linear", "kernel"): 1 / np.sqrt(256),
    ("down_0", "conv", "kernel"): 1 / np.sqrt(128),
    ("from_image", "kernel"): 1 / np.sqrt(3),
    ("class_embedding", "kernel"): 1 / np.sqrt(256) / np.sqrt(5),
  }
  for tree, own in ((variables[0], generator_only), (variables[1], discriminator_only)):
    for path, std in (expected | own).items():
      leaf = tree["params"]
      for part in path:
        leaf = leaf[part]
      # Four standard errors of a standard deviation that is estimated from n draws.
      np.testing.assert_allclose(np.std(leaf), std, rtol=4 / np.sqrt(2 * leaf.size), err_msg=str(path))


def test_bfloat16_stages_compute_in_bfloat16_and_stay_close():
  results = {}
  for stages in (0, 2):
    generator, discriminator = build(bfloat16_stages=stages)
    variables = jax.jit(lambda: init(*build()))()
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    z = jax.random.normal(jax.random.key(2), (4, 8))
    images = jax.jit(generator.apply)(variables[0], z)
    logits = jax.jit(discriminator.apply)(variables[1], images)
    assert images.dtype == logits.dtype == jnp.float32
    results[stages] = images, logits
    jaxpr = str(jax.make_jaxpr(discriminator.apply)(variables[1], images))
    assert ("bf16" in jaxpr) == bool(stages)
  for full, mixed in zip(results[0], results[2], strict=True):
    assert 0 < np.linalg.norm(full - mixed) / np.linalg.norm(full) < 0.02


def test_a_network_of_classes_needs_labels():
  generator, _ = build(classes=3)
  with pytest.raises(ValueError, match="labels are missing"):
    generator.init(jax.random.key(0), jnp.zeros((2, 8)))


@pytest.mark.parametrize("grouped_conv", ["auto", "fused"])
def test_a_generator_takes_a_symbolic_batch(grouped_conv):
  """Exported as by cli.export, for every algorithm that it may be trained with."""
  generator, _ = build(grouped_conv=grouped_conv, bfloat16_stages=1)
  variables = jax.eval_shape(lambda: init(*build())[0])
  (batch,) = export.symbolic_shape("batch")
  exported = export.export(jax.jit(generator.apply))(variables, jax.ShapeDtypeStruct((batch, 8), jnp.float32))
  assert exported.out_avals[0].shape == (batch, 16, 16, 3)
