"""The augmentation against recorded numbers of the official implementation, and its properties."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.meshes import mesh_of
from jax.sharding import PartitionSpec as P
from scipy.special import erf, erfinv

from r3gan_jax.algorithms.base import DATA_AXIS
from r3gan_jax.augment import colour, corruption, geometry
from r3gan_jax.augment.parameters import TRANSFORMS, draw
from r3gan_jax.augment.pipeline import apply, augment

GOLDEN = dict(np.load(Path(__file__).parent.parent / "golden" / "augment_32px.npz"))
IMAGES = np.moveaxis(GOLDEN.pop("images"), 1, -1)
RECORDED_NAMES = {
  "xflip": "x_flip",
  "rotate90": "rotate90",
  "xint": "integer_translation",
  "scale": "isotropic_scale",
  "rotate": "rotation",
  "aniso": "anisotropic_scale",
  "xfrac": "fractional_translation",
  "brightness": "brightness",
  "contrast": "contrast",
  "lumaflip": "luma_flip",
  "hue": "hue",
  "saturation": "saturation",
  "cutout": "cutout",
}
FAMILIES = {
  "blit": geometry.NAMES[:3],
  "geometric": geometry.NAMES[3:],
  "color": ("brightness", "contrast", "luma_flip", "hue", "saturation"),
  "all": tuple(RECORDED_NAMES.values()),
}
NORMAL = (
  "isotropic_scale",
  "anisotropic_scale",
  "fractional_translation",
  "brightness",
  "contrast",
  "saturation",
)
ALL = dict.fromkeys(TRANSFORMS, 1.0)
apply_ = jax.jit(apply)
augment_ = jax.jit(augment, static_argnames="multipliers")


class Multipliers(dict):
  """A hashable dict, for static arguments of jit."""

  def __hash__(self):
    return hash(tuple(self.items()))


def at_quantiles(quantiles):
  """The values of transforms that are present, at uniform numbers in (0, 1)."""
  return {name: TRANSFORMS[name].value(u) for name, u in quantiles.items()}


def make_keys(count, seed=0):
  return jax.random.split(jax.random.key(seed), count)


def images(count, side=16, channels=3):
  return jax.random.uniform(jax.random.key(7), (count, side, side, channels), minval=-1)


def recorded_quantile(name, p):
  """Normal draws were recorded as std * erfinv(2 p - 1), without sqrt(2), and without a second rotation."""
  u = (1 + erf(erfinv(2 * p - 1) / np.sqrt(2))) / 2 if name in NORMAL else p
  values = np.full(TRANSFORMS[name].parts * TRANSFORMS[name].draws, u, np.float32)
  if name == "rotation":
    values[1] = 0.5
  return np.tile(values, (len(IMAGES), 1))


@pytest.mark.parametrize("recorded", GOLDEN)
def test_recorded_numbers(recorded):
  name, _, p = recorded.partition("@")
  transforms = FAMILIES.get(name) or (RECORDED_NAMES[name],)
  parameters = at_quantiles({transform: recorded_quantile(transform, float(p)) for transform in transforms})
  expected = np.moveaxis(GOLDEN[recorded], 1, -1)
  np.testing.assert_allclose(apply_(IMAGES, parameters), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_part_is_drawn_with_probability_p_times_its_multiplier(name):
  transform, count = TRANSFORMS[name], 20_000
  values = np.asarray(jax.jit(lambda: draw(make_keys(count), jnp.float32(0.5), {name: 0.6})[name])())
  parts = values.reshape(count, transform.parts, transform.draws)
  present = (parts != transform.absent).any(axis=2)
  chance = {"x_flip": 1 / 2, "luma_flip": 1 / 2, "rotate90": 3 / 4}.get(name, 1)  # of a choice that changes the image
  if name == "rotation":
    np.testing.assert_allclose(present.any(axis=1).mean(), 0.3, atol=0.015)
    np.testing.assert_allclose(present.mean(axis=0), 1 - np.sqrt(0.7), atol=0.015)
  else:
    np.testing.assert_allclose(present.mean(axis=0), 0.3 * chance, atol=0.015)
  drawn = parts[present]
  u = (np.arange(2000) + 0.5) / 2000
  expected = np.asarray(at_quantiles({name: u.astype(np.float32)})[name])
  if chance < 1:
    expected = expected[expected != 0]
  np.testing.assert_allclose(drawn.mean(axis=0), expected.mean(), atol=6 * expected.std() / np.sqrt(len(drawn)) + 1e-6)
  np.testing.assert_allclose(drawn.std(axis=0), expected.std(), rtol=0.05)
  for other in drawn.T[1:]:  # x and y are independent
    assert abs(np.corrcoef(drawn[:, 0], other)[0, 1]) < 0.05


def test_transforms_are_drawn_independently_and_whatever_else_is_on():
  everything = jax.jit(lambda: draw(make_keys(5000), jnp.float32(0.5), ALL))()
  for name in ("hue", "cutout"):
    alone = jax.jit(lambda name=name: draw(make_keys(5000), jnp.float32(0.5), {name: 1.0}))()
    assert alone.keys() == {name}
    np.testing.assert_array_equal(alone[name], everything[name])
  present = np.stack([everything[name][:, 0] != TRANSFORMS[name].absent for name in everything])
  assert np.abs(np.corrcoef(present) - np.eye(len(present))).max() < 0.07


def test_a_sample_depends_on_its_own_key_and_image_alone():
  x, keys, multipliers = images(16, 8), make_keys(16), Multipliers(ALL)
  whole = augment_(x, keys, jnp.float32(0.7), multipliers=multipliers)
  parts = [augment_(x[i : i + 4], keys[i : i + 4], jnp.float32(0.7), multipliers=multipliers) for i in (0, 4, 8, 12)]
  np.testing.assert_allclose(whole, np.concatenate(parts), atol=1e-5)
  sharded = jax.jit(
    jax.shard_map(
      lambda x, keys, p: augment(x, keys, p, ALL),
      mesh=mesh_of(8),
      in_specs=(P(DATA_AXIS), P(DATA_AXIS), P()),
      out_specs=P(DATA_AXIS),
    )
  )(x, keys, jnp.float32(0.7))
  np.testing.assert_allclose(whole, sharded, atol=1e-5)
  other_keys = augment_(x, make_keys(16, seed=1), jnp.float32(0.7), multipliers=multipliers)
  assert (np.abs(whole - other_keys).max(axis=(1, 2, 3)) > 0.01).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_p_0_leaves_images_as_they_are(channels):
  x = images(3, 12, channels)
  through = augment_(x, make_keys(3), jnp.float32(0), multipliers=Multipliers(ALL))
  np.testing.assert_allclose(through, x, atol=1e-5)


def test_affine_in_the_image():
  """augment(x + t d) = augment(x) + t A d with the linear part A, and the pullback is A's transpose."""
  keys, x, d = make_keys(8), images(8), jax.random.normal(jax.random.key(1), (8, 16, 16, 3))
  y = jax.random.normal(jax.random.key(2), x.shape)

  @jax.jit
  def derivatives(x):
    def f(x):
      return augment(x, keys, jnp.float32(0.8), ALL)

    value, pushed = jax.jvp(f, (x,), (d,))
    return value, pushed, jax.vjp(f, x)[1](y)[0], f(x + 3 * d)

  value, pushed, pulled, moved = derivatives(x)
  np.testing.assert_allclose(moved, value + 3 * pushed, atol=2e-4)
  np.testing.assert_allclose(np.vdot(y, pushed), np.vdot(pulled, d), rtol=1e-4)
  np.testing.assert_allclose(derivatives(jnp.zeros_like(x))[1], pushed, atol=1e-6)


