"""Laws of the training step: results do not depend on how the batch is split, nothing recompiles or is gathered."""

from dataclasses import replace
from functools import cache, partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import golden_cases
from helpers.meshes import mesh_of

from r3gan_jax import schedules
from r3gan_jax.algorithms.alignment import Alignment
from r3gan_jax.algorithms.base import Average, Phase
from r3gan_jax.algorithms.images import Images
from r3gan_jax.algorithms.r3gan import R3GAN, Guidance
from r3gan_jax.augment.pipeline import augment
from r3gan_jax.metrics.residual_cnn import FEATURES, ResidualCNN, outputs
from r3gan_jax.networks.r3gan import Discriminator, Generator
from r3gan_jax.optimizers import at_rate
from r3gan_jax.pretrained import PretrainedNetwork
from r3gan_jax.training.mesh import batch_sharding, replicated
from r3gan_jax.training.progress import Diverged, MetricWindow
from r3gan_jax.training.state import averaged, init_state
from r3gan_jax.training.step import make_train_step

BATCH = 16
SHAPE = {"widths": (8, 8), "cardinalities": (2, 2), "blocks": (1, 1), "num_classes": 3, "embed_dim": 8}
SCHEDULES = {
  "learning_rate": schedules.cosine(1e-3, 1e-4, 64),
  "beta2": schedules.cosine(0.9, 0.99, 64),
  "gamma": schedules.cosine(1.0, 0.1, 64),
  "ema_half_life": schedules.cosine(0.0, 100.0, 64),
  "augment_p": schedules.cosine(0.2, 0.8, 64),
}
ALGORITHM = R3GAN(
  Generator(**SHAPE, noise_dim=8),
  Discriminator(**SHAPE),
  noise_dim=8,
  images=Images(8, 8, 3, 3),
  augment=partial(augment, multipliers=dict.fromkeys(("x_flip", "rotation", "brightness", "noise", "cutout"), 1.0)),
  schedules=SCHEDULES,
  ema_stds=(0.05, 0.1),
)


def batches(seed):
  random = np.random.default_rng(seed)
  return tuple(
    {
      "image": random.integers(0, 256, (BATCH, 8, 8, 3), dtype=np.uint8),
      "label": random.integers(0, 3, BATCH, dtype=np.int32),
    }
    for _ in range(2)
  )


@cache
def step_of(algorithm, devices):
  return make_train_step(algorithm, mesh_of(devices))


def train(devices=1, micro_batches=None, iterations=3, algorithm=ALGORITHM):
  mesh = mesh_of(devices)
  state = jax.jit(lambda: init_state(algorithm, 0), out_shardings=replicated(mesh))()
  step = make_train_step(algorithm, mesh, micro_batches) if micro_batches else step_of(algorithm, devices)
  compilations = []

  def count(event, *_, **__):
    compilations.append(event)

  for i in range(iterations):
    given = jax.device_put(batches(i), batch_sharding(mesh))
    jax.block_until_ready((state, given))
    if i == 1:
      jax.monitoring.register_event_duration_secs_listener(count)
    state, metrics = step(state, given)
  jax.monitoring.unregister_event_duration_listener(count)
  assert not [event for event in compilations if "compile" in event], "recompiled after the first iteration"
  assert not metrics.not_finite() and not metrics.ran
  return state, jax.device_get(metrics.values)


@pytest.fixture(scope="module")
def reference():
  return train()


@pytest.mark.card
@pytest.mark.parametrize(
  "devices, micro_batches",
  [(8, None), (1, {"discriminator": 4, "generator": 2}), (2, {"discriminator": 8, "generator": 4})],
)
def test_how_the_batch_is_split_does_not_matter(reference, devices, micro_batches):
  state, metrics = train(devices, micro_batches)
  assert state.images_seen == 3 * BATCH
  for tree, expected in (
    (state.params, reference[0].params),
    (state.ema, reference[0].ema),
  ):
    # Adam amplifies rounding in small gradients, so whole trees are compared.
    assert golden_cases.relative_errors(tree, expected)["all"] < 1e-5
  for name, value in reference[1].items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-3, atol=1e-5, err_msg=name)


