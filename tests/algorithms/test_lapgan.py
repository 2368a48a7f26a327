"""LAPGAN: the laws of its pyramid, of its levels, and how a batch and a run are divided."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import golden_cases
from helpers.meshes import mesh_of
from helpers.states import arrays_of
from helpers.zoo import data, trained

from r3gan_jax.algorithms import lapgan
from r3gan_jax.algorithms.capabilities import HasPictures
from r3gan_jax.algorithms.images import Images
from r3gan_jax.errors import UserError
from r3gan_jax.networks.layers import dropout
from r3gan_jax.training.checkpoint import Checkpoints
from r3gan_jax.training.state import abstract_state
from r3gan_jax.training.step import global_gradients
from r3gan_jax.training.transfer import transferred_state

BATCH, SIDES = 16, (5, 10)
KEYS = jax.random.split(jax.random.key(1), BATCH)
TINY = {"coarsest": 5, "generator_units": (8, 6), "discriminator_units": (16, 12), "width": 6, "noise_dim": 3}
IMAGES = Images(10, 10, 2, 0)


def built(images=IMAGES, **changes):
  return lapgan.build(lapgan.Settings(**TINY | {"ema_half_life": 32.0} | changes), images, "cpu")


ALGORITHM, CONDITIONAL = built(), built(IMAGES._replace(num_classes=3))
GENERATE = {algorithm: jax.jit(algorithm.generate) for algorithm in (ALGORITHM, CONDITIONAL)}


def start(algorithm=ALGORITHM, dtype=jnp.float32):
  """Returns initial parameters, moved so that no gradient is tiny."""
  random = np.random.default_rng(0)
  with jax.enable_x64(False):
    params = jax.jit(lambda: algorithm.init(jax.random.key(0))[0])()
  return jax.tree.map(lambda p: jnp.asarray(np.asarray(p) + 0.2 * random.standard_normal(p.shape), dtype), params)


def in_float64(algorithm=ALGORITHM):
  """Returns (params, batch); call it with x64 enabled."""
  batch = data(algorithm, BATCH)
  return start(algorithm, jnp.float64), batch | {"image": jnp.asarray(batch["image"] / 127.5 - 1)}


def all_gradients(algorithm=ALGORITHM, devices=1, micro_batch=None):
  """Returns (params, batch) -> (gradients by network, metrics) of all phases, each at these parameters."""
  functions = [global_gradients(phase, mesh_of(devices), micro_batch) for phase in algorithm.phases]

  @jax.jit
  def gradients(params, batch):
    results = [function(params, {}, batch, KEYS, {}) for function in functions]
    names = [phase.name for phase in algorithm.phases]
    metrics = {f"{name}/{m}": v for name, (_, _, found) in zip(names, results, strict=True) for m, v in found.items()}
    return {network: of_network for found, _, _ in results for network, of_network in found.items()}, metrics

  return gradients


@partial(jax.jit, static_argnums=0)
def residuals(level, params, z, coarse, classes=None):
  return level.generator.apply({"params": params[level.name("generator")]}, z, coarse, classes)


@partial(jax.jit, static_argnums=0)
def logits(level, params, residual, coarse, classes=None, keys=None):
  return level.discriminator.apply({"params": params[level.name("discriminator")]}, residual, coarse, classes, keys)


def enlarged(images):
  return np.repeat(np.repeat(images, 2, axis=1), 2, axis=2)


def of_level(images, side):
  """Returns (h, l) in numpy; the coarsest l is 0."""
  if side == SIDES[0]:
    images = images.reshape(-1, 5, 2, 5, 2, images.shape[-1]).mean(axis=(2, 4))
    return images, np.zeros_like(images)
  coarse = enlarged(images.reshape(-1, 5, 2, 5, 2, images.shape[-1]).mean(axis=(2, 4)))
  return images - coarse, coarse


def test_an_image_is_the_sum_of_its_pyramid():
  """Up to rounding, at each level the means of the image's pixels; residuals of 2x2 pixels sum to 0."""
  images = np.random.default_rng(0).standard_normal((3, 40, 40, 2)).astype(np.float32)
  pairs = jax.jit(partial(lapgan.pyramid, levels=4))(images)
  (image, zeros), *others = jax.tree.map(np.asarray, pairs)
  assert image.shape == (3, 5, 5, 2) == zeros.shape and not zeros.any() and len(others) == 3
  for residual, coarse in others:
    np.testing.assert_allclose(coarse, enlarged(image), atol=1e-6)
    side = coarse.shape[1]
    np.testing.assert_allclose(residual.reshape(3, side // 2, 2, -1, 2, 2).sum(axis=(2, 4)), 0, atol=1e-6)
    image = coarse + residual
    means = images.reshape(3, side, 40 // side, side, -1, 2).mean(axis=(2, 4))
    np.testing.assert_allclose(image, means, atol=1e-6)


@pytest.mark.parametrize("channels, counts", [(1, (208_705, 105_153)), (3, (218_179, 108_353))])
def test_the_parameters_of_one_more_level(channels, counts):
  """D's last layer sees what convolutions without padding leave of 16x16: 4x4. Others: test_configs.py."""
  params = jax.eval_shape(lapgan.build(lapgan.Settings(), Images(16, 16, channels, 0), "cpu").init, jax.random.key(0))[
    0
  ]
  assert params["discriminator_16"]["linear"]["kernel"].shape == (4 * 4 * 64, 1)
  found = [
    sum(leaf.size for leaf in jax.tree.leaves(params[f"{player}_16"])) for player in ("generator", "discriminator")
  ]
  assert tuple(found) == counts


def test_classes_add_a_plane():
  params = jax.eval_shape(lapgan.build(lapgan.Settings(), Images(32, 32, 3, 10), "cpu").init, jax.random.key(0))[0]
  found = {name: sum(leaf.size for leaf in jax.tree.leaves(params[name])) for name in params}
  assert (found["generator_32"], found["discriminator_32"]) == (232_579, 129_409)
  assert (found["generator_8"], found["discriminator_8"]) == (1_792_992 + 10 * 1200, 477_001 + 10 * 600)


def test_noise_of_all_levels():
  """Uniform, and enough for each level."""
  noise = ALGORITHM.noise(jax.random.split(jax.random.key(0), 2000))
  assert noise.shape == (2000, 3 + 100) and ALGORITHM.noise_dim == 103
  np.testing.assert_allclose((noise.min(), noise.max(), noise.mean()), (-1, 1, 0), atol=0.01)
  assert noise.std() == pytest.approx(1 / np.sqrt(3), rel=0.01)


def test_samples_are_drawn_from_coarse_to_fine():
  """Each level adds to the enlarged image so far, from its own part of the noise."""
  params, noise = start(), ALGORITHM.noise(KEYS)
  shown = enlarged(np.asarray(residuals(ALGORITHM.levels[0], params, noise[:, :3], jnp.zeros((BATCH, 5, 5, 2)))))
  expected = shown + residuals(ALGORITHM.levels[1], params, noise[:, 3:], jnp.asarray(shown))
  images = GENERATE[ALGORITHM](params, {}, noise, None)
  np.testing.assert_allclose(images, expected, rtol=1e-5, atol=1e-5)
  assert np.abs(expected - shown).max() > 0.1
  truncated = GENERATE[ALGORITHM](params, {}, noise, None, 0.5)
  np.testing.assert_allclose(truncated, GENERATE[ALGORITHM](params, {}, 0.5 * noise, None), atol=1e-6)


def test_a_generator_of_zeros_adds_nothing():
  """The image is the coarsest one, enlarged."""
  params, noise = start(), ALGORITHM.noise(KEYS)
  params["generator_10"]["to_residual"] = jax.tree.map(jnp.zeros_like, params["generator_10"]["to_residual"])
  images = np.asarray(GENERATE[ALGORITHM](params, {}, noise, None))
  assert images.std() > 0.1
  np.testing.assert_array_equal(images, enlarged(images[:, ::2, ::2]))


def test_the_discriminator_sees_the_sum():
  """Not the residual beside the coarse image: what moves from one to the other does not matter."""
  params, random = start(), np.random.default_rng(0)
  for level in ALGORITHM.levels:
    residual, coarse, moved = (
      jnp.asarray(random.standard_normal((BATCH, level.side, level.side, 2)), jnp.float32) for _ in range(3)
    )
    expected = logits(level, params, residual, coarse)
    np.testing.assert_allclose(logits(level, params, residual + moved, coarse - moved), expected, rtol=1e-4, atol=1e-4)
    assert np.abs(logits(level, params, residual + moved, coarse) - expected).max() > 0.01


def convolved(params, x, stride=1, padding="VALID"):
  """Returns a convolution by XLA."""
  y = jax.lax.conv_general_dilated(
    x, params["kernel"], (stride,) * 2, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  return y + params["bias"][None, None, None]


def dense(params, x):
  return x @ params["kernel"] + params["bias"][None]


def residual_by_hand(side, params, z, coarse):
  if side == SIDES[0]:
    layers = params["layers"]
    x = jax.nn.relu(dense(layers["linear_1"], jax.nn.relu(dense(layers["linear_0"], z))))
    return dense(layers["linear"], x).reshape(coarse.shape)
  x = jnp.concatenate([z.reshape(-1, side, side, 1), coarse], axis=3)
  for layer in ("conv_0", "conv_1"):
    x = jax.nn.relu(convolved(params[layer], x, padding="SAME"))
  return convolved(params["to_residual"], x, padding="SAME")


def logits_by_hand(side, params, image, keys):
  """With dropout of one half after the hidden layers of the coarsest level, and before the last layer of others."""
  if side == SIDES[0]:
    layers, x = params["layers"], image.reshape(BATCH, -1)
    for layer in (0, 1):
      x = dropout(jax.nn.relu(dense(layers[f"linear_{layer}"], x)), keys, layer, 0.5)
    return dense(layers["linear"], x)[:, 0]
  x = jax.nn.relu(convolved(params["conv_1"], jax.nn.relu(convolved(params["conv_0"], image)), stride=2))
  return dense(params["linear"], dropout(x.reshape(BATCH, -1), keys, 0, 0.5))[:, 0]


def test_gradients_against_the_losses_by_hand():
  """-log sigmoid in float64, networks by XLA's own convolutions; only the network that is updated moves."""
  with jax.enable_x64(True):
    params, batch = in_float64()
    gradients, metrics = all_gradients()(params, batch)

    def loss(player, side, of_network):
      moved = {**params, f"{player}_{side}": of_network}
      parts = 3 if player == "discriminator" else 2
      of_noise, *of_images = jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, parts))(KEYS), 1, 0)
      residual, coarse = of_level(np.asarray(batch["image"]), side)
      size = 3 if side == 5 else side * side
      z = jax.vmap(lambda key: jax.random.uniform(key, (size,), minval=-1.0))(of_noise)
      fake = coarse + residual_by_hand(side, moved[f"generator_{side}"], z, coarse)
      judged = partial(logits_by_hand, side, moved[f"discriminator_{side}"])
      probability = jax.nn.sigmoid(judged(fake, of_images[-1]))
      if player == "generator":
        return -jnp.mean(jnp.log(probability))
      return -jnp.mean(jnp.log(jax.nn.sigmoid(judged(residual + coarse, of_images[0]))) + jnp.log(1 - probability))

    for side in SIDES:
      for player in lapgan.PHASES:
        name = f"{player}_{side}"
        expected, by_hand = jax.jit(jax.value_and_grad(partial(loss, player, side)))(params[name])
        np.testing.assert_allclose(metrics[f"{player}/loss_{side}"], expected, rtol=1e-8)
        golden_cases.assert_trees_close(gradients[name], by_hand, 1e-7)


def test_an_undecided_discriminator():
  """D's losses are 2 ln 2 and G's ln 2, whose gradients are zero."""
  params = start()
  params["discriminator_5"]["layers"]["linear"] = jax.tree.map(
    jnp.zeros_like, params["discriminator_5"]["layers"]["linear"]
  )
  params["discriminator_10"]["linear"] = jax.tree.map(jnp.zeros_like, params["discriminator_10"]["linear"])
  gradients, metrics = all_gradients()(params, data(ALGORITHM, BATCH))
  for side in SIDES:
    assert metrics[f"discriminator/loss_{side}"] == pytest.approx(2 * np.log(2))
    assert metrics[f"generator/loss_{side}"] == pytest.approx(np.log(2))
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradients[f"generator_{side}"]))
    assert any(leaf.any() for leaf in jax.tree.leaves(gradients[f"discriminator_{side}"]))


