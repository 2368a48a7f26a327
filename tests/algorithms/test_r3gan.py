"""R3GAN against the recorded numbers of the official implementation."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import golden_cases
from helpers.meshes import mesh_of

from configs import cifar10
from r3gan_jax import factory, schedules
from r3gan_jax.algorithms.r3gan import R3GAN
from r3gan_jax.losses.penalties import gradient_penalty
from r3gan_jax.training.mesh import replicated
from r3gan_jax.training.state import init_state
from r3gan_jax.training.step import make_train_step


@dataclasses.dataclass(frozen=True)
class RecordedNoise(R3GAN):
  """R3GAN that takes z from the batch instead of its keys."""

  z: jax.Array | None = None

  @property
  def phases(self):
    def with_batch_noise(phase, method):
      def gradients(params, carry, batch, keys, hyperparameters):
        return getattr(dataclasses.replace(self, z=batch["z"]), method)(params, carry, batch, keys, hyperparameters)

      return dataclasses.replace(phase, gradients=gradients)

    discriminator, generator = super().phases
    return (
      with_batch_noise(discriminator, "_discriminator_gradients"),
      with_batch_noise(generator, "_generator_gradients"),
    )

  def noise(self, keys):
    return self.z


def recorded(case) -> RecordedNoise:
  algorithm = case.algorithm
  return RecordedNoise(**{f.name: getattr(algorithm, f.name) for f in dataclasses.fields(algorithm)})


def start(case):
  return {"generator": case.params("G", "generator"), "discriminator": case.params("D", "discriminator")}


def batch(case, z, real, labels):
  return {"image": jnp.asarray(real), "z": jnp.asarray(z)} | ({} if labels is None else {"label": jnp.asarray(labels)})


@pytest.mark.card
@golden_cases.cases
def test_forward_passes_and_penalties(case):
  case = golden_cases.load(case)
  algorithm, arrays, labels = case.algorithm, case.arrays, case.labels
  generate = jax.jit(lambda p, z: algorithm.generator.apply({"params": p}, z, labels))
  fake = generate(case.params("G", "generator"), arrays["z"])
  np.testing.assert_allclose(fake, arrays["fake"], rtol=1e-5, atol=1e-5 * np.abs(arrays["fake"]).max())
  ema_fake = generate(case.params("G_ema", "generator"), arrays["z"])
  np.testing.assert_allclose(ema_fake, arrays["ema_fake"], rtol=1e-5, atol=1e-5 * np.abs(arrays["ema_fake"]).max())

  discriminator = case.params("D", "discriminator")
  judge = jax.jit(
    lambda x: gradient_penalty(lambda x: algorithm.discriminator.apply({"params": discriminator}, x, labels), x)
  )
  for images, logits, penalty in (("real", "real_logits", "r1"), ("fake", "fake_logits", "r2")):
    ours_logits, ours_penalty = judge(arrays[images])
    np.testing.assert_allclose(ours_logits, arrays[logits], rtol=1e-5, atol=1e-5 * np.abs(arrays[logits]).max())
    np.testing.assert_allclose(ours_penalty, arrays[penalty], rtol=1e-5)
  np.testing.assert_allclose(
    algorithm.loss.discriminator(arrays["real_logits"], arrays["fake_logits"]), arrays["d_adversarial_loss"], rtol=1e-5
  )
  np.testing.assert_allclose(
    algorithm.loss.generator(arrays["real_logits"], arrays["fake_logits"]), arrays["g_adversarial_loss"], rtol=1e-5
  )


@pytest.mark.card
@golden_cases.cases
def test_gradients(case):
  case = golden_cases.load(case)
  hyperparameters = {"gamma": jnp.asarray(case.arrays["gamma"])}
  keys = jax.random.split(jax.random.key(0), len(case.arrays["z"]))
  inputs = batch(case, case.arrays["z"], case.arrays["real"], case.labels)
  for phase, recorded_gradients in zip(recorded(case).phases, ("dgrad", "ggrad"), strict=True):
    gradients, _, metrics = jax.jit(phase.gradients)(start(case), {}, inputs, keys, hyperparameters)
    (network,) = phase.updates
    golden_cases.assert_trees_close(gradients[network], case.params(recorded_gradients, network), 1e-5)
    if network == "discriminator":
      np.testing.assert_allclose(metrics["r1"], case.arrays["r1"].mean(), rtol=1e-5)
      np.testing.assert_allclose(metrics["r2"], case.arrays["r2"].mean(), rtol=1e-5)
      np.testing.assert_allclose(metrics["adversarial_loss"], case.arrays["d_adversarial_loss"].mean(), rtol=1e-5)
    else:
      np.testing.assert_allclose(metrics["loss"], case.arrays["g_adversarial_loss"].mean(), rtol=1e-5)


@pytest.mark.card
@pytest.mark.parametrize("devices, micro_batches", [(1, {}), (2, {"discriminator": 1, "generator": 2})])
@golden_cases.cases
def test_three_iterations(case, devices, micro_batches):
  """The training step, with Adam and EMA, reproduces the recorded parameters."""
  case = golden_cases.load(case)
  arrays = case.arrays
  size = arrays["z"].shape[0]

  def recorded_schedule(name):
    values = jnp.asarray(arrays[f"steps/{name}"])
    return lambda images_seen: values[images_seen // size]

  with np.errstate(divide="ignore"):  # a recorded decay of 0 is a half-life of 0
    half_life = jnp.asarray(size * np.log(0.5) / np.log(arrays["steps/ema_beta"]), jnp.float32)
  schedules = {
    "learning_rate": recorded_schedule("lr"),
    "beta2": recorded_schedule("beta2"),
    "gamma": recorded_schedule("gamma"),
    "ema_half_life": lambda images_seen: half_life[images_seen // size],
  }
  mesh = mesh_of(devices)
  algorithm = dataclasses.replace(recorded(case), schedules=schedules)
  state = jax.eval_shape(lambda: init_state(algorithm, seed=0))
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), state.optimizer)
  state = state.replace(
    params=start(case),
    optimizer=zeros,
    ema={"generator": case.params("G", "generator")},
    rng=jax.random.key(0),
    images_seen=jnp.zeros((), jnp.int32),
    rollbacks=jnp.zeros((), jnp.int32),
  )
  state = jax.device_put(state, replicated(mesh))
  step = make_train_step(algorithm, mesh, micro_batches)
  for i in range(3):
    batches = tuple(
      batch(
        case,
        arrays["steps/z"][i, j],
        arrays["steps/real"][i, j],
        None if case.labels is None else arrays["steps/labels"][i, j],
      )
      for j in range(2)
    )
    state, metrics = step(state, batches)
    assert not metrics.not_finite()
  assert state.images_seen == 3 * size
  # Adam normalises gradients, so rounding may flip the sign of entries near zero. Hence networks are compared as whole
  # vectors. (In float64 every leaf agrees to 3e-6.)
  for tree, prefix, network in (
    (state.params["generator"], "steps/G", "generator"),
    (state.params["discriminator"], "steps/D", "discriminator"),
    (state.ema["generator"], "steps/G_ema", "generator"),
  ):
    assert golden_cases.relative_errors(tree, case.params(prefix, network))["all"] < 2e-5


def test_learning_rate_of_edm2():
  """Of R3GAN2's CIFAR-10: 1e-2 with 1000 batches of 512 as reference, and a ramp of a million images."""
  config = cifar10.get_config()
  config.gan.update({"learning_rate_schedule": "inverse_sqrt", "learning_rate": 1e-2})
  config.gan.update({"learning_rate_ramp_images": 1_000_000, "learning_rate_decay_images": 512_000})
  ours, cosine = (factory.build_algorithm(made).schedules for made in (config, cifar10.get_config()))
  images = (0, 512_000, 1_000_000, 20_000_000)
  rates = [ours["learning_rate"](jnp.int32(n)) for n in images]
  np.testing.assert_allclose(rates, [0, 5.12e-3, 7.155417528e-3, 1.6e-3], rtol=1e-6)
  for name in ours.keys() - {"learning_rate"}:
    assert [ours[name](jnp.int32(n)) for n in images] == [cosine[name](jnp.int32(n)) for n in images]


def test_schedules():
  recorded_schedules = json.loads((golden_cases.GOLDEN / "schedules.json").read_text())
  ends = {"lr": (2e-4, 5e-5), "gamma": (0.05, 0.005), "beta2": (0.9, 0.99), "ema": (0, 5e6), "aug": (0, 0.55)}
  for name, (first, last) in ends.items():
    ours = [schedules.cosine(first, last, 20_000_000)(jnp.int32(n)) for n in recorded_schedules["nimg"]]
    # The absolute term is for cancellation in the recorded float64 at the beginning of a ramp.
    np.testing.assert_allclose(ours, recorded_schedules["values"][name], rtol=1e-6, atol=1e-15 * last, err_msg=name)
