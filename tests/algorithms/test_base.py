"""What several algorithms share."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import cifar10
from r3gan_jax import factory
from r3gan_jax.algorithms.base import pictures_of_autoencoder
from r3gan_jax.algorithms.images import Images, first_stage
from r3gan_jax.errors import UserError


def test_the_nearest_code_is_of_another_image():
  """By hand: of codes at 0, 1, 3 and 3.5 on a line, those of the images 1, 0, 3 and 2."""
  images = jnp.arange(4.0)[:, None, None, None] * jnp.ones((1, 2, 2, 1))
  codes = jnp.array([[0, 0], [0, 1], [0, 3], [0, 3.5]])
  pictures = pictures_of_autoencoder(images, -images, codes)
  np.testing.assert_array_equal(pictures["reals_and_nearest_codes"][:, 0, ::2, 0], [[0, 1], [1, 0], [2, 3], [3, 2]])
  np.testing.assert_array_equal(
    pictures["reals_and_reconstructions"][:, 1, 1::2, 0], [[0, 0], [1, -1], [2, -2], [3, -3]]
  )


@pytest.mark.parametrize(
  "size, stages, base",
  [((32, 32), 4, (4, 4)), ((4, 4), 1, (4, 4)), ((24, 32), 3, (6, 8)), ((40, 24), 3, (10, 6)), ((64, 96), 5, (4, 6))],
)
def test_the_first_stage(size, stages, base):
  settings = SimpleNamespace(widths=(8,) * stages)
  assert first_stage(settings, ("widths",), Images(*size, 3, 0)) == base
  settings.widths += (8,)
  with pytest.raises(UserError, match=f"has {stages + 1} entries, but .* need {stages}"):
    first_stage(settings, ("widths",), Images(*size, 3, 0))


@pytest.mark.parametrize(
  "size, error",
  [
    ((48, 48), "resolution = 48: .* try 32$"),
    ((2, 2), "resolution = 2: .* try 4$"),
    ((36, 50), "resolution = 36, width = 50: .* whole number times 8: try 32, width = 48$"),
    ((3, 8), "resolution = 3, width = 8"),
  ],
)
def test_sizes_that_cannot_be_halved(size, error):
  with pytest.raises(UserError, match=error):
    first_stage(SimpleNamespace(), (), Images(*size, 3, 0))


@pytest.mark.parametrize("channels", [1, 4])
def test_r3gan_of_rectangles(channels):
  """An iteration has finite gradients for every parameter; D's penalised gradient is that of the slower way."""
  config = cifar10.get_config("smoke")
  config.data.update({"resolution": 12, "width": 20, "channels": channels})
  config.gan.update({"widths": (8, 8), "cardinalities": (2, 2), "blocks": (1, 1), "augment_p": (0.5, 0.5)})
  images = np.random.default_rng(0).integers(0, 256, (4, 12, 20, channels), dtype=np.uint8)
  batch = {"image": jnp.asarray(images), "label": jnp.arange(4)}
  keys = jax.random.split(jax.random.key(0), 4)
  found = []
  for way in ("directional", "grad_of_grad"):
    config.gan.penalised_gradient = way
    algorithm = factory.build_algorithm(config)
    assert algorithm.image_shape == (12, 20, channels)
    params, carry = jax.jit(algorithm.init)(jax.random.key(1))
    hyperparameters = {name: schedule(jnp.int32(0)) for name, schedule in algorithm.schedules.items()}
    gradients, _, _ = jax.jit(algorithm.phases[0].gradients)(params, carry, batch, keys, hyperparameters)
    found.append(gradients["discriminator"])
  assert params["generator"]["basis"]["constant"].shape == (6, 10, 8)
  largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(found[0]))
  assert 0 < largest < np.inf
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * largest), *found)


def test_other_gans_need_squares():
  config = factory.default_config("dcgan")
  config.data.width = 40
  with pytest.raises(UserError, match=r"config.data.width = 40 .* need square images"):
    factory.build_algorithm(config)
