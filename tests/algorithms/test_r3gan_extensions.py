"""R3GAN's settings that are not the paper's: synced augmentation, alignment of D, guidance of G (docs/guidance.md)."""

import dataclasses
import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import golden_cases

from configs import cifar10
from r3gan_jax import factory
from r3gan_jax.algorithms.alignment import Alignment
from r3gan_jax.algorithms.images import Images
from r3gan_jax.algorithms.r3gan import R3GAN, Guidance
from r3gan_jax.augment.pipeline import augment
from r3gan_jax.errors import UserError
from r3gan_jax.losses.penalties import directional, grad_of_grad
from r3gan_jax.networks.r3gan import Discriminator
from r3gan_jax.pretrained import PretrainedNetwork

CASE = golden_cases.load("cond_8px")
REALS, LABELS = CASE.arrays["real"], CASE.labels
KEYS = jax.random.split(jax.random.key(1), len(REALS))
CLASSES = CASE.algorithm.num_classes
PARAMS = np.random.default_rng(0).standard_normal((8 * 8 * 3, CLASSES)) / 8


def outputs(params, images):
  """A pretrained network that is linear, so that its derivatives are known."""
  logits = images.reshape(len(images), -1) @ params
  return {"logits": logits, "features": logits}


LINEAR = PretrainedNetwork(outputs, CLASSES, lambda: PARAMS)


def affine_by_keys(images, keys, p):
  """A per-sample affine augmentation in the precision of the images, which augment/ does not have."""
  del p

  def draw(key):
    offset_key, flip_key = jax.random.split(key)
    return jax.random.normal(offset_key, (1, 1, 3), images.dtype), jax.random.bernoulli(flip_key)

  offsets, mirrored = jax.vmap(draw)(keys)
  flipped = jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
  return (1.5 * flipped + offsets).at[:, :3, :3].set(0.0)


@cache
def compiled(algorithm, phase):
  return jax.jit(algorithm.phases[phase].gradients)


def measured(algorithm, phase, change=lambda params: params):
  """Returns one phase's (gradients, metrics) in float64, at the golden parameters, perhaps changed."""
  with jax.enable_x64(True):
    params, _ = algorithm.init(jax.random.key(0))
    golden = {"generator": CASE.params("G", "generator"), "discriminator": CASE.params("D", "discriminator")}
    params = {network: params[network] | golden[network] for network in golden}
    params = change(jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params))
    params |= dict.fromkeys(algorithm.pretrained, jnp.asarray(PARAMS))
    batch = {"image": jnp.asarray(REALS, jnp.float64), "label": jnp.asarray(LABELS)}
    hyperparameters = {"gamma": jnp.float64(2.0), "augment_p": jnp.float64(1.0)}
    gradients, _, metrics = compiled(algorithm, phase)(params, {}, batch, KEYS, hyperparameters)
    (network,) = algorithm.phases[phase].updates
    return jax.device_get((gradients[network], metrics))


def aligned(weight, penalised_gradient=directional, synced=True):
  return dataclasses.replace(
    CASE.algorithm,
    augment=affine_by_keys,
    synced_augment=synced,
    alignment=Alignment(LINEAR, "stage_1_block_0", weight),
    penalised_gradient=penalised_gradient,
  )


class Copying(R3GAN):
  """Its fakes are the reals."""

  def _generate(self, generator, z, labels):
    return jnp.asarray(REALS)


@pytest.mark.parametrize("synced", [True, False])
def test_equal_images_are_augmented_alike_only_if_synced(synced):
  """In both phases, with noise, whose draws are not parameters."""
  transforms = ("rotation", "hue", "noise", "cutout")
  fields = {f.name: getattr(CASE.algorithm, f.name) for f in dataclasses.fields(R3GAN)}
  fields |= {"augment": partial(augment, multipliers=dict.fromkeys(transforms, 1.0)), "synced_augment": synced}
  algorithm = Copying(**fields)
  params = {"generator": CASE.params("G", "generator"), "discriminator": CASE.params("D", "discriminator")}
  given = ({"image": jnp.asarray(REALS), "label": LABELS}, KEYS, {"gamma": jnp.float32(1), "augment_p": jnp.float32(1)})
  for phase in algorithm.phases:
    _, _, metrics = jax.jit(phase.gradients)(params, {}, *given)
    equal = np.log(2)  # the relativistic loss of equal logits
    loss = metrics["adversarial_loss" if phase.name == "discriminator" else "loss"]
    assert (abs(loss - equal) < 1e-6) == synced


@pytest.fixture(scope="module")
def plain():
  return measured(dataclasses.replace(CASE.algorithm, augment=affine_by_keys, synced_augment=True), 0)


def without_head(gradients):
  return {name: part for name, part in gradients.items() if name != "alignment"}


def test_directional_is_grad_of_grad_with_synced_augmentation_and_alignment(plain):
  (ours, metrics), (reference, _) = (measured(aligned(0.5, way), 0) for way in (directional, grad_of_grad))
  golden_cases.assert_trees_close(ours, reference, 1e-12)
  assert jax.tree.leaves(ours)[0].dtype == np.float64
  for name in ("adversarial_loss", "r1", "r2"):
    np.testing.assert_array_equal(metrics[name], plain[1][name])
  np.testing.assert_allclose(metrics["loss"], plain[1]["loss"] - 0.5 * metrics["alignment"], rtol=1e-14)


def test_alignment_of_weight_0_is_none(plain):
  gradients, _ = measured(aligned(0.0), 0)
  jax.tree.map(np.testing.assert_array_equal, without_head(gradients), plain[0])
  assert not any(leaf.any() for leaf in jax.tree.leaves(gradients["alignment"]))


