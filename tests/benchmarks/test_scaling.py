"""Data parallelism: each of n devices does 1 / n of the work, and only gradients and scalars are exchanged."""

import jax
import pytest

from benchmarks import iteration, measure
from r3gan_jax.planning.hlo import collectives

BATCH = 64
DEVICES = 8


@pytest.fixture(scope="module")
def config():
  config = iteration.load_config("configs/cifar10.py:smoke", BATCH)
  config.data.resolution = 8
  for name in ("widths", "cardinalities", "blocks"):
    config.gan[name] = config.gan[name][:2]
  return config


def test_each_of_8_devices_does_an_eighth_of_the_work(config):
  experiment = iteration.build(iteration.with_native_convolutions(config))
  alone, shared = (measure.flops(iteration.lower(experiment, devices).compile()) for devices in (1, DEVICES))
  assert shared * DEVICES == pytest.approx(alone, rel=0.03)


def test_only_gradients_and_scalars_cross_devices(config):
  experiment = iteration.build(config)
  found = collectives(iteration.lower(experiment, DEVICES).compile().as_text())
  assert {collective.kind for collective in found} == {"all-reduce"}
  params, _ = jax.eval_shape(lambda: experiment.algorithm.init(jax.random.key(0)))
  gradients = sum(4 * leaf.size for leaf in jax.tree.leaves(params))
  scalars = sum(collective.size for collective in found) - gradients
  assert 0 <= scalars <= 4 * 30
