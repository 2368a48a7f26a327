"""The roadmap's networks: skips, blocks and initialisation against independent formulations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from helpers.golden_cases import assert_trees_close
from jax import lax

from r3gan_jax.losses.adversarial import NON_SATURATING
from r3gan_jax.losses.penalties import directional, grad_of_grad
from r3gan_jax.networks.r3gan import Discriminator, Generator
from r3gan_jax.networks.roadmap import DownsampleBlock, SkeletonDiscriminator, SkeletonGenerator, SkipGenerator

WIDTHS = (24, 16, 8)
BOTTLENECK = {"widths": WIDTHS, "cardinalities": (1, 1, 1), "blocks": (1, 1, 1), "expansion": 0.25}
GROUPED = BOTTLENECK | {"cardinalities": (3, 2, 1), "expansion": 0.5}
GENERATORS = {
  "skeleton": lambda **settings: SkeletonGenerator(WIDTHS, **settings),
  "output_skips": lambda **settings: SkipGenerator(**BOTTLENECK, **settings),
  "bottleneck": lambda **settings: Generator(**BOTTLENECK, **settings),
  "grouped": lambda **settings: Generator(**GROUPED, **settings),
}
DISCRIMINATORS = {
  "skeleton": lambda **settings: SkeletonDiscriminator(WIDTHS, **settings),
  "bottleneck": lambda **settings: Discriminator(**BOTTLENECK, **settings),
  "grouped": lambda **settings: Discriminator(**GROUPED, **settings),
}
Z = np.random.default_rng(0).standard_normal((4, 8), np.float32)
IMAGES = np.random.default_rng(1).standard_normal((4, 16, 16, 3), np.float32)
LABELS = np.array([0, 4, 2, 2])


def drawn(network, *inputs, dtype=jnp.float32):
  """Returns parameters for the network without zeros, also in biases and last layers."""
  random = np.random.default_rng(2)

  def draw(shape):
    return random.standard_normal(shape) * (0.2 if len(shape) == 1 else 1.4 / np.sqrt(np.prod(shape[:-1])))

  shapes = jax.eval_shape(network.init, jax.random.key(0), *inputs)
  return jax.tree.map(lambda leaf: jnp.asarray(draw(leaf.shape), dtype), shapes)


def stretched(x):
  """Upsamples [N, H, W, C] by one convolution: zeros between pixels, then [1, 3, 3, 1] / 4 along each axis."""
  taps = np.array([1, 3, 3, 1]) / 4
  kernel = (
    jnp.asarray(np.outer(taps, taps), x.dtype)[:, :, None, None] * jnp.eye(x.shape[-1], dtype=x.dtype)[None, None]
  )
  return lax.conv_general_dilated(
    x, kernel, (1, 1), ((2, 2), (2, 2)), lhs_dilation=(2, 2), dimension_numbers=("NHWC", "HWIO", "NHWC")
  )


def shrunk(x):
  """Downsamples [N, 2H, 2W, C]: [1, 3, 3, 1] / 8 along each axis, then every second pixel."""
  taps = np.array([1, 3, 3, 1]) / 8
  kernel = (
    jnp.asarray(np.outer(taps, taps), x.dtype)[:, :, None, None] * jnp.eye(x.shape[-1], dtype=x.dtype)[None, None]
  )
  return lax.conv_general_dilated(x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC"))


def conv(x, layer, activated=True):
  kernel = layer["kernel"]
  kernel = kernel[None, None] if kernel.ndim == 2 else kernel
  x = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
  x += layer["bias"][None, None, None]
  return jnp.maximum(x, 0.2 * x) if activated else x


@pytest.mark.parametrize("classes", [0, 5])
@pytest.mark.parametrize("name", GENERATORS)
def test_generator_shapes(name, classes):
  generator = GENERATORS[name](noise_dim=8, num_classes=classes, embed_dim=8, image_channels=2)
  labels = LABELS if classes else None
  images, variables = jax.eval_shape(generator.init_with_output, jax.random.key(0), Z, labels)
  assert (images.shape, images.dtype) == ((4, 16, 16, 2), jnp.float32)
  assert variables["params"]["basis"]["linear"]["kernel"].shape == (16 if classes else 8, 24)


@pytest.mark.parametrize("classes", [0, 5])
@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_discriminator_shapes(name, classes):
  discriminator = DISCRIMINATORS[name](num_classes=classes, embed_dim=24)
  logits, _ = jax.eval_shape(discriminator.init_with_output, jax.random.key(0), IMAGES, LABELS if classes else None)
  assert (logits.shape, logits.dtype) == ((4,), jnp.float32)


def test_the_image_is_the_sum_of_the_stages_upsampled():
  """Without additions below the top stage it equals the image of a G without output skips; it is linear in them."""
  skips, plain = GENERATORS["output_skips"](noise_dim=8), GENERATORS["bottleneck"](noise_dim=8)
  params = drawn(skips, Z)["params"]
  shared = {name: value for name, value in params.items() if not name.startswith("to_image")}
  generate = jax.jit(skips.apply)

  def image(*stages):
    kept = {name: jax.tree.map(lambda p, kept=float(int(name[-1]) in stages): kept * p, params[name]) for name in names}
    return generate({"params": shared | kept}, Z)

  names = ["to_image_0", "to_image_1", "to_image_2"]
  without_skips = jax.jit(plain.apply)({"params": shared | {"to_image": params["to_image_2"]}}, Z)
  np.testing.assert_allclose(image(2), without_skips, rtol=1e-6, atol=1e-6)
  whole = image(0, 1, 2)
  np.testing.assert_allclose(image(0) + image(1) + image(2), whole, rtol=1e-4, atol=1e-5)
  coarse = GENERATORS["output_skips"](noise_dim=8).clone(widths=(24,), cardinalities=(1,), blocks=(1,))
  coarse_params = {name: params[name] for name in ("basis", "stage_0_block_0", "to_image_0")}
  coarsest = jax.jit(coarse.apply)({"params": coarse_params}, Z)
  np.testing.assert_allclose(image(0), stretched(stretched(coarsest)), rtol=1e-4, atol=1e-5)


def test_skeleton_generator_by_hand():
  generator = GENERATORS["skeleton"](noise_dim=8)
  params = drawn(generator, Z)["params"]

  @jax.jit
  def by_hand(p):
    x = p["basis"]["constant"][None] * (Z @ p["basis"]["linear"]["kernel"])[:, None, None]
    x = conv(x, p["stage_0_conv_1"])
    image = conv(x, p["to_image_0"], activated=False)
    for stage in (1, 2):
      x = conv(conv(stretched(x), p[f"stage_{stage}_conv_0"]), p[f"stage_{stage}_conv_1"])
      image = stretched(image) + conv(x, p[f"to_image_{stage}"], activated=False)
    return image

  images = jax.jit(generator.apply)({"params": params}, Z)
  np.testing.assert_allclose(images, by_hand(params), rtol=1e-4, atol=1e-5)


def test_skeleton_discriminator_by_hand():
  """The second convolution of a stage filters and decimates before the bias, as the skip does."""
  discriminator = DISCRIMINATORS["skeleton"]()
  params = drawn(discriminator, IMAGES)["params"]

  @jax.jit
  def by_hand(p):
    x = conv(IMAGES, p["from_image"])
    for stage in (2, 1):
      q = p[f"stage_{stage}"]
      y = conv(x, q["conv_0"])
      unbiased = {"kernel": q["conv_1"]["kernel"], "bias": 0 * q["conv_1"]["bias"]}
      y = shrunk(conv(y, unbiased, activated=False)) + q["conv_1"]["bias"][None, None, None]
      skip = jnp.einsum("nhwc,ck->nhwk", shrunk(x), q["skip"]["kernel"])
      x = (jnp.maximum(y, 0.2 * y) + skip) / np.sqrt(2)
    x = conv(x, p["stage_0_conv"]).reshape(4, -1)
    hidden = x @ p["hidden"]["kernel"] + p["hidden"]["bias"][None]
    return (jnp.maximum(hidden, 0.2 * hidden) @ p["output"]["kernel"] + p["output"]["bias"][None])[:, 0]

  logits = jax.jit(discriminator.apply)({"params": params}, IMAGES)
  np.testing.assert_allclose(logits, by_hand(params), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name, classes", [("skeleton", 0), ("skeleton", 5), ("bottleneck", 0), ("grouped", 0)])
def test_directional_is_grad_of_grad(name, classes):
  with jax.enable_x64(True):
    discriminator = DISCRIMINATORS[name](num_classes=classes, embed_dim=24)
    images, labels = jnp.asarray(IMAGES, jnp.float64), LABELS if classes else None
    params = drawn(discriminator, images, labels, dtype=jnp.float64)["params"]

    def critic(params, images, bias_scale):
      return discriminator.apply({"params": params}, images, labels, bias_scale)

    def objective(
      logits, squared_norms
    ):  # the gradient of the relativistic loss with respect to the logit's bias is zero
      adversarial = jnp.mean(NON_SATURATING.discriminator(*jnp.split(logits, 2)))
      penalties = jnp.sum(jnp.linspace(0.1, 0.6, 4) / 2 * squared_norms)
      return adversarial + penalties, {"logits": logits, "squared_norms": squared_norms}

    arguments = (critic, params, images, lambda images: images, objective)
    ours, reference = (jax.jit(lambda way=way: way(*arguments))() for way in (directional, grad_of_grad))
    assert_trees_close(ours, reference, 1e-12)
    scales = jnp.array([0.5, 1.0, 2.0, 3.0])
    judge = jax.jit(critic)
    scaled = judge(params, scales[:, None, None, None] * images, scales)
    np.testing.assert_allclose(scaled, scales * judge(params, images, jnp.ones(4)), rtol=1e-10)


@pytest.mark.parametrize("name", ["output_skips", "bottleneck", "grouped"])
def test_blocks_begin_as_the_identity(name):
  """So their number does not matter."""
  generator = GENERATORS[name](noise_dim=8)
  params = jax.jit(generator.init)(jax.random.key(0), Z)["params"]
  fewer = generator.clone(blocks=(1, 0, 0))
  kept = {name: params[name] for name in jax.eval_shape(fewer.init, jax.random.key(0), Z)["params"]}
  assert len(kept) == len(params) - 2
  first, second = jax.jit(lambda: (generator.apply({"params": params}, Z), fewer.apply({"params": kept}, Z)))()
  np.testing.assert_allclose(first, second, rtol=1e-6)


def test_skeletons_begin_with_activations_of_one_size():
  """He initialisation keeps the second moment of pre-activations; there is no equalised learning rate."""
  widths = (256, 256)
  x = jax.random.normal(jax.random.key(1), (16, 16, 16, 256))
  variables = jax.jit(DownsampleBlock(256).init)(jax.random.key(0), x)["params"]
  for name, fan_in, gain in (("conv_0", 256 * 9, 2 / 1.04), ("conv_1", 256 * 9, 2 / 1.04), ("skip", 256, 1)):
    np.testing.assert_allclose(np.std(variables[name]["kernel"]), np.sqrt(gain / fan_in), rtol=0.02, err_msg=name)
  for network, inputs in (
    (SkeletonGenerator(widths), np.ones((1, 64))),
    (SkeletonDiscriminator(widths), IMAGES[:, :8, :8]),
  ):
    leaves = flatten_dict(jax.jit(network.init)(jax.random.key(0), inputs)["params"], sep="/")
    assert all(not leaf.any() for name, leaf in leaves.items() if name.endswith("bias"))
    for name, gain in (("to_image_1/kernel", 1), ("output/kernel", 1), ("hidden/kernel", 2 / 1.04)):
      if name in leaves:
        np.testing.assert_allclose(np.std(leaves[name]), np.sqrt(gain / leaves[name].shape[0]), rtol=0.2, err_msg=name)


@pytest.mark.parametrize("kind", ["skeleton", "output_skips"])
def test_bfloat16_stages_compute_in_bfloat16_and_stay_close(kind):
  make_discriminator = DISCRIMINATORS["skeleton" if kind == "skeleton" else "bottleneck"]
  for make, inputs in ((GENERATORS[kind], Z), (make_discriminator, IMAGES)):
    results = {}
    for stages in (0, 2):
      network = make(bfloat16_stages=stages)
      variables = drawn(network, inputs)
      results[stages] = jax.jit(network.apply)(variables, inputs)
      assert results[stages].dtype == jnp.float32
      assert ("bf16" in str(jax.make_jaxpr(network.apply)(variables, inputs))) == bool(stages)
    difference = np.linalg.norm(results[0] - results[2]) / np.linalg.norm(results[0])
    assert 0 < difference < 0.05
