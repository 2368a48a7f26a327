"""Properties of BigGAN alone; test_sagan.py has those of its phases, test_zoo.py those of all GANs with state."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.meshes import mesh_of
from helpers.zoo import data, trained

from r3gan_jax.algorithms import biggan
from r3gan_jax.algorithms.capabilities import HasStandingMoments
from r3gan_jax.algorithms.images import Images
from r3gan_jax.errors import UserError
from r3gan_jax.training.state import averaged
from r3gan_jax.training.step import global_gradients

IMAGES = Images(16, 16, 1, 3)
SETTINGS = biggan.Settings(
  **{"generator_widths": (8, 8, 8), "discriminator_widths": (8, 8), "whole_blocks": 1, "attention_side": 8},
  **{"noise_dim": 12, "embed_dim": 4},
)
BATCH = 8
KEYS = jax.random.split(jax.random.key(1), BATCH)


def built(images=IMAGES, **changes):
  return biggan.build(dataclasses.replace(SETTINGS, **changes), images, "cpu")


ALGORITHM = built()


@pytest.fixture(scope="module")
def start():
  return jax.jit(lambda: ALGORITHM.init(jax.random.key(0)))()


def test_non_orthogonality_by_hand():
  """W = (1 1 / 0 1), with outputs as rows: 2, and the gradient 4 (0 1 / 1 1). Other arrays have no part."""
  kernel = jnp.array([[1.0, 1.0], [0.0, 1.0]]).T
  cost, gradient = jax.value_and_grad(biggan.non_orthogonality)({"a": {"kernel": kernel, "bias": kernel}, "b": kernel})
  assert cost == 2
  np.testing.assert_array_equal(gradient["a"]["kernel"].T, [[0, 4], [4, 4]])
  assert not gradient["a"]["bias"].any() and not gradient["b"].any()
  rows = jnp.array([[3.0, 0.0, 0.0, 4.0], [0.0, 2.0, 0.0, 0.0]])  # orthogonal, of any length
  assert biggan.non_orthogonality({"a": {"kernel": rows.T.reshape(2, 2, 1, 2)}}) == 0
  assert biggan.non_orthogonality({"a": {"kernel": rows.T}, "b": {"kernel": kernel}}) == 2


def test_the_orthogonal_term_adds_its_gradient(start):
  gradients = {}
  for weight in (0.0, 0.5):
    algorithm = built(orthogonal_weight=weight)
    compute = jax.jit(global_gradients(algorithm.phases[1], mesh_of(1), None))
    found, _, metrics = compute(*start, data(algorithm, BATCH), KEYS, {})
    gradients[weight] = found["generator"]
  term, of_term = jax.jit(jax.value_and_grad(biggan.non_orthogonality))(start[0]["generator"])
  assert metrics["non_orthogonality"] == pytest.approx(float(term), rel=1e-5)

  def assert_added(found, plain, added):
    np.testing.assert_allclose(found, plain + 0.5 * added, rtol=1e-4, atol=1e-5)

  jax.tree.map(assert_added, gradients[0.5], gradients[0.0], of_term)


def test_kernels_are_orthogonal_at_first(start):
  """Of D, too; so wide kernels cost nothing."""
  kernel = start[0]["discriminator"]["block_8_1"]["conv_2"]["kernel"].reshape(-1, 8)
  np.testing.assert_allclose(kernel.T @ kernel, np.eye(8), atol=1e-5)


@pytest.mark.parametrize("threshold, deviation", [(2, 0.8796), (1, 0.5396), (0.5, 0.2839)])
def test_truncated_noise_is_that_of_redrawn_tails(threshold, deviation):
  """Against noise that is drawn anew while beyond the threshold."""
  z = np.sort(np.random.default_rng(0).standard_normal(200_000).astype(np.float32))
  within = np.abs(z) < threshold
  found = biggan.truncated(jnp.asarray(z), within.mean())
  assert np.abs(found).max() <= threshold * 1.01
  assert np.std(found) == pytest.approx(deviation, abs=0.005) and np.diff(found).min() > -1e-3
  quantiles = np.linspace(0.02, 0.98, 49)
  np.testing.assert_allclose(np.quantile(found, quantiles), np.quantile(z[within], quantiles), atol=0.02)


def test_samples_are_truncated(start):
  """By the share of the normal distribution that remains; at 1 nothing changes, and at 0 all are one per class."""
  noise, labels = ALGORITHM.noise(KEYS), jnp.zeros(BATCH, jnp.int32)
  whole = super(biggan.BigGAN, ALGORITHM).generate(*start, noise, labels)
  np.testing.assert_array_equal(ALGORITHM.generate(*start, noise, labels), whole)
  half = super(biggan.BigGAN, ALGORITHM).generate(*start, biggan.truncated(noise, 0.5), labels)
  np.testing.assert_allclose(ALGORITHM.generate(*start, noise, labels, 0.5), half, atol=1e-6)
  traced = jax.jit(ALGORITHM.generate)
  for share, expected in ((1.0, whole), (0.5, half)):  # one program for all
    np.testing.assert_allclose(traced(*start, noise, labels, share), expected, atol=1e-5)
  sensitivity = jax.grad(lambda noise: jnp.sum(ALGORITHM.generate(*start, noise, labels)))(10 * noise)
  assert jnp.isfinite(sensitivity).all()
  typical = ALGORITHM.generate(*start, noise, labels, 0.0)
  np.testing.assert_allclose(typical, jnp.broadcast_to(typical[:1], typical.shape), atol=1e-6)


def test_chunks_and_the_shared_embedding_enter_blocks(start):
  """Chunk 0 enters the first layer, chunk i block i; with zero maps G is one with plain batch norm, without classes."""
  params = start[0]["generator"]
  assert params["linear"]["kernel"].shape == (4, 128) and params["embedding"].shape == (3, 4)
  assert params["block_8"]["norm_1"]["scale"]["kernel"].shape == (8, 8)
  noise, labels = ALGORITHM.noise(KEYS), jnp.arange(BATCH) % 3

  @jax.jit
  def features(z, labels, params=params):
    variables = {"params": params, "moments": start[1]["generator_moments"]}
    images, state = ALGORITHM.generator.apply(
      variables, z, labels, train=False, mutable=["intermediates"], capture_intermediates=True
    )
    kept = state["intermediates"]
    return {name: kept[name]["__call__"][0] for name in ("linear", "block_8", "block_16")}, images

  layers = ("linear", "block_8", "block_16")
  before, _ = features(noise, labels)
  for chunk in range(3):
    after, _ = features(noise.at[:, 4 * chunk : 4 * chunk + 4].add(1), labels)
    assert tuple(name for name in layers if np.any(before[name] != after[name])) == layers[chunk:]
  after, _ = features(noise, (labels + 1) % 3)
  assert tuple(name for name in layers if np.any(before[name] != after[name])) == layers[1:]
  plain = jax.tree_util.tree_map_with_path(
    lambda path, leaf: 0 * leaf if len(path) > 1 and path[-2].key in ("scale", "bias") else leaf, {**params}
  )
  _, images = features(noise, labels, plain)
  _, same = features(noise.at[:, 4:].add(1), (labels + 1) % 3, plain)
  np.testing.assert_array_equal(images, same)


def test_only_the_embedding_has_no_spectral_norm(start):
  vectors = {path[0].key for path, _ in jax.tree_util.tree_leaves_with_path(start[1]["generator_vectors"])}
  assert vectors == {"attention_8", "block_16", "block_8", "linear", "to_image"}
  assert "scale" in start[1]["generator_vectors"]["block_8"]["norm_1"]
  assert "class_table" in start[1]["discriminator_vectors"]


def test_standing_moments_are_those_of_the_averaged_network():
  """Recomputed, from G's average, over many samples; a batch in training mode has them, roughly."""
  algorithm = built(ema_half_life=64.0)
  assert isinstance(algorithm, HasStandingMoments)
  state = trained(algorithm, BATCH, iterations=1)
  params, carry = averaged(algorithm, state)
  by_running_moments = {**carry, "generator_moments": state.carry["generator_moments"]}
  again = jax.jit(algorithm.standing)(params, by_running_moments)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), again, carry)
  keys = jax.random.split(jax.random.key(7), 1024)
  spec = jax.sharding.PartitionSpec("data")

  def normalised_by_the_batch(keys):
    labels = jax.vmap(lambda key: jax.random.randint(key, (), 0, 3, jnp.int32))(keys)
    variables = {"params": algorithm._trained_weights(params, carry), "moments": carry["generator_moments"]}
    noise = algorithm.noise(keys)
    return algorithm.generator.apply(variables, noise, labels, train=True, mutable=["moments"])[0], noise, labels

  split = jax.shard_map(normalised_by_the_batch, mesh=mesh_of(1), in_specs=spec, out_specs=spec)
  images, noise, labels = jax.jit(split)(keys)
  generate = jax.jit(algorithm.generate)
  standing, running = (np.abs(images - generate(params, c, noise, labels)) for c in (carry, by_running_moments))
  assert standing.mean() < 0.02 and running.mean() > 5 * standing.mean()
  moments = carry["generator_moments"]["norm"]["norm"]
  assert (moments["mean_square"] > jnp.square(moments["mean"])).all()


def test_without_classes_chunks_are_the_condition():
  plain = built(IMAGES._replace(num_classes=0))
  params, carry = plain.init(jax.random.key(0))
  assert "embedding" not in params["generator"]
  assert params["generator"]["block_8"]["norm_1"]["scale"]["kernel"].shape == (4, 8)
  assert plain.generate(params, carry, plain.noise(KEYS), None).shape == (BATCH, 16, 16, 1)
  with pytest.raises(ValueError, match="labels are missing"):
    ALGORITHM.generate(*ALGORITHM.init(jax.random.key(0)), ALGORITHM.noise(KEYS), None)


def test_noise_that_has_no_equal_chunks_is_refused():
  with pytest.raises(UserError, match=r"config\.gan\.noise_dim = 8: z enters 3 layers .* a multiple of 3"):
    built(noise_dim=8)
