"""The penalties by hand, and `directional` against `grad_of_grad`."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import golden_cases

from r3gan_jax.algorithms.r3gan import R3GAN
from r3gan_jax.augment.parameters import TRANSFORMS
from r3gan_jax.augment.pipeline import augment
from r3gan_jax.losses.adversarial import RELATIVISTIC
from r3gan_jax.losses.penalties import directional, grad_of_grad, gradient_penalty


def quadratic(images):
  """D(x) = |x|^2 / 2, so the gradient is x itself."""
  return 0.5 * jnp.sum(jnp.square(images), axis=(1, 2, 3))


def test_penalty_of_a_known_critic():
  images = jax.random.normal(jax.random.key(0), (3, 4, 4, 2))
  logits, penalties = gradient_penalty(quadratic, images)
  np.testing.assert_allclose(logits, quadratic(images))
  np.testing.assert_allclose(penalties, np.sum(np.square(images), axis=(1, 2, 3)), rtol=1e-6)


def test_differentiable_in_what_the_critic_closes_over():
  images = jax.random.normal(jax.random.key(0), (3, 4, 4, 2))

  def penalty(scale):
    return jnp.sum(gradient_penalty(lambda x: scale * quadratic(x), images)[1])

  np.testing.assert_allclose(jax.grad(penalty)(3.0), 2 * 3 * np.sum(np.square(images)), rtol=1e-5)


def test_gradient_is_taken_through_an_augmentation():
  images = jax.random.normal(jax.random.key(0), (2, 4, 4, 1))
  _, penalties = gradient_penalty(lambda x: quadratic(2 * x), images)
  np.testing.assert_allclose(penalties, np.sum(np.square(4 * images), axis=(1, 2, 3)), rtol=1e-5)


def affine_augmentation(count, channels, dtype):
  """Returns a per-sample affine map: mirrors some images, mixes channels, adds a constant, cuts out a part."""
  random = np.random.default_rng(1)
  mix = jnp.asarray(random.standard_normal((count, channels, channels)), dtype)
  offset = jnp.asarray(random.standard_normal((count, 1, 1, channels)), dtype)
  mirrored = jnp.asarray(random.random(count) < 0.5)[:, None, None, None]

  def augmented(images):
    images = jnp.where(mirrored, images[:, :, ::-1], images)
    images = jnp.einsum("nhwc,nck->nhwk", images, mix) + offset
    return images.at[:, :3, :3].set(0.0)

  return augmented


def drawn_augmentation(count, channels, dtype):
  """Returns the real augmentation with all transforms, which computes in float32."""
  del channels, dtype
  keys = jax.random.split(jax.random.key(1), count)
  return lambda images: augment(images, keys, jnp.float32(0.8), dict.fromkeys(TRANSFORMS, 1.0))


def regularised(logits, squared_norms):
  """R3GAN's objective with a weight per sample, to detect exchanged samples."""
  weights = jnp.linspace(0.1, 0.6, len(logits), dtype=logits.dtype)
  adversarial = jnp.mean(RELATIVISTIC.discriminator(*jnp.split(logits, 2)))
  return adversarial + jnp.sum(weights / 2 * squared_norms), {"logits": logits, "squared_norms": squared_norms}


def one_lipschitz(logits, squared_norms):
  """WGAN-GP's objective, which is not linear in the squared norms."""
  real, fake = jnp.split(logits, 2)
  return jnp.mean(fake - real) + 10 * jnp.mean(jnp.square(jnp.sqrt(squared_norms) - 1)), {"logits": logits}


def penalised(case, penalised_gradient, dtype, augmentation, objective=regularised, **changes):
  """Returns (D's gradient, metrics) for the reals and fakes of a golden case."""
  discriminator = case.algorithm.discriminator.clone(**changes)
  params = jax.tree.map(lambda p: jnp.asarray(p, dtype), case.params("D", "discriminator"))
  images = jnp.concatenate([jnp.asarray(case.arrays[name], dtype) for name in ("real", "fake")])
  labels = None if case.labels is None else jnp.concatenate([case.labels, case.labels])

  def critic(params, images, bias_scale):
    return discriminator.apply({"params": params}, images, labels, bias_scale)

  augmented = augmentation(len(images), 3, dtype)
  return jax.jit(lambda *given: penalised_gradient(critic, *given, augmented, objective))(params, images)


