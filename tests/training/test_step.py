"""Laws of the training step: how the batch is split does not matter, nothing recompiles, nothing is gathered."""

import re
from functools import partial
from typing import ClassVar

import golden_cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from r3gan_jax import schedules
from r3gan_jax.algorithms.base import Average, Phase
from r3gan_jax.algorithms.r3gan import R3GAN
from r3gan_jax.augment.parameters import TRANSFORMS
from r3gan_jax.augment.pipeline import augment
from r3gan_jax.networks.r3gan import Discriminator, Generator
from r3gan_jax.training.mesh import batch_sharding, make_mesh, replicated
from r3gan_jax.training.progress import Diverged, MetricWindow
from r3gan_jax.training.state import init_state
from r3gan_jax.training.step import make_train_step

BATCH = 16
SHAPE = {"widths": (8, 8), "cardinalities": (2, 2), "blocks": (1, 1), "num_classes": 3, "embed_dim": 8}
RAMPS = {
  "learning_rate": schedules.cosine(1e-3, 1e-4, 64),
  "beta2": schedules.cosine(0.9, 0.99, 64),
  "gamma": schedules.cosine(1.0, 0.1, 64),
  "ema_half_life": schedules.cosine(0.0, 100.0, 64),
  "augment_p": schedules.cosine(0.2, 0.8, 64),
}
ALGORITHM = R3GAN(
  Generator(**SHAPE, noise_dim=8),
  Discriminator(**SHAPE),
  8,
  (8, 8, 3),
  num_classes=3,
  augment=partial(augment, multipliers=dict.fromkeys(TRANSFORMS, 1.0)),
  ramps=RAMPS,
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


def train(devices=1, micro_batches=None, iterations=3):
  mesh = make_mesh(devices)
  state = jax.jit(lambda: init_state(ALGORITHM, 0), out_shardings=replicated(mesh))()
  step = make_train_step(ALGORITHM, mesh, micro_batches)
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
  return state, jax.device_get(metrics)


@pytest.fixture(scope="module")
def reference():
  return train()


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
    # Adam divides small gradients by themselves, so whole vectors are compared.
    assert golden_cases.relative_errors(tree, expected)["all"] < 1e-5
  for name, value in reference[1].items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-3, atol=1e-5, err_msg=name)


def test_metrics_and_knobs(reference):
  metrics = reference[1]
  assert metrics["finite"] == 1
  np.testing.assert_allclose(metrics["knobs/gamma"], RAMPS["gamma"](jnp.int32(2 * BATCH)), rtol=1e-6)
  assert metrics["discriminator/gradient_norm"] > 0 and metrics["generator/gradient_norm"] > 0


def test_draws_differ_between_iterations_phases_and_samples():
  seen = []

  class Recording(R3GAN):
    def noise(self, rngs):
      z = super().noise(rngs)
      jax.debug.callback(lambda z: seen.append(np.asarray(z)), z)
      return z

  mesh = make_mesh(1)
  algorithm = Recording(ALGORITHM.generator, ALGORITHM.discriminator, 8, (8, 8, 3), num_classes=3, ramps=RAMPS)
  state = jax.jit(lambda: init_state(algorithm, 0))()
  step = make_train_step(algorithm, mesh)
  for i in range(2):
    state, _ = step(state, batches(i))
  jax.block_until_ready(state)
  jax.effects_barrier()
  drawn = np.concatenate(seen)
  assert drawn.shape == (4 * BATCH, 8)
  assert len(np.unique(drawn[:, 0])) == 4 * BATCH


def test_not_finite_is_reported():
  mesh = make_mesh(1)
  state = jax.jit(lambda: init_state(ALGORITHM, 0))()
  broken = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), state.params["discriminator"])
  state = state.replace(params=state.params | {"discriminator": broken})
  _, metrics = make_train_step(ALGORITHM, mesh)(state, batches(0))
  assert metrics["finite"] == 0


def test_collectives_are_gradients_and_scalars_only():
  """Under shard_map XLA may only average: nothing of the batch's size may cross devices."""
  mesh = make_mesh(8)
  state = jax.eval_shape(lambda: init_state(ALGORITHM, 0))
  abstract = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype), (state, batches(0)))
  text = make_train_step(ALGORITHM, mesh).lower(*abstract).compile().as_text()
  found = set(re.findall(r"= .*? (all-gather|all-to-all|all-reduce|reduce-scatter|collective-permute)[-(.]", text))
  assert found == {"all-reduce"}


class Counting:
  """One number, moved by 1 every iteration and by 10, of the same batch, in the first of every 3."""

  image_shape, num_classes, averages = (2, 2, 1), 0, {}
  optimizers: ClassVar = {"a": optax.with_extra_args_support(optax.sgd(1.0))}

  def __init__(self, bad=0.0):
    self.ramps = {"bad": lambda images_seen: jnp.where(images_seen >= 56, bad, 0.0)}

  @property
  def phases(self):
    return (
      Phase("often", ("a",), partial(self.gradients, 1.0), counts_images=True, group=2),
      Phase("seldom", ("a",), partial(self.gradients, 10.0), every=3, fresh_batch=False),
    )

  def init(self, rng):
    return {"a": jnp.zeros(())}, {"mean": jnp.zeros(())}

  def gradients(self, size, params, carry, batch, rngs, knobs):
    """The carry goes halfway to the batch's mean."""
    mean = jax.lax.pmean(jnp.mean(batch["image"]), "data")
    carry = {"mean": carry["mean"] + (mean - carry["mean"]) / 2}
    bad = jnp.where(knobs["bad"] > 0, jnp.nan, 0.0)
    return {"a": 0 * params["a"] - size}, carry, {"mean": jnp.mean(batch["image"]), "bad": bad}


