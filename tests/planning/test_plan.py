"""The training step as traced for accelerators."""

import importlib

import pytest
from helpers.meshes import mesh_of

from r3gan_jax import factory
from r3gan_jax.planning.hlo import bfloat16_sums
from r3gan_jax.planning.plan import traced_step


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