def test_a_level_does_not_depend_on_the_others():
  """Bitwise: its gradients and metrics, whatever the networks of another level are."""
  params, batch, gradients = start(), data(ALGORITHM, BATCH), all_gradients()
  expected = gradients(params, batch)
  for own, other in (SIDES, SIDES[::-1]):
    changed = {
      name: jax.tree.map(lambda p: 2 * p, p) if name.endswith(f"_{other}") else p for name, p in params.items()
    }
    found = gradients(changed, batch)
    for tree, reference in zip(found, expected, strict=True):
      same = {name: leaf for name, leaf in tree.items() if name.endswith(f"_{own}")}
      assert same
      jax.tree.map(np.testing.assert_array_equal, same, {name: reference[name] for name in same})
    assert found[1][f"discriminator/loss_{other}"] != expected[1][f"discriminator/loss_{other}"]


def test_how_the_batch_is_divided_does_not_matter():
  """With classes, in float64."""
  with jax.enable_x64(True):
    given = in_float64(CONDITIONAL)
    whole = all_gradients(CONDITIONAL)(*given)
    for devices, micro_batch in ((8, None), (2, 1)):
      golden_cases.assert_trees_close(all_gradients(CONDITIONAL, devices, micro_batch)(*given), whole, 1e-10)


def test_a_resumed_run_is_an_uninterrupted_one(tmp_path):
  """Bitwise, with a checkpoint before each iteration: all networks, averages and optimisers."""

  def resumed(state):
    checkpoints = Checkpoints(tmp_path / str(state.images_seen))
    assert checkpoints.save(state)
    restored = checkpoints.restore_latest(abstract_state(ALGORITHM, mesh_of(1)))
    checkpoints.close()
    return restored

  states = [trained(ALGORITHM, BATCH, 2, interrupted=interruption) for interruption in (lambda state: state, resumed)]
  jax.tree.map(np.testing.assert_array_equal, *map(arrays_of, states))
  assert states[0].images_seen == 2 * BATCH, "all levels see the same images"
  assert states[0].ema.keys() == {"generator_5", "generator_10"}

  # What a run takes from another one, whose pyramid is higher or lower.
  higher = built(Images(20, 20, 2, 0))
  grown, table = transferred_state(higher, 1, mesh_of(1), ALGORITHM, states[0])
  for name, trained_before in states[0].params.items():
    jax.tree.map(np.testing.assert_array_equal, grown.params[name], trained_before)
  jax.tree.map(np.testing.assert_array_equal, grown.ema["generator_10"], states[0].ema["generator_10"])
  initial = higher.init(jax.random.key(1))[0]
  assert jax.tree.map(jnp.shape, grown.params) == jax.tree.map(jnp.shape, initial)
  assert re.search(r"generator_20:\n( .*initialised: not in the source\n)+", table)
  lower, table = transferred_state(ALGORITHM, 1, mesh_of(1), higher, grown)
  jax.tree.map(np.testing.assert_array_equal, lower.params, states[0].params)
  assert "generator_20: not used" in table
  with pytest.raises(UserError, match=r"none of the networks discriminator_14, .*, but discriminator_10, "):
    transferred_state(built(Images(14, 14, 2, 0), coarsest=7), 1, mesh_of(1), ALGORITHM, states[0])