@pytest.mark.card
@pytest.mark.parametrize(
  "case, augmentation, objective, dtype, relative",
  [
    ("uncond_16px", affine_augmentation, regularised, np.float64, 1e-12),
    ("uncond_16px", affine_augmentation, one_lipschitz, np.float64, 1e-12),
    ("cond_8px", affine_augmentation, regularised, np.float64, 1e-12),
    ("cond_8px", drawn_augmentation, regularised, np.float32, 1e-5),
  ],
)
def test_directional_is_grad_of_grad(case, augmentation, objective, dtype, relative):
  case = golden_cases.load(case)
  with jax.enable_x64(dtype == np.float64):
    ours, reference = (penalised(case, way, dtype, augmentation, objective) for way in (directional, grad_of_grad))
    golden_cases.assert_trees_close(ours, reference, relative)
    assert jax.tree.leaves(ours)[0].dtype == dtype


@pytest.mark.parametrize("way", [directional, grad_of_grad])
def test_the_loss_that_is_logged_is_the_one_that_is_differentiated(way):
  """A small step along the gradient changes the logged loss accordingly, with both penalties and both parts."""
  case = golden_cases.load("uncond_16px")
  with jax.enable_x64(True):
    images = jnp.concatenate([jnp.asarray(case.arrays[name], jnp.float64) for name in ("real", "fake")])
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float64), case.params("D", "discriminator"))

    @jax.jit
    def measured(params):
      def critic(params, images, bias_scale):
        return case.algorithm.discriminator.apply({"params": params}, images, None, bias_scale)

      return way(critic, params, images, lambda images: images, one_lipschitz)

    gradient, metrics = measured(params)
    step = 1e-6 / optax.tree.norm(gradient)
    moved = jax.tree.map(lambda p, g: p - step * g, params, gradient)
    fell = metrics["loss"] - measured(moved)[1]["loss"]
    np.testing.assert_allclose(fell, step * optax.tree.norm(gradient, squared=True), rtol=1e-3)


@golden_cases.cases
def test_fused_convolutions_change_nothing(case):
  case = golden_cases.load(case)
  for way in (directional, grad_of_grad):
    fused, reference = (
      penalised(case, way, jnp.float32, affine_augmentation, grouped_conv=name) for name in ("fused", "auto")
    )
    golden_cases.assert_trees_close(fused, reference, 1e-5)


@pytest.mark.card
def test_directional_is_as_accurate_in_bfloat16():
  case = golden_cases.load("uncond_16px")
  exact = penalised(case, grad_of_grad, jnp.float32, affine_augmentation)[0]
  errors = {
    way: golden_cases.relative_errors(
      penalised(case, way, jnp.float32, affine_augmentation, bfloat16_stages=2)[0], exact
    )["all"]
    for way in (directional, grad_of_grad)
  }
  assert 0 < errors[directional] < 1.2 * errors[grad_of_grad] < 0.1


def test_the_bias_scale_makes_the_critic_homogeneous():
  case = golden_cases.load("cond_8px")
  params = {"params": case.params("D", "discriminator")}
  judge = jax.jit(lambda x, s: case.algorithm.discriminator.apply(params, x, case.labels, s))
  scales = jnp.array([0.5, 1.0, 2.0, 3.0])
  images = case.arrays["real"]
  np.testing.assert_allclose(
    judge(scales[:, None, None, None] * images, scales), scales * judge(images, jnp.ones(4)), rtol=1e-4
  )


def test_a_critic_that_is_not_piecewise_linear_is_refused():
  algorithm = golden_cases.load("cond_8px").algorithm

  class Smooth(type(algorithm.discriminator)):
    piecewise_linear = False

  fields = {field.name: getattr(algorithm.discriminator, field.name) for field in dataclasses.fields(Smooth)}
  del fields["parent"], fields["name"]
  with pytest.raises(ValueError, match="declares itself piecewise_linear, which Smooth does not: use grad_of_grad"):
    dataclasses.replace(algorithm, discriminator=Smooth(**fields))
  assert isinstance(
    dataclasses.replace(algorithm, discriminator=Smooth(**fields), penalised_gradient=grad_of_grad), R3GAN
  )