FROZEN = replace(
  ALGORITHM,
  frozen=frozenset(
    {
      *(("discriminator", layer) for layer in ("from_image", "stage_1_block_0")),
      *(("generator", layer) for layer in ("basis", "stage_0_block_0")),
    }
  ),
)


@pytest.fixture(scope="module")
def frozen():
  return train(algorithm=FROZEN)


def test_frozen_layers_stay_bit_for_bit(frozen):
  """And with them their averages; all others train, and optimisers keep nothing of them."""
  start, (state, _) = jax.jit(lambda: init_state(FROZEN, 0))(), frozen
  for network, layers in state.params.items():
    kept = {layer for layer in layers if (network, layer) in FROZEN.frozen}
    assert len(kept) == 2 and state.optimizer[network].second_moment.keys() == layers.keys() - kept
    for layer in layers:
      pairs = [(state.params[network][layer], start.params[network][layer])]
      pairs += [(state.ema[name][layer], start.ema[name][layer]) for name in {network} & state.ema.keys()]
      for after, before in pairs:
        same = jax.tree.map(np.array_equal, after, before)
        assert jax.tree.reduce(lambda a, b: a and b, same) == (layer in kept), (network, layer)


def test_freezing_does_not_change_other_gradients():
  """The penalties and G's gradients pass through frozen layers: one update of all others is as without them."""
  (expected, metrics), (state, frozen_metrics) = (
    step_of(algorithm, 1)(jax.jit(lambda given=algorithm: init_state(given, 0))(), batches(0))
    for algorithm in (ALGORITHM, FROZEN)
  )
  both = (state.params["discriminator"], expected.params["discriminator"])
  after, full = (tree | dict.fromkeys(("from_image", "stage_1_block_0")) for tree in both)
  assert golden_cases.relative_errors(after, full)["all"] < 1e-5
  metrics, frozen_metrics = metrics.values, frozen_metrics.values
  np.testing.assert_allclose(frozen_metrics["discriminator/r2"], metrics["discriminator/r2"], rtol=1e-5)
  for network in ("discriminator", "generator"):
    assert 0 < frozen_metrics[f"{network}/gradient_norm"] < metrics[f"{network}/gradient_norm"]


@pytest.mark.parametrize("devices, micro_batches", [(2, {"discriminator": 4, "generator": 2})])
def test_how_the_batch_is_split_does_not_matter_to_frozen_networks(frozen, devices, micro_batches):
  state, _ = train(devices, micro_batches, algorithm=FROZEN)
  assert golden_cases.relative_errors((state.params, state.ema), (frozen[0].params, frozen[0].ema))["all"] < 1e-5


def classifier():
  params = jax.jit(ResidualCNN(3).init)(jax.random.key(1), np.zeros((1, 8, 8, 3), np.uint8))["params"]
  return PretrainedNetwork(outputs, FEATURES, lambda: jax.device_get(params))


@pytest.mark.parametrize("devices, micro_batches", [(2, {"discriminator": 4, "generator": 2})])
def test_how_the_batch_is_split_does_not_matter_with_pretrained_networks(devices, micro_batches):
  """They are copied to all devices, and are in no state."""
  network = classifier()
  guided = replace(
    ALGORITHM,
    synced_augment=True,
    alignment=Alignment(network, "stage_1_block_0", 1.0),
    guidance=Guidance(network, 1.0),
  )
  (whole, metrics), (parts, _) = (train(*split, algorithm=guided) for split in ((1, None), (devices, micro_batches)))
  assert golden_cases.relative_errors((parts.params, parts.ema), (whole.params, whole.ema))["all"] < 1e-5
  assert whole.params.keys() == whole.optimizer.keys() == {"discriminator", "generator"}
  assert not np.array_equal(*(state.params["discriminator"]["alignment"]["kernel"] for state in (whole, start(guided))))
  assert -1 < metrics["discriminator/alignment"] < 1 and metrics["generator/cross_entropy"] > 0


def start(algorithm):
  return jax.jit(lambda: init_state(algorithm, 0))()


def test_metrics_and_hyperparameters(reference):
  metrics = reference[1]
  np.testing.assert_allclose(metrics["hyperparameters/gamma"], SCHEDULES["gamma"](jnp.int32(2 * BATCH)), rtol=1e-6)
  assert metrics["discriminator/gradient_norm"] > 0 and metrics["generator/gradient_norm"] > 0