def test_the_gradient_of_alignment_by_finite_differences(plain):
  """Along a random direction, of the head and of the layers below the aligned one; those above have none."""
  gradients, _ = measured(aligned(0.5), 0)
  others = jax.tree.map(np.subtract, without_head(gradients), plain[0])
  moved = others | {"alignment": gradients["alignment"]}
  reached = {"alignment", "from_image", "stage_1_block_0"}
  random = np.random.default_rng(0)
  direction = jax.tree.map(lambda x: random.standard_normal(x.shape), moved)
  assert {name for name in moved if any(leaf.any() for leaf in jax.tree.leaves(moved[name]))} == reached

  def similarity(step):
    def change(params):
      return params | {"discriminator": jax.tree.map(lambda x, d: x + step * d, params["discriminator"], direction)}

    return measured(aligned(0.5), 0, change)[1]["alignment"]

  expected = -2 * sum(jax.tree.leaves(jax.tree.map(lambda g, d: np.sum(g * d), moved, direction)))
  np.testing.assert_allclose((similarity(1e-6) - similarity(-1e-6)) / 2e-6, expected, rtol=1e-5)


def test_the_gradient_of_guidance_by_hand():
  """The cross-entropy of a linear classifier: its gradient at the images is (softmax - one-hot) W^T / N."""
  plain = dataclasses.replace(CASE.algorithm, augment=affine_by_keys)
  guided = dataclasses.replace(plain, guidance=Guidance(LINEAR, 3.0))
  (ours, metrics), (without, plain_metrics) = (measured(algorithm, 1) for algorithm in (guided, plain))
  with jax.enable_x64(True):
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), CASE.params("G", "generator"))
    z = plain.noise(jax.vmap(lambda key: jax.random.split(key, 3)[0])(KEYS))
    images, pull_back = jax.vjp(lambda p: CASE.algorithm.generator.apply({"params": p}, z, LABELS), params)
    exponentials = np.exp(np.asarray(images).reshape(len(images), -1) @ PARAMS)
    softmax = exponentials / exponentials.sum(1, keepdims=True)
    at_images = (softmax - np.eye(CLASSES)[LABELS]) @ PARAMS.T / len(images)
    (by_hand,) = jax.device_get(pull_back(jnp.asarray(at_images.reshape(images.shape))))
  golden_cases.assert_trees_close(ours, jax.tree.map(lambda g, h: g + 3 * h, without, by_hand), 1e-12)
  entropy = -np.mean(np.log(softmax[np.arange(len(images)), LABELS]))
  np.testing.assert_allclose(metrics["cross_entropy"], entropy, rtol=1e-12)
  np.testing.assert_allclose(metrics["loss"], plain_metrics["loss"] + 3 * entropy, rtol=1e-12)


def built(**gan):
  config = cifar10.get_config("smoke")
  config.gan.update({"augment_p": (0.0, 0.0)} | gan)
  return factory.build_algorithm(config)


def test_without_weights_nothing_is_built():
  named = {"alignment_network": "inception", "guidance_classifier": "missing.npz"}
  assert built(**named) == built() and not built().pretrained


def test_sampling_needs_no_weights():
  """Nor does the shape of the state; D has a head then, as long as the features, and nothing else changes."""
  settings = {"alignment_network": "pixels", "alignment_weight": 1.0, "guidance_classifier": "no.npz"}
  algorithm = built(**settings, guidance_weight=1.0)
  shapes, before = (jax.eval_shape(a.init, jax.random.key(0))[0] for a in (algorithm, built()))
  assert shapes["discriminator"].pop("alignment")["output"]["kernel"].shape == (16, 32 * 32 * 3)
  assert shapes == before


@pytest.mark.parametrize(
  "gan, message",
  [
    ({"alignment_weight": 1.0}, "alignment_network = '' is unknown: choose from"),
    ({"alignment_weight": 1.0, "alignment_network": "pixels", "alignment_stage": 4}, "choose below 4"),
    ({"guidance_weight": 1.0}, "guidance_classifier = '': config.gan.guidance_weight needs one"),
    (
      {"network": "stylegan2_skeleton", "cardinalities": (1,) * 4, "expansion": 1.0}
      | {"alignment_weight": 1.0, "alignment_network": "pixels"},
      "needs stage_1_block_0 of the discriminator, which SkeletonDiscriminator does not have",
    ),
  ],
)
def test_settings_that_do_not_fit(gan, message):
  with pytest.raises(UserError, match=re.escape(message)):
    built(**gan)


def test_guidance_needs_classes():
  plain = golden_cases.load("uncond_16px").algorithm
  with pytest.raises(UserError, match=r"guidance_weight needs classes: set config\.data\.num_classes"):
    dataclasses.replace(plain, guidance=Guidance(LINEAR, 1.0))


def test_a_head_on_the_way_to_the_logit_is_refused():
  class WithHead(Discriminator):
    def setup(self):
      self.alignment = self.param("alignment", jax.nn.initializers.ones, ())

  fields = {f.name: getattr(CASE.algorithm.discriminator, f.name) for f in dataclasses.fields(Discriminator)}
  del fields["parent"], fields["name"]
  with pytest.raises(UserError, match="WithHead has a layer 'alignment' of its own on the way to its logit"):
    dataclasses.replace(
      CASE.algorithm, discriminator=WithHead(**fields), alignment=Alignment(LINEAR, "stage_1_block_0", 1.0)
    )


def test_image_networks_do_not_see_latents():
  algorithm = dataclasses.replace(built(alignment_network="pixels", alignment_weight=1.0), images=Images(32, 32, 3, 10))
  with pytest.raises(UserError, match="alignment_network = 'pixels' sees images, not latents"):
    algorithm.pretrained["alignment"].apply((), jnp.zeros((1, 32, 32, 3)))
