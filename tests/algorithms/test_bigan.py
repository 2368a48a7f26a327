"""BiGAN: two losses at the same parameters, and reconstructions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.meshes import mesh_of
from helpers.zoo import data

from r3gan_jax.algorithms import bigan
from r3gan_jax.algorithms.capabilities import HasCodes, HasPictures
from r3gan_jax.algorithms.images import Images
from r3gan_jax.training.step import global_gradients

ALGORITHM = bigan.build(bigan.Settings(width=16, noise_dim=4), Images(4, 4, 3, 0), "cpu")
BATCH = 16


@pytest.fixture(scope="module")
def start():
  return jax.jit(lambda: ALGORITHM.init(jax.random.key(0)))()


def test_an_undecided_discriminator(start):
  """All losses are ln 2, and only D's last layer has a gradient."""
  params, carry = start
  head = {"kernel": jnp.zeros((16, 1))}
  params = {**params, "discriminator": params["discriminator"] | {"linear_2": head}}
  gradients_of = jax.jit(global_gradients(ALGORITHM.phases[0], mesh_of(1), None))
  keys = jax.random.split(jax.random.key(1), BATCH)
  gradients, _, metrics = gradients_of(params, carry, data(ALGORITHM, BATCH), keys, {})
  assert metrics["loss"] == pytest.approx(np.log(2)) == metrics["generator_and_encoder_loss"]
  assert gradients["discriminator"]["linear_2"]["kernel"].any()
  assert not any(leaf.any() for leaf in jax.tree.leaves((gradients["generator"], gradients["encoder"])))


@pytest.mark.parametrize("networks, loss", [(("discriminator",), 0), (("generator", "encoder"), 1)])
def test_gradients_against_finite_differences(start, networks, loss):
  """L_D for D and L_GE for G and E, by hand from both pairs' logits, in float64."""
  random = np.random.default_rng(0)
  with jax.enable_x64(True):
    params = jax.tree.map(lambda p: jnp.asarray(np.asarray(p) + 0.1 * random.standard_normal(p.shape)), start[0])
    carry = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), start[1])
    image = jnp.asarray(data(ALGORITHM, BATCH)["image"] / 127.5 - 1)
    keys = jax.random.split(jax.random.key(1), BATCH)
    gradients_of = jax.jit(global_gradients(ALGORITHM.phases[0], mesh_of(1), None))
    direction = jax.tree.map(lambda p: jnp.asarray(random.standard_normal(p.shape)), {n: params[n] for n in networks})

    def apply(params, network, *inputs):
      module = getattr(ALGORITHM, network)

      def local(*inputs):
        variables = {"params": params[network], "moments": carry[f"{network}_moments"]}
        return module.apply(variables, *inputs, train=True, mutable=["moments"])[0]

      spec = jax.sharding.PartitionSpec("data")
      return jax.jit(jax.shard_map(local, mesh=mesh_of(1), in_specs=spec, out_specs=spec))(*inputs)

    @jax.jit
    def losses(step):
      moved = {**params, **{n: jax.tree.map(lambda p, d: p + step * d, params[n], direction[n]) for n in networks}}
      x, z = (image.reshape(BATCH, -1) + 1) / 2, ALGORITHM.noise(keys)
      a = apply(moved, "discriminator", x, apply(moved, "encoder", x))
      b = apply(moved, "discriminator", apply(moved, "generator", z), z)
      of_a, of_b = (-jnp.log(jax.nn.sigmoid(logits)) for logits in (a, b))  # -log(1 - sigmoid(t)) is larger by t
      return jnp.mean(of_a + of_b + b) / 2, jnp.mean(of_a + a + of_b) / 2

    gradients, _, metrics = gradients_of(params, carry, {"image": image}, keys, {})
    found = (metrics["loss"], metrics["generator_and_encoder_loss"])
    np.testing.assert_allclose(found, losses(0.0), rtol=1e-10)
    slope = (losses(1e-7)[loss] - losses(-1e-7)[loss]) / 2e-7  # small enough to cross few kinks of ReLU
    chosen = {name: gradients[name] for name in networks}
    along = sum(jnp.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (chosen, direction)), strict=True))
    np.testing.assert_allclose(along, slope, rtol=1e-5)


def test_reconstructions_and_nearest_codes(start):
  """Each real beside G(E(x)), with codes in [-1, 1], and beside the other of the nearest code; samples do not mix."""
  assert isinstance(ALGORITHM, HasPictures) and isinstance(ALGORITHM, HasCodes)
  images = jnp.asarray(np.repeat(data(ALGORITHM, 3)["image"] / np.float32(127.5) - 1, 2, axis=0))
  drawn = ALGORITHM.pictures(*start, images)
  np.testing.assert_array_equal(drawn.pop("reals_and_nearest_codes"), jnp.concatenate([images, images], axis=2))
  (pictures,) = drawn.values()
  assert pictures.shape == (6, 4, 8, 3)
  np.testing.assert_array_equal(pictures[:, :, :4], images)
  codes = ALGORITHM.encode(*start, images)
  assert codes.shape == (6, 4) and np.abs(codes).max() < 1
  np.testing.assert_allclose(pictures[:, :, 4:], ALGORITHM.generate(*start, codes, None), atol=1e-6)
  np.testing.assert_allclose(codes[2:3], ALGORITHM.encode(*start, images[2:3]), atol=1e-6)
