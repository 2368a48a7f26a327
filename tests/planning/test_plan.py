"""The training step as traced for accelerators, and the numbers of a plan."""

import dataclasses
import importlib
from types import SimpleNamespace

import pytest
from helpers.meshes import mesh_of

from configs import cifar10
from r3gan_jax import factory
from r3gan_jax.errors import UserError
from r3gan_jax.planning import plan as planning
from r3gan_jax.planning.hlo import Collective, bfloat16_sums
from r3gan_jax.planning.plan import Plan, compile_for_topology, describe_plan, fitted_to, multiply_adds_per_image
from r3gan_jax.planning.topology import GIB, parse_topology
from r3gan_jax.planning.tracing import traced_step


@pytest.mark.parametrize("platform, lowered_for", [("gpu", "cuda"), ("tpu", "tpu")])
@pytest.mark.parametrize("recipe", ["cifar10:smoke", "roadmap:a_smoke", "roadmap:c2_smoke", "roadmap:d1_smoke"])
def test_training_sums_nothing_in_bfloat16(recipe, platform, lowered_for):
  """Not even a few terms, with all stages in bfloat16: gradients of biases, styles, noise and embeddings, losses."""
  name, _, variant = recipe.partition(":")
  config = importlib.import_module(f"configs.{name}").get_config(variant)
  config.data.resolution = 8
  for setting in {"widths", "cardinalities", "blocks"} & set(config.gan):
    config.gan[setting] = config.gan[setting][:2]
  config.gan.bfloat16_stages = 2
  mesh = mesh_of(1)
  experiment = factory.build_experiment(config, mesh.size, platform)
  text = traced_step(experiment, mesh).lower(lowering_platforms=(lowered_for,)).as_text("hlo")
  assert "bf16[" in text
  assert not bfloat16_sums(text, terms=2)


GRADIENTS = (Collective("all-reduce", 600_000_000), Collective("all-reduce", 400_000_000))


def made(topology, **changes):
  plan = Plan(
    topology=parse_topology(topology),
    iterations=7200,
    every_phase=True,
    micro_batches={},
    flops=0.0,
    bytes_accessed=0.0,
    arguments=GIB,
    temporaries=3 * GIB,
    collectives=(*GRADIENTS, Collective("all-gather", 10**12)),
    text=GPU_TEXT,
  )
  return dataclasses.replace(plan, **changes)


GPU_TEXT = """
ENTRY %main (x: f32[2]) -> f32[2] {
  %x = f32[2]{0} parameter(0)
  ROOT %conv = f32[2]{0} convolution(%x, %x), metadata={op_name="jit(step)/stage_0/conv"}
}
"""


def test_times_of_a_plan():
  """By the v5e's 197 TFLOP/s, 819 GB/s and 200 GB/s; only all-reduces are sent."""
  assert made("v5e:2x2", flops=19.7e12, bytes_accessed=8.19e9).roofline_seconds == pytest.approx(0.1)
  assert made("v5e:2x2", flops=19.7e12, bytes_accessed=163.8e9).roofline_seconds == pytest.approx(0.2)
  assert made("v5e:2x2").all_reduce_seconds == pytest.approx(7.5e-3)
  assert made("v5e:2x2", flops=19.7e12).least_hours == pytest.approx(0.2)
  assert made("v5e:2x2").least_hours == pytest.approx(7.5e-3 * 2)
  assert made("v5e:2x2", every_phase=False).least_hours is None


def test_descriptions_of_plans(monkeypatch):
  monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
  text = describe_plan(made("v5e:2x2", flops=19.7e12))
  assert "4.00 of 16.0 GiB" in text and "at least 100 ms" in text and "7.5 ms for the all-reduces" in text
  assert "0.2 hours for the 7,200 iterations" in text and "cuDNN" not in text
  text = describe_plan(made("l40:2x8"))
  assert "4.00 of 33.4 GiB" in text and "44.5 GiB JAX takes 75%" in text
  assert "an unknown time for the all-reduces" in text
  assert "0 convolutions are calls of cuDNN" in text and "not a call of cuDNN: jit(step)/stage_0/conv" in text


def stand_in(needs, sizes):
  """Returns what stands in for `traced_step`: a step that needs `needs(images of a micro-batch)` bytes on a card.

  Each micro-batch that is compiled is added to `sizes`.
  """

  def traced(experiment, mesh, micro_batches):
    size = min(micro_batches.values(), default=8)
    sizes.append(size)
    memory = SimpleNamespace(argument_size_in_bytes=100, temp_size_in_bytes=int(needs(size)))
    compiled = SimpleNamespace(memory_analysis=lambda: memory, as_text=lambda: GPU_TEXT)
    lowered = SimpleNamespace(compile=lambda options: compiled)
    return SimpleNamespace(lower=lambda: lowered)

  return traced