def test_second_derivatives():
  """The second derivative of |A x + a|^4 against finite differences."""
  keys, x, d = make_keys(2), images(2, 8), jax.random.normal(jax.random.key(1), (2, 8, 8, 3))

  @jax.jit
  def penalty(t):
    def critic(x):
      return jnp.mean(jnp.square(jnp.sum(jnp.square(augment(x, keys, jnp.float32(1), ALL)), axis=(1, 2, 3))))

    return jnp.sum(jnp.square(jax.grad(critic)(x + t * d)))

  step = 1e-2
  numeric = (penalty(step) - penalty(-step)) / (2 * step)
  np.testing.assert_allclose(jax.jit(jax.grad(penalty))(0.0), numeric, rtol=1e-2)


def test_bfloat16_images_stay_bfloat16():
  x = images(4)
  exact = augment_(x, make_keys(4), jnp.float32(0.8), multipliers=Multipliers(ALL))
  rounded = augment_(x.astype(jnp.bfloat16), make_keys(4), jnp.float32(0.8), multipliers=Multipliers(ALL))
  assert rounded.dtype == jnp.bfloat16
  np.testing.assert_allclose(rounded.astype(jnp.float32), exact, atol=0.05)


def test_products_are_as_gathers():
  """In value and pullback, also where tiles use a window of the image, and far outside of it."""
  x = jax.random.uniform(jax.random.key(0), (4, 128, 24, 2))
  assert geometry.tiling(128).window < 128
  parameters = jax.jit(lambda: draw(make_keys(4), jnp.float32(1), dict.fromkeys(geometry.NAMES, 1.0)))()
  # A tile needs more than its window if the image shrinks by more than 2.8, in one direction or another.
  parameters |= {
    "isotropic_scale": jnp.array([[0.0], [1.0], [-0.5], [-1.0]]),
    "anisotropic_scale": jnp.full((4, 1), 0.4),
  }
  inverses = jax.vmap(lambda parameters: geometry.inverse_matrix(parameters, 128, 24))(parameters)

  def derivative(sample):
    sampled, pull_back = jax.vjp(lambda x: sample(x, inverses), x)
    return sampled, pull_back(jnp.sin(3 * sampled))[0]

  products, gathers = (
    jax.jit(derivative, static_argnums=0)(way) for way in (geometry.sample_by_products, geometry.sample_by_gathers)
  )
  for product, gather in zip(products, gathers, strict=True):
    np.testing.assert_allclose(product, gather, atol=1e-4 * np.abs(gather).max())