def test_classes():
  """They change images and logits of all levels; the label is needed."""
  params, noise = start(CONDITIONAL), CONDITIONAL.noise(KEYS)
  images = [GENERATE[CONDITIONAL](params, {}, noise, jnp.full(BATCH, label, jnp.int32)) for label in (0, 1)]
  assert np.abs(images[0] - images[1]).max() > 0.01
  one_hot = jnp.eye(3)[np.arange(BATCH) % 3]
  for level in CONDITIONAL.levels:
    image, z = jnp.ones((BATCH, level.side, level.side, 2)), jnp.ones((BATCH, level.noise_dim))
    for output in (residuals(level, params, z, image, one_hot), logits(level, params, image, image, one_hot)):
      assert np.abs(output[0] - output[1]).max() > 1e-5
      np.testing.assert_allclose(output[0], output[3], rtol=1e-4, atol=1e-6)
  with pytest.raises(ValueError, match="labels are missing"):
    CONDITIONAL.generate(params, {}, noise, None)


def test_dropout_is_of_each_sample_by_itself():
  params, random = start(), np.random.default_rng(0)
  for level in ALGORITHM.levels:
    image = jnp.asarray(random.standard_normal((1, level.side, level.side, 2)), jnp.float32)
    images = jnp.repeat(image, BATCH, axis=0)
    dropped = logits(level, params, images, images, keys=KEYS)
    assert len(np.unique(dropped)) > 4
    backwards = logits(level, params, images, images, keys=KEYS[::-1])
    np.testing.assert_allclose(backwards[::-1], dropped, rtol=1e-4, atol=1e-5)
    assert np.ptp(logits(level, params, images, images)) < 1e-5, "without keys there is none"


