"""A training iteration for benchmarks: built from a recipe, run on random images, or only compiled."""

import argparse
import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from r3gan_jax import factory
from r3gan_jax.algorithms.base import GAN
from r3gan_jax.losses.penalties import PenalisedGradient
from r3gan_jax.planning.tracing import traced_step
from r3gan_jax.training.loop import Experiment
from r3gan_jax.training.mesh import batch_sharding, make_mesh, replicated
from r3gan_jax.training.state import init_state

ROOT = Path(__file__).resolve().parent.parent
PRESETS = (
  "configs/stacked_mnist.py",
  "configs/cifar10.py",
  "configs/cifar10.py:unconditional",
  "configs/ffhq64.py",
  "configs/ffhq256.py",
  "configs/imagenet32.py",
  "configs/imagenet64.py",
)
"""The recipes of the paper's main experiments."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--config", default="configs/cifar10.py:unconditional", help="the recipe (%(default)s)")
  parser.add_argument("--batch", type=int, default=4, help="images per iteration (%(default)s)")


def load_recipe(recipe: str) -> ConfigDict:
  """Loads configs/NAME.py[:variant]."""
  path, _, variant = recipe.partition(":")
  spec = importlib.util.spec_from_file_location("recipe", ROOT / path)
  assert spec and spec.loader, f"{recipe} is not a Python file"
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(variant)


def load_config(recipe: str, batch: int, bfloat16: bool = False) -> ConfigDict:
  """Loads a recipe for timing: with this batch size, without augmentation, in float32 or the recipe's bfloat16."""
  config = load_recipe(recipe)
  config.batch_size = batch
  plain = {"augment_p": (0.0, 0.0), "bfloat16": "on" if bfloat16 else "off"}
  config.gan.update({name: value for name, value in plain.items() if name in config.gan})
  return config


def build(config: ConfigDict, penalised_gradient: PenalisedGradient | None = None) -> Experiment:
  """Builds the recipe's experiment, with `penalised_gradient` instead of the configured one."""
  experiment = factory.build_experiment(config, device_count=1)
  if penalised_gradient is None:
    return experiment
  algorithm = dataclasses.replace(experiment.algorithm, penalised_gradient=penalised_gradient)  # type: ignore[type-var]
  return dataclasses.replace(experiment, algorithm=algorithm)


def with_native_convolutions(config: ConfigDict) -> ConfigDict:
  """Switches to XLA's own grouped convolution, the only one whose FLOPs XLA counts in full on all platforms."""
  config = config.copy_and_resolve_references()
  config.gan.grouped_conv = "native"
  return config


def lower(experiment: Experiment, device_count: int = 1) -> jax.stages.Lowered:
  """Lowers an iteration for the first devices, from shapes alone; allocates nothing."""
  return traced_step(experiment, make_mesh(jax.devices()[:device_count])).lower()


class Iteration:
  """A training state on the first device; every call runs one iteration of `compiled`, from `lower`."""

  def __init__(self, experiment: Experiment, compiled: jax.stages.Compiled):
    mesh = make_mesh(jax.devices()[:1])
    init = jax.jit(lambda: init_state(experiment.algorithm, seed=0), out_shardings=replicated(mesh))
    self._state: Any = init()
    self._batches = jax.device_put(random_batches(experiment), batch_sharding(mesh))
    self._compiled = compiled

  def __call__(self) -> Any:
    """Runs an iteration and returns its metrics."""
    self._state, metrics = self._compiled(self._state, self._batches)
    return metrics


def random_batches(experiment: Experiment) -> tuple[dict[str, np.ndarray], ...]:
  """Returns a batch per phase: uniform pixels, and labels 0, 1, 2, ..."""
  random = np.random.default_rng(0)
  algorithm, made = experiment.algorithm, []
  # Those of the data: a semi-supervised GAN has labels, but unconditional samples.
  classes = algorithm.images.num_classes if isinstance(algorithm, GAN) else algorithm.num_classes
  for size in experiment.batch_sizes:
    batch = {"image": random.integers(0, 256, (size, *algorithm.input_shape), np.uint8)}
    if classes:
      batch["label"] = np.arange(size, dtype=np.int32) % classes
    made.append(batch)
  return tuple(made)
