"""AutoGAN's vector of an architecture, and its cells."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.meshes import mesh_of
from jax.sharding import PartitionSpec as P

from r3gan_jax.errors import UserError
from r3gan_jax.networks.autogan import FOUND, Cell, Generator, decoded

Z = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)


def initial(architecture=FOUND, width=6):
  network = Generator(decoded(architecture), width, "data", lowest_side=2, image_channels=1)
  return network, jax.jit(partial(network.init, train=False))(jax.random.key(0), jnp.asarray(Z))


def test_the_architecture_that_was_found():
  assert decoded(FOUND) == (
    Cell("before", "none", "nearest", True, ()),
    Cell("before", "none", "bilinear", True, (1,)),
    Cell("before", "none", "nearest", False, (1, 2)),
  )
  _, variables = initial()
  assert {name for name in variables["params"]["cell_16"]} == {"conv_1", "conv_2", "skip_from_1", "skip_from_2"}
  assert set(variables["moments"]) == {"norm"}


def test_against_numpy():
  """All of G but its last norm, from the arrays of its layers; features include the skips that they got."""
  network, variables = initial()
  params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
  assert not params["cell_8"]["skip_from_1"]["bias"].any()

  def conv(layer, x):
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    side = x.shape[1]
    parts = [padded[:, i : i + side, j : j + side] @ layer["kernel"][i, j] for i in range(3) for j in range(3)]
    return sum(parts) + layer["bias"]

  def nearest(x, factor=2):
    return x.repeat(factor, axis=1).repeat(factor, axis=2)

  def bilinear(x):
    for axis in (1, 2):
      x = np.moveaxis(x, axis, 0)
      before, after = np.concatenate([x[:1], x[:-1]]), np.concatenate([x[1:], x[-1:]])
      x = np.stack([0.25 * before + 0.75 * x, 0.75 * x + 0.25 * after], axis=1).reshape(-1, *x.shape[1:])
      x = np.moveaxis(x, 0, axis)
    return x

  def dense(layer, x):
    return x @ layer["kernel"] + layer["bias"]

  def relu(x):
    return np.maximum(x, 0)

  x = dense(params["linear"], Z).reshape(4, 2, 2, 6)
  cell = params["cell_4"]
  first = conv(cell["conv_1"], nearest(relu(x)))
  x = conv(cell["conv_2"], relu(first)) + dense(cell["shortcut"], nearest(x))
  cell = params["cell_8"]
  second = conv(cell["conv_1"], bilinear(relu(x))) + dense(cell["skip_from_1"], bilinear(first))
  x = conv(cell["conv_2"], relu(second)) + dense(cell["shortcut"], bilinear(x))
  cell = params["cell_16"]
  third = conv(cell["conv_1"], nearest(relu(x)))
  third += dense(cell["skip_from_1"], nearest(first, 4)) + dense(cell["skip_from_2"], nearest(second))
  x = conv(cell["conv_2"], relu(third))
  x = relu(x / np.sqrt(1 + 1e-5) * params["norm"]["scale"] + params["norm"]["bias"])
  expected = np.tanh(conv(params["to_image"], x))
  np.testing.assert_allclose(network.apply(variables, jnp.asarray(Z), train=False), expected, atol=1e-5)


def test_zero_skips_are_none():
  """And the same network without them."""
  network, variables = initial()
  params = {**variables["params"]}
  for cell in ("cell_8", "cell_16"):
    params[cell] = {
      name: jax.tree.map(jnp.zeros_like, layer) if name.startswith("skip") else layer
      for name, layer in params[cell].items()
    }
  without, _ = initial((1, 0, 1, 1, 1, 0, 0, 1, 0, 1, 0, 1, 0, 0))
  kept = {name: {k: v for k, v in layer.items() if not k.startswith("skip")} for name, layer in params.items()}
  found = network.apply({**variables, "params": params}, jnp.asarray(Z), train=False)
  expected = without.apply({**variables, "params": kept}, jnp.asarray(Z), train=False)
  np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("norm", [1, 2])
def test_other_architectures(norm):
  """With norm and ReLU after the convolutions, and norms of the batch or of each image."""
  network, variables = initial((0, norm, 0, 0, 0, norm, 1, 1, 0, 1, norm, 0, 0, 2))
  assert ("cell_4" in variables["moments"]) == (norm == 1)

  def apply(z):
    return network.apply(variables, z, train=True, mutable=["moments"])[0]

  images = jax.jit(jax.shard_map(apply, mesh=mesh_of(1), in_specs=P("data"), out_specs=P("data")))(jnp.asarray(Z))
  assert images.shape == (4, 16, 16, 1) and np.isfinite(images).all() and np.std(images) > 1e-3


@pytest.mark.parametrize(
  "architecture, wrong",
  [
    (FOUND[:13], "has 13 entries: give 4 for the first cell and 5 for each other one"),
    ((2, *FOUND[1:]), "entry 1 must be from 0 to 1"),
    ((*FOUND[:13], 4), "entry 14 must be from 0 to 3"),
    ((*FOUND[:2], 2, *FOUND[3:]), "transposed convolutions: only bilinear"),
  ],
)
def test_vectors_that_are_no_architecture_are_refused(architecture, wrong):
  with pytest.raises(UserError, match=wrong):
    decoded(architecture)