@pytest.mark.parametrize(
  "height, width, names", [(128, 128, ("x_flip", *geometry.NAMES[2:])), (24, 40, geometry.NAMES)]
)
def test_against_a_dense_evaluation(height, width, names):
  """A big image, and one that is not square."""
  x = images(6, max(height, width), 1)[:, :height, :width]
  parameters = jax.jit(lambda: draw(make_keys(6), jnp.float32(1), dict.fromkeys(names, 1.0)))()
  sampled = apply_(x, parameters)
  stretched = jax.jit(jax.vmap(lambda x, p: dense(x, geometry.inverse_matrix(p, height, width))))(x, parameters)
  np.testing.assert_allclose(sampled, stretched, atol=1e-4)


def dense(image, inverse):
  """Upsamples by zeros and convolution, samples bilinearly by gathers, downsamples by convolution."""
  height, width, _ = image.shape
  taps = np.asarray(geometry.SYM6, np.float32)
  kernel = np.outer(taps, taps)[..., None, None]
  padded = jnp.pad(image, ((height - 1, height - 1), (width - 1, width - 1), (0, 0)), mode="reflect")[None]
  dimensions = ("NHWC", "HWIO", "NHWC")
  upsampled = jax.lax.conv_general_dilated(
    padded, 4 * kernel[::-1, ::-1], (1, 1), ((6, 6), (6, 6)), lhs_dilation=(2, 2), dimension_numbers=dimensions
  )[0]
  x, y = jnp.meshgrid(*(jnp.arange(2.0 * (side + 6)) + 1 - (side + 6) for side in (width, height)))
  source = [
    inverse[i, 0] * x + inverse[i, 1] * y + 2 * inverse[i, 2] + 3 * side - 3 for i, side in ((1, height), (0, width))
  ]
  sampled = jax.scipy.ndimage.map_coordinates(upsampled[..., 0], source, order=1)[None, ..., None]
  down = jax.lax.conv_general_dilated(sampled, kernel, (2, 2), ((-1, -1), (-1, -1)), dimension_numbers=dimensions)
  return down[0]


