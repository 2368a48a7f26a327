"""Gradients with the upper stages in bfloat16: as close to float32 as the official code's."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import golden_cases

from r3gan_jax.interop.official import to_params
from r3gan_jax.losses.adversarial import RELATIVISTIC
from r3gan_jax.losses.penalties import directional, grad_of_grad
from r3gan_jax.networks.r3gan import Discriminator, Generator

RECORDED = dict(np.load(golden_cases.GOLDEN / "r3gan_bfloat16_cond_32px.npz"))
META = json.loads(str(RECORDED["meta.json"]))
REAL, LABELS = np.moveaxis(RECORDED["real"], 1, -1), RECORDED["labels"]


def networks(**options):
  generator, discriminator = META["generator"], META["discriminator"]
  shape = {name: tuple(generator[name]) for name in ("widths", "cardinalities", "blocks")} | options
  classes = generator["num_classes"]
  return (
    Generator(**shape, noise_dim=generator["noise_dim"], num_classes=classes, embed_dim=generator["embed_dim"]),
    Discriminator(**shape, num_classes=classes, embed_dim=discriminator["embed_dim"]),
  )


def recorded(of_generator, of_discriminator):
  """Returns {"G": tree, "D": tree} recorded under two prefixes."""
  trees = {}
  for name, prefix, network in zip("GD", (of_generator, of_discriminator), networks(), strict=True):
    state = {key.removeprefix(f"{prefix}/"): RECORDED[key] for key in RECORDED if key.startswith(f"{prefix}/")}
    trees[name] = to_params(network, state)
  return trees


@jax.jit(static_argnames=("penalised_gradient", "options"))
def gradients(params, penalised_gradient, options):
  """Returns the gradients of G and D for one batch, with gamma = 1 as in the recording."""
  generator, discriminator = networks(**dict(options))

  def judge(params, images, bias_scale=None):
    return discriminator.apply({"params": params}, images, jnp.resize(LABELS, len(images)), bias_scale)

  def generate(params):
    return generator.apply({"params": params}, RECORDED["z"], LABELS)

  images = jnp.concatenate([REAL, generate(params["G"])])

  def objective(logits, squared_norms):
    losses = RELATIVISTIC.discriminator(*jnp.split(logits, 2)) + sum(jnp.split(squared_norms, 2)) / 2
    return jnp.mean(losses), {}

  of_discriminator, _ = penalised_gradient(judge, params["D"], images, lambda images: images, objective)

  def loss(params_of_generator):
    return jnp.mean(RELATIVISTIC.generator(judge(params["D"], REAL), judge(params["D"], generate(params_of_generator))))

  return {"G": jax.grad(loss)(params["G"]), "D": of_discriminator}


@pytest.mark.card
@pytest.mark.parametrize("penalised_gradient", [directional, grad_of_grad])
@pytest.mark.parametrize("grouped_conv", ["auto", "fused"])
def test_every_leaf_is_within_twice_the_official_error(grouped_conv, penalised_gradient):
  exact = recorded("f32/ggrad", "f32/dgrad")
  options = ("bfloat16_stages", 3), ("grouped_conv", grouped_conv)
  ours = gradients(recorded("G", "D"), penalised_gradient, options)
  errors = golden_cases.relative_errors(ours, exact)
  allowed = golden_cases.relative_errors(recorded("bf16/ggrad", "bf16/dgrad"), exact)
  beyond = {name: (error, allowed[name]) for name, error in errors.items() if not error <= 2 * allowed[name]}
  assert not beyond
  assert errors["all"] > allowed["all"] / 2, "it was bfloat16"


@pytest.mark.card
def test_in_float32_they_are_the_official_ones():
  ours = gradients(recorded("G", "D"), directional, ())
  golden_cases.assert_trees_close(ours, recorded("f32/ggrad", "f32/dgrad"), 1e-5)
