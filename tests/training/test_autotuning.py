"""The choice of algorithms by measurement, here among those of the CPU and with a stand-in for the clock."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from helpers.meshes import mesh_of

from configs import stacked_digits
from r3gan_jax import factory
from r3gan_jax.ops.grouped_conv import MEASURED, OPERATIONS, choose
from r3gan_jax.planning.tracing import traced_step
from r3gan_jax.training import autotuning

ROOT = Path(__file__).parent.parent.parent
CANDIDATES = {"cpu": ("native", "per_group", "merged_4")}


@pytest.fixture(autouse=True)
def nothing_measured(monkeypatch, tmp_path):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  yield
  MEASURED.clear()


def step(devices):
  """Returns the traced smoke step with 8 images: 2 groups of channels at 4x4, 8x8 pixels and so on."""
  config = stacked_digits.get_config("smoke")
  config.batch_size = 8
  return traced_step(factory.build_experiment(config, devices), mesh_of(devices))


class Clock:
  """Says that, of all algorithms, `fastest` takes the least time for an operation."""

  def __init__(self, **fastest):
    self.fastest, self.asked = fastest, []

  def __call__(self, case, algorithm):
    self.asked.append((case.shape, algorithm))
    return 1.0 if algorithm == self.fastest[case.shape.operation] else 2.0


def tune(clock, stopped=lambda: False):
  autotuning.tune(lambda: step(2), jax.devices()[0], stopped, CANDIDATES, clock)


def test_the_convolutions_of_a_step():
  """Each in all three operations, at the resolutions of the networks, with one device's largest batch."""
  whole, half = (autotuning.cases(step(devices).jaxpr.jaxpr) for devices in (1, 2))
  config = stacked_digits.get_config("smoke")
  assert {case.shape.operation for case in whole} == set(OPERATIONS)
  sides = {case.shape.height for case in whole if case.shape.kernel_size == (3, 3)}
  assert sides == {side for side in (4, 8, 16, 32) if side <= config.data.resolution}
  assert [case.shape for case in whole] == [case.shape for case in half]
  assert {case.batch for case in whole} == {16} and {case.batch for case in half} == {8}  # D has reals and fakes
  assert len({case.shape for case in whole}) == len(whole)


def test_the_fastest_is_taken_and_kept(tmp_path):
  clock = Clock(conv="native", input_gradient="per_group", weight_gradient="per_group")
  tune(clock)
  shapes = {shape for shape, _ in clock.asked}
  assert {shape.operation: choose("cpu", shape) for shape in shapes} == clock.fastest
  # Two groups cannot be merged by four.
  assert sorted(clock.asked) == sorted((shape, name) for shape in shapes for name in ("native", "per_group"))
  assert {choose("cpu", shape, portable=True) for shape in shapes} == {"per_group"}
  assert {choose("cuda", shape) for shape in shapes} == {"native"}

  MEASURED.clear()
  unasked = Clock()
  tune(unasked)
  assert not unasked.asked and {shape.operation: choose("cpu", shape) for shape in shapes} == clock.fastest

  (file,) = tmp_path.rglob("grouped_conv_seconds.json")
  file.write_text("{")  # not whole: measured again
  again = Clock(conv="per_group", input_gradient="native", weight_gradient="native")
  tune(again)
  assert {shape.operation: choose("cpu", shape) for shape in shapes} == again.fastest


def test_a_stopped_process_measures_no_more():
  clock = Clock(conv="per_group", input_gradient="per_group", weight_gradient="per_group")
  tune(clock, stopped=lambda: len(clock.asked) >= 3)
  assert len(clock.asked) == 3


def test_what_was_measured_is_compiled():
  """XLA's grouped convolution where it was the fastest, and else one convolution a group."""
  assert "feature_group_count = 2" not in step(2).lower().as_text()
  tune(Clock(conv="native", input_gradient="per_group", weight_gradient="per_group"))
  text = step(2).lower().as_text()
  assert "feature_group_count = 2" in text and "batch_group_count = 2" not in text


def test_times_of_every_operation():
  case_of = {case.shape.operation: case for case in autotuning.cases(step(1).jaxpr.jaxpr)}
  assert case_of.keys() == set(OPERATIONS)
  for case in case_of.values():
    assert 0 < autotuning.seconds(case, "native") < 60


def test_an_algorithm_that_does_not_run_is_never_the_fastest(monkeypatch):
  def conv(x, kernel, **_):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no room")

  case = autotuning.cases(step(1).jaxpr.jaxpr)[0]
  monkeypatch.setitem(autotuning.ALGORITHMS, "per_group", autotuning.ALGORITHMS["per_group"]._replace(conv=conv))
  assert case.shape.operation == "conv" and autotuning.seconds(case, "per_group") == float("inf")


PROCESS = """
import sys
import jax
port, process = map(int, sys.argv[1:])
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=process)
from r3gan_jax import factory
from configs import stacked_digits
from r3gan_jax.ops.grouped_conv import MEASURED
from r3gan_jax.planning.tracing import traced_step
from r3gan_jax.training.autotuning import tune
from r3gan_jax.training.mesh import make_mesh
config = stacked_digits.get_config("smoke")
experiment = factory.build_experiment(config, 2)
asked = []
def seconds(case, algorithm):
  asked.append(algorithm)
  return 1.0 if (algorithm == "native") == (case.shape.operation == "conv") else 2.0
step = lambda: traced_step(experiment, make_mesh())
tune(step, jax.local_devices()[0], candidates={"cpu": ("native", "per_group")}, seconds=seconds)
print(len(asked), sorted(MEASURED.items()))
"""


def test_all_processes_take_the_choices_of_the_first():
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  environment = os.environ | {"PYTHONPATH": str(ROOT)}
  started = [
    subprocess.Popen(
      [sys.executable, "-c", PROCESS, str(port), str(process)], env=environment, text=True, stdout=subprocess.PIPE
    )
    for process in range(2)
  ]
  # Gloo prints, too.
  first, second = (process.communicate(timeout=120)[0].splitlines()[-1].split(" ", 1) for process in started)
  assert int(first[0]) > 0 and int(second[0]) == 0
  assert first[1] == second[1] and "native" in first[1] and "per_group" in first[1]