def test_micro_batches_are_halved_until_they_fit_a_card(monkeypatch):
  """XLA's GPU compiler does not refuse a program that is too large."""
  monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
  monkeypatch.setattr(planning, "open_mesh", lambda topology: mesh_of(1))
  monkeypatch.setattr(planning, "_iteration_flops", lambda experiment, mesh: 1e12)
  experiment = factory.build_experiment(cifar10.get_config("smoke"), 1, "gpu")
  assert experiment.batch_size == 8
  usable = 0.75 * 84942979072

  def planned(needs):
    sizes = []
    monkeypatch.setattr(planning, "traced_step", stand_in(needs, sizes))
    micro_batches = compile_for_topology(experiment, "h100:1x1").micro_batches
    assert set(micro_batches) <= {"discriminator", "generator"}
    assert set(micro_batches.values()) <= {sizes[-1]}
    return sizes

  assert planned(lambda size: usable - 100) == [8]
  assert planned(lambda size: usable - 99 if size == 8 else 0) == [8, 4]
  assert planned(lambda size: usable / 3 * size) == [8, 2]  # 4 cannot fit
  assert planned(lambda size: usable / 4 + usable / 4 * size) == [8, 2]
  with pytest.raises(UserError, match="does not fit h100:1x1"):
    planned(lambda size: usable)
  monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "1e-9")  # less than the state
  with pytest.raises(UserError, match="does not fit h100:1x1"):
    planned(lambda size: 1)


def test_micro_batches_that_fit_devices_that_are_here():
  """By what XLA's CPU compiler states of the programs; a limit of nothing is refused."""
  mesh = mesh_of(2)
  experiment = factory.build_experiment(cifar10.get_config("smoke"), mesh.size)

  def used(experiment):
    memory = traced_step(experiment, mesh, experiment.micro_batches).lower().compile().memory_analysis()
    return memory.argument_size_in_bytes + memory.temp_size_in_bytes

  whole = used(experiment)
  assert fitted_to(mesh, experiment, whole).micro_batches == {}
  halved = fitted_to(mesh, experiment, whole - 1)
  assert halved.micro_batches in ({"discriminator": 2, "generator": 2}, {"discriminator": 1, "generator": 1})
  assert used(halved) < whole
  with pytest.raises(UserError, match="smallest micro-batches"):
    fitted_to(mesh, experiment, 1)


def test_a_batch_that_cannot_be_split_is_refused():
  with pytest.raises(UserError, match=r"config\.batch_size = 8 is not a multiple of the 3 devices of h100:1x3"):
    compile_for_topology(factory.build_experiment(cifar10.get_config("smoke"), 1, "gpu"), "h100:1x3")


def counted(recipe, batch_size=8, **changes):
  config = importlib.import_module(f"configs.zoo.{recipe}").get_config("smoke")
  config.batch_size = batch_size
  config.gan.update(changes)
  return multiply_adds_per_image(factory.build_experiment(config, 1))


def test_multiply_adds_of_perceptrons():
  """GAN's: one for each weight and sample in a forward pass, and two more for gradients of weights and of inputs."""
  units, pieces = 300, 5
  generator = 64 * units + units * units + units * 28 * 28
  first, upper = 28 * 28 * units * pieces, units * units * pieces + units  # layers of D
  of_discriminator = 4 * (first + upper) + 2 * upper  # real and fake: forward, weights, inputs above the first layer
  of_generator = 3 * generator + 2 * (first + upper)  # and D forward, and its inputs
  found = counted("gan", 64, noise_dim=64, widths=(units, units), units=(units, units), pieces=pieces)
  # Biases, dropout, maxima and optimisers are a few per cent.
  assert 1 < found / (of_discriminator + of_generator) < 1.1


def test_multiply_adds_follow_the_updates():
  """An iteration is n updates of D, on n batches, and one of G: per image D + G / n."""
  one, two, five = (counted("wgan_gp", critic_updates=n) for n in (1, 2, 5))
  of_generator = 2 * (one - two)
  assert of_generator > 0 and five == pytest.approx(one - 4 / 5 * of_generator, rel=0.02)


def test_multiply_adds_of_a_phase_that_seldom_runs(monkeypatch):
  config = importlib.import_module("configs.zoo.dcgan").get_config("smoke")
  experiment = factory.build_experiment(config, 1)
  seldom = dataclasses.replace(experiment.algorithm.phases[1], every=4)
  phases = (experiment.algorithm.phases[0], seldom)
  algorithm = SimpleNamespace(phases=phases)
  monkeypatch.setattr(planning, "_iteration_flops", lambda experiment, mesh: 1000.0)
  monkeypatch.setattr(planning, "traced_phase", lambda experiment, mesh, phase: phase)
  monkeypatch.setattr(planning, "_flops", lambda phase: {seldom.name: 400.0}[phase.name])
  found = multiply_adds_per_image(dataclasses.replace(experiment, algorithm=algorithm))
  assert found == (1000 - 3 / 4 * 400) / 2 / 8