def count(bad=0.0, iterations=7, devices=2, micro_batches=None):
  mesh = make_mesh(devices)
  state = jax.jit(lambda: init_state(Counting(bad), 0), out_shardings=replicated(mesh))()
  step = make_train_step(Counting(bad), mesh, micro_batches)
  numbers = []
  for i in range(iterations):
    state, metrics = step(state, ({"image": np.full((8, 2, 2, 1), i, np.float32)},))
    numbers.append(jax.device_get((state.params["a"], state.carry["mean"], metrics)))
  return numbers


@pytest.mark.parametrize("devices, micro_batches", [(2, None), (1, {"often": 2, "seldom": 4})])
def test_a_phase_of_every_third_iteration(devices, micro_batches):
  """Skipped, it changes neither parameters nor carry, and its metrics are NaN, which is not divergence."""
  numbers = count(devices=devices, micro_batches=micro_batches)
  expected, carry = 0, 0.0
  for i, (a, mean, metrics) in enumerate(numbers):
    due = i % 3 == 0
    expected += 1 + 10 * due
    for _ in range(1 + due):
      carry += (i - carry) / 2
    assert a == expected and metrics["finite"] == 1
    np.testing.assert_allclose(mean, carry, rtol=1e-6)
    assert metrics["often/mean"] == metrics["a/gradient_norm"] - 1 + i
    assert (metrics["seldom/mean"] == i) == due and np.isnan(metrics["seldom/mean"]) != due
    assert np.isnan(metrics["a/gradient_norm_every_3"]) != due


def test_what_is_not_a_number_in_a_phase_that_ran_is_told_from_a_phase_that_was_skipped():
  *_, (_, _, good), (_, _, bad) = count(bad=1.0, iterations=8)
  assert good["finite"] == 1 and bad["finite"] == 0
  window = MetricWindow("the cure")
  window.add(48, good)
  window.add(56, bad)
  with pytest.raises(Diverged, match=r"not finite: often/bad\. the cure"):
    window.catch_up()


def test_means_are_over_the_iterations_that_ran():
  window = MetricWindow("")
  for i, (_, _, metrics) in enumerate(count()[:5]):
    window.add(i, metrics)
  window.catch_up()
  means = window.means()
  assert (means["often/mean"], means["seldom/mean"]) == (2.0, 1.5)  # of 0 to 4; of 0 and 3
  window.add(5, count()[4][2])
  window.catch_up()
  assert "seldom/mean" not in window.means()


def test_images_are_counted_in_every_iteration():
  with pytest.raises(ValueError, match="runs in each of them"):
    Phase("a", ("a",), lambda: None, counts_images=True, every=2)


def test_another_kind_of_gan():
  """One phase that updates two networks, a carry, an optimiser and an average of its own: no edit under training/."""

  class Pair:
    image_shape, num_classes = (2, 2, 1), 0
    optimizers: ClassVar = {name: optax.with_extra_args_support(optax.sgd(0.1, momentum=0.9)) for name in "ab"}
    ramps: ClassVar = {"half_life": lambda images_seen: jnp.float32(4.0)}

    @property
    def averages(self):
      return {"slow": Average("a", "half_life")}

    @property
    def phases(self):
      return (Phase("both", ("a", "b"), self.gradients, counts_images=True),) * 2

    def init(self, rng):
      return {"a": jnp.ones(()), "b": jnp.ones(())}, {"mean": jnp.zeros(())}

    def gradients(self, params, carry, batch, rngs, knobs):
      mean = jnp.mean(batch["image"])
      gradients = {"a": params["a"] * mean, "b": -params["b"] * mean}
      carry = {"mean": jax.lax.pmean(mean, "data")}
      return gradients, carry, {"mean": mean}

    def noise(self, rngs):
      raise AssertionError

    def generate(self, params, carry, noise, labels):
      raise AssertionError

  algorithm, mesh = Pair(), make_mesh(2)
  state = jax.jit(lambda: init_state(algorithm, 0), out_shardings=replicated(mesh))()
  step = make_train_step(algorithm, mesh)
  images = np.arange(16, dtype=np.float32).reshape(4, 2, 2, 1)
  state, metrics = step(state, ({"image": images}, {"image": images}))
  assert state.images_seen == 8
  assert state.carry["mean"] == 7.5 and metrics["both/mean"] == 7.5
  # Momentum: 1 - 0.75 = 0.25, then 0.25 - 0.1 (0.9 * 7.5 + 0.25 * 7.5) = -0.6125; the average keeps 0.5^(8 / 4).
  np.testing.assert_allclose(state.params["a"], -0.6125, rtol=1e-5)
  np.testing.assert_allclose(state.ema["slow"], -0.6125 + 0.25 * 1.6125, rtol=1e-5)