def test_draws_differ_between_iterations_phases_and_samples():
  seen = []

  class Recording(R3GAN):
    def noise(self, keys):
      z = super().noise(keys)
      jax.debug.callback(lambda z: seen.append(np.asarray(z)), z)
      return z

  mesh = mesh_of(1)
  algorithm = Recording(
    ALGORITHM.generator, ALGORITHM.discriminator, images=ALGORITHM.images, noise_dim=8, schedules=SCHEDULES
  )
  state = jax.jit(lambda: init_state(algorithm, 0))()
  step = make_train_step(algorithm, mesh)
  for i in range(2):
    state, _ = step(state, batches(i))
  jax.block_until_ready(state)
  jax.effects_barrier()
  drawn = np.concatenate(seen)
  assert drawn.shape == (4 * BATCH, 8)
  assert len(np.unique(drawn[:, 0])) == 4 * BATCH


def test_non_finite_values_are_reported():
  state = jax.jit(lambda: init_state(ALGORITHM, 0), out_shardings=replicated(mesh_of(1)))()
  broken = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), state.params["discriminator"])
  state = state.replace(params=state.params | {"discriminator": broken})
  _, metrics = step_of(ALGORITHM, 1)(state, jax.device_put(batches(0), batch_sharding(mesh_of(1))))
  assert "discriminator/loss" in metrics.not_finite() and "hyperparameters/gamma" not in metrics.not_finite()


class Counting:
  """One parameter, raised by 1 in every iteration and, on the same batch, by 10 in the first of every 3."""

  image_shape, num_classes, averages = (2, 2, 1), 0, {}
  optimizers: ClassVar = {"a": optax.with_extra_args_support(optax.sgd(1.0))}

  def __init__(self, bad=0.0):
    self.schedules = {"bad": lambda images_seen: jnp.where(images_seen >= 56, bad, 0.0)}

  @property
  def phases(self):
    return (
      Phase("often", ("a",), partial(self.gradients, 1.0), counts_images=True, group=2),
      Phase("seldom", ("a",), partial(self.gradients, 10.0), every=3, fresh_batch=False),
    )

  def init(self, key):
    return {"a": jnp.zeros(())}, {"mean": jnp.zeros(())}

  def gradients(self, size, params, carry, batch, keys, hyperparameters):
    """The carry goes halfway to the batch's mean."""
    mean = jax.lax.pmean(jnp.mean(batch["image"]), "data")
    carry = {"mean": carry["mean"] + (mean - carry["mean"]) / 2}
    bad = jnp.where(hyperparameters["bad"] > 0, jnp.nan, 0.0)
    return {"a": 0 * params["a"] - size}, carry, {"mean": jnp.mean(batch["image"]), "bad": bad}


def count(bad=0.0, iterations=7, devices=2, micro_batches=None):
  mesh = mesh_of(devices)
  state = jax.jit(lambda: init_state(Counting(bad), 0), out_shardings=replicated(mesh))()
  step = make_train_step(Counting(bad), mesh, micro_batches)
  numbers = []
  for i in range(iterations):
    state, metrics = step(state, ({"image": np.full((8, 2, 2, 1), i, np.float32)},))
    numbers.append(jax.device_get((state.params["a"], state.carry["mean"], metrics)))
  return numbers


@pytest.mark.parametrize("devices, micro_batches", [(2, None), (1, {"often": 2, "seldom": 4})])
def test_a_phase_of_every_third_iteration(devices, micro_batches):
  """A skipped phase changes neither parameters nor carry, and its metrics are marked."""
  numbers = count(devices=devices, micro_batches=micro_batches)
  expected, carry = 0, 0.0
  for i, (a, mean, metrics) in enumerate(numbers):
    due = i % 3 == 0
    expected += 1 + 10 * due
    for _ in range(1 + due):
      carry += (i - carry) / 2
    assert a == expected and not metrics.not_finite()
    np.testing.assert_allclose(mean, carry, rtol=1e-6)
    assert metrics.values["often/mean"] == metrics.values["a/gradient_norm"] - 1 + i
    assert metrics.values["seldom/mean"] == (i if due else 0)
    assert metrics.ran == dict.fromkeys(("seldom/mean", "seldom/bad", "a/gradient_norm_every_3"), due)