def test_pictures():
  """Samples by level, and each real beside its coarsest image and what is drawn from that; with classes, samples."""
  assert isinstance(ALGORITHM, HasPictures)
  params, images = start(), jnp.asarray(data(ALGORITHM, 4)["image"] / np.float32(127.5) - 1)
  pictures = jax.jit(ALGORITHM.pictures)(params, {}, images)
  noise = ALGORITHM.noise(jax.random.split(jax.random.key(0), 4))
  coarse, fine = jnp.split(pictures["samples_by_level"], 2, axis=2)
  np.testing.assert_allclose(fine, GENERATE[ALGORITHM](params, {}, noise, None), atol=1e-5)
  np.testing.assert_allclose(fine - coarse, residuals(ALGORITHM.levels[1], params, noise[:, 3:], coarse), atol=1e-5)
  real, coarse, fine = jnp.split(pictures["reals_and_redrawn_by_level"], 3, axis=2)
  np.testing.assert_array_equal(real, images)
  np.testing.assert_allclose(coarse, of_level(np.asarray(images), 10)[1], atol=1e-6)
  np.testing.assert_allclose(fine - coarse, residuals(ALGORITHM.levels[1], params, noise[:, 3:], coarse), atol=1e-5)

  pictures, labels = jax.jit(CONDITIONAL.pictures)(start(CONDITIONAL), {}, images), jnp.array([0, 1, 2, 0], jnp.int32)
  assert set(pictures) == {"samples_by_level"}
  expected = GENERATE[CONDITIONAL](start(CONDITIONAL), {}, noise, labels)
  np.testing.assert_allclose(pictures["samples_by_level"][:, :, 10:], expected, atol=1e-5)