def test_grey_images_take_the_luma():
  # Compiled as in users' programs, which round to 1e-6; conftest.py's faster compilation rounds to 1e-5.
  fused = jax.jit(augment, static_argnames="multipliers", compiler_options={"xla_cpu_use_fusion_emitters": True})
  grey = images(4, 16, 1)
  multipliers = Multipliers(ALL | {"noise": 0.0})
  alone = fused(grey, make_keys(4), jnp.float32(0.8), multipliers=multipliers)
  as_colour = fused(jnp.repeat(grey, 3, axis=-1), make_keys(4), jnp.float32(0.8), multipliers=multipliers)
  np.testing.assert_allclose(jnp.repeat(alone, 3, axis=-1), as_colour, atol=1e-5)
  with pytest.raises(ValueError, match="1, 3 or 4 channels, not 2"):
    apply(images(1, 8, 2), {"hue": jnp.zeros((1, 1))})


def test_colours_are_transformed_under_alpha():
  """Premultiplied after the transform as before it; transparent pixels stay empty, and alpha stays."""
  colours = images(4, 16, 3)
  alpha = jax.random.uniform(jax.random.key(3), (4, 16, 16, 1)).at[:, :4].set(0.0)

  def premultiplied(colours):
    return jnp.concatenate([alpha * (1 + colours) - 1, 2 * alpha - 1], axis=-1)

  parameters = draw(make_keys(4), jnp.float32(1.0), dict.fromkeys(colour.NAMES, 1.0))
  expected = premultiplied(apply(colours, parameters))
  np.testing.assert_allclose(apply(premultiplied(colours), parameters), expected, atol=1e-5)


def test_filter_bands_are_octaves_that_sum_to_the_identity():
  bank = corruption.filter_bank()
  delta = np.zeros(bank.shape[1])
  delta[len(delta) // 2] = 1
  np.testing.assert_allclose(bank.sum(axis=0), delta, atol=1e-12)
  np.testing.assert_allclose(bank, bank[:, ::-1], atol=1e-12)
  response = np.abs(np.fft.rfft(bank, 1024))
  half_way = [np.flatnonzero(response[band] > 0.5)[[0, -1]] / 1024 for band in range(4)]
  np.testing.assert_allclose(half_way, [[0, 1 / 16], [1 / 16, 1 / 8], [1 / 8, 1 / 4], [1 / 4, 1 / 2]], atol=5e-3)


def test_filter_gains():
  """A gain of the lowest band scales a constant image along both axes, normalised by the expected power of images."""
  x = jnp.full((1, 32, 32, 3), 0.5)
  gained = apply_(x, {"image_filter": jnp.array([[1.0, 0, 0, 0]])})
  np.testing.assert_allclose(gained, 0.5 * 4 / ((10 * 4 + 3) / 13), rtol=1e-5)


def test_noise_is_added_with_its_standard_deviation():
  x = images(2, 64)
  noise = apply_(x, {"noise": jnp.array([[0.1], [0.0]])}, make_keys(2)) - x
  np.testing.assert_allclose(noise[0].std(), 0.1, rtol=0.03)
  np.testing.assert_allclose(noise[0].mean(), 0, atol=0.005)
  np.testing.assert_array_equal(noise[1], 0)