def test_a_non_finite_value_differs_from_a_skipped_phase():
  *_, (_, _, good), (_, _, bad) = count(bad=1.0, iterations=8)
  assert not good.not_finite() and bad.not_finite() == ["often/bad"] and not bad.ran["seldom/bad"]
  window = MetricWindow("the cure")
  window.add(48, good)
  window.add(56, bad)
  with pytest.raises(Diverged, match=r"often/bad not finite\. the cure"):
    window.check_pending()


def test_means_are_over_the_iterations_in_which_a_phase_ran():
  window = MetricWindow("")
  for i, (_, _, metrics) in enumerate(count()[:5]):
    window.add(i, metrics)
  window.check_pending()
  means = window.means()
  assert (means["often/mean"], means["seldom/mean"]) == (2.0, 1.5)  # of 0 to 4; of 0 and 3
  window.add(5, count()[4][2])
  window.check_pending()
  assert "seldom/mean" not in window.means()


def test_images_are_counted_in_every_iteration():
  with pytest.raises(ValueError, match="phase 'a' counts images"):
    Phase("a", ("a",), lambda: None, counts_images=True, every=2)


class Zoo:
  """Networks "a" and "b" of one parameter each; subclasses define their gradients by hand."""

  image_shape, num_classes, averages = (2, 2, 1), 0, {}
  optimizers: ClassVar = {
    "a": at_rate(optax.trace(decay=0.9), "rate_of_a"),
    "b": at_rate(optax.identity(), "rate_of_b"),
  }
  schedules: ClassVar = {
    "rate_of_a": schedules.constant(0.1),
    "rate_of_b": schedules.constant(0.2),
    "half_life": schedules.constant(4.0),
  }

  def init(self, key):
    return {"a": jnp.ones(()), "b": jnp.ones(())}, {"mean": jnp.zeros(())}

  def trained(self, iterations=1, devices=2, micro_batches=None, batch=4):
    """Returns the state and the metrics after some iterations on the numbers 0, 1, ..., one per sample."""
    mesh = mesh_of(devices)
    state = jax.jit(lambda: init_state(self, 0), out_shardings=replicated(mesh))()
    step = make_train_step(self, mesh, micro_batches)
    sizes = [batch * phase.batches for phase in self.phases for _ in range(phase.repeat) if phase.fresh_batch]
    starts = np.cumsum([0, *sizes])
    for i in range(iterations):
      numbers = np.arange(starts[-1], dtype=np.float32) + i * starts[-1]
      images = [np.tile(part[:, None, None, None], (1, 2, 2, 1)) for part in np.split(numbers, starts[1:-1])]
      state, metrics = step(state, tuple({"image": image} for image in images))
    return state, jax.device_get(metrics.values)


class Repeated(Zoo):
  """Three updates of both networks per iteration, with gradients from the mean of a batch of their own."""

  @property
  def averages(self):
    return {"slow": Average("a", "half_life"), "slow_mean": Average("mean", "half_life")}

  @property
  def phases(self):
    return (Phase("both", ("a", "b"), self.gradients, counts_images=True, repeat=3),)

  def gradients(self, params, carry, batch, keys, hyperparameters):
    mean = jnp.mean(batch["image"])
    gradients = {"a": params["a"] * mean, "b": -params["b"] * mean}
    carry = {"mean": carry["mean"] + jax.lax.pmean(mean, "data")}
    draw = jnp.mean(jax.vmap(lambda key: jax.random.uniform(key, ()))(keys))
    return gradients, carry, {"mean": mean, "draw": draw}