def test_the_optimiser_of_the_paper():
  """Descent with a momentum that rises for 375 epochs; Adam has none."""
  algorithm = built(optimizer="sgd", learning_rate=0.02)
  for epoch, momentum in ((0, 0.5), (100, 0.58), (375, 0.8), (1000, 0.8)):
    assert algorithm.schedules["momentum"](50_000 * epoch) == pytest.approx(momentum, rel=1e-6)
  optimizer = algorithm.optimizers["generator_10"]
  hyperparameters = {"learning_rate": jnp.float32(0.02), "momentum": jnp.float32(0.5)}
  updates, _ = optimizer.update(
    {"w": jnp.array([3.0])}, optimizer.init({"w": jnp.zeros(1)}), hyperparameters=hyperparameters
  )
  np.testing.assert_allclose(updates["w"], [-0.06], rtol=1e-6)
  assert "momentum" not in ALGORITHM.schedules and ALGORITHM.optimizers.keys() == algorithm.optimizers.keys()


@pytest.mark.parametrize(
  "side, coarsest, wrong",
  [
    (28, 8, "config.data.resolution = 28: lapgan needs 2, 4, 8, ... times config.gan.coarsest = 8"),
    (8, 8, "config.data.resolution = 8: lapgan needs 2, 4, 8, ... times config.gan.coarsest = 8"),
    (24, 8, "config.data.resolution = 24: lapgan needs 2, 4, 8, ... times config.gan.coarsest = 8"),
    (8, 2, "config.gan.coarsest = 2: D's two convolutions"),
  ],
)
def test_images_that_do_not_fit_are_refused(side, coarsest, wrong):
  with pytest.raises(UserError, match=re.escape(wrong)):
    lapgan.build(lapgan.Settings(coarsest=coarsest), Images(side, side, 1, 0), "cpu")