@pytest.mark.parametrize("devices, micro_batches", [(1, None), (2, None), (1, {"both": 2})])
def test_a_phase_that_is_repeated(devices, micro_batches):
  """Updates by hand: each has its own batch and keys, each network its own optimiser; metrics are means."""
  state, metrics = Repeated().trained(1, devices, micro_batches)
  a, trace, b, total = 1.0, 0.0, 1.0, 0.0
  for mean in (1.5, 5.5, 9.5):
    trace = 0.9 * trace + a * mean
    a, b, total = a - 0.1 * trace, b + 0.2 * b * mean, total + mean
  kept = 0.5 ** (12 / 4)
  np.testing.assert_allclose(
    [state.params["a"], state.params["b"], state.carry["mean"]], [a, b, total], rtol=1e-5, err_msg="a, b, carry"
  )
  np.testing.assert_allclose(
    [state.ema["slow"], state.ema["slow_mean"]], [a + kept * (1 - a), total + kept * (0 - total)], rtol=1e-5
  )
  assert state.images_seen == 12 and metrics["both/mean"] == 5.5
  keys = jax.random.split(jax.random.fold_in(jax.random.fold_in(init_state(Repeated(), 0).rng, 0), 0), 12)
  draws = jax.vmap(lambda key: jax.random.uniform(key, ()))(keys)
  np.testing.assert_allclose(metrics["both/draw"], np.mean(draws), rtol=1e-6)
  params, carry = averaged(Repeated(), state)
  assert (params["a"], carry["mean"]) == (state.ema["slow"], state.ema["slow_mean"]) and params["b"] == state.params[
    "b"
  ]


class Doubled(Zoo):
  """A phase of one batch, then one of two batches that takes moments over all of their images."""

  @property
  def phases(self):
    return (
      Phase("single", ("a",), self.gradients("a"), counts_images=True),
      Phase("double", ("b",), self.gradients("b"), batches=2, group=None),
    )

  def gradients(self, network):
    def of_batch(params, carry, batch, keys, hyperparameters):
      values = batch["image"]
      mean, mean_square = jax.lax.pmean((jnp.mean(values), jnp.mean(jnp.square(values))), "data")
      return {network: 0 * params[network] - 1}, {"mean": mean}, {"variance": mean_square - jnp.square(mean)}

    return of_batch


@pytest.mark.parametrize("devices", [1, 4])
def test_a_phase_of_two_batches_with_batch_statistics(devices):
  state, metrics = Doubled().trained(1, devices)
  assert state.images_seen == 4 and state.carry["mean"] == np.mean(np.arange(4, 12))
  assert metrics["single/variance"] == np.var(np.arange(4)) and metrics["double/variance"] == np.var(np.arange(4, 12))


def test_micro_batches_with_batch_statistics_are_refused():
  with pytest.raises(ValueError, match="phase 'double' needs whole batches, but its micro-batch size is 2"):
    Doubled().trained(micro_batches={"double": 2})


class Normed(Zoo):
  """The spectral norm of a matrix by one power iteration per update: a carry computed from parameters alone."""

  def init(self, key):
    return {"a": jnp.ones(()), "b": jnp.diag(jnp.array([3.0, 1.0]))}, {
      "u": jnp.array([0.6, 0.8]),
      "norm": jnp.zeros(()),
    }

  @property
  def phases(self):
    return (Phase("b", ("b",), self.gradients, counts_images=True, repeat=2, refresh=self.power_step),)

  def power_step(self, params, carry):
    v = params["b"] @ carry["u"]
    v = v / jnp.linalg.norm(v)
    u = params["b"].T @ v
    return {"u": u / jnp.linalg.norm(u), "norm": v @ params["b"] @ (u / jnp.linalg.norm(u))}

  def gradients(self, params, carry, batch, keys, hyperparameters):
    return {"b": 0 * params["b"]}, carry, {"norm": carry["norm"]}


@pytest.mark.parametrize("devices, micro_batches", [(1, None), (2, None), (1, {"b": 1})])
def test_refreshed_carry(devices, micro_batches):
  """There is one power iteration per update, however the batch is split; norms by hand."""
  state, metrics = Normed().trained(1, devices, micro_batches)
  np.testing.assert_allclose(state.carry["norm"], 2.996755, rtol=1e-6)
  np.testing.assert_allclose(metrics["b/norm"], (2.771356 + 2.996755) / 2, rtol=1e-6)


class Twice(Repeated):
  @property
  def phases(self):
    return super().phases * 2


def test_two_phases_with_equal_metric_names_are_refused():
  with pytest.raises(ValueError, match="two phases measure"):
    Twice().trained()


@pytest.mark.parametrize("wrong", [{"repeat": 2}, {"batches": 2}])
def test_a_phase_that_reuses_a_batch_cannot_repeat_or_enlarge_it(wrong):
  with pytest.raises(ValueError, match="phase 'a' reuses a batch"):
    Phase("a", ("a",), lambda: None, fresh_batch=False, **wrong)
