"""The images that an image-to-image GAN starts from, made from those that it is to draw, or read beside them.

    pairs                 that which comes with the image, config.data.condition_channels
    downscale_2, _4, _8   a smaller image, by antialiased bicubic resampling: super-resolution
    grey                  without colour: colourisation
    mask                  with a box cut out, premultiplied, and alpha, 0 in the box and else 255: inpainting

They are uint8, as those in files are.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from r3gan_jax.algorithms.images import Images
from r3gan_jax.errors import UserError
from r3gan_jax.ops.images import to_float, to_uint8
from r3gan_jax.ops.resample import repeated

LUMA = (0.299, 0.587, 0.114)
"""The weights of red, green and blue in grey: ITU-R BT.601, as in Pillow."""

SMALLEST_BOX, LARGEST_BOX = 0.25, 0.5
"""The sides of the box that is cut out, as parts of the image's."""


@dataclass(frozen=True)
class Condition:
  """A kind of condition.

  Attributes:
    make: (images float32 `Images.input_shape` in [-1, 1], keys [N]) -> conditions uint8 [N, h, w, c], each by itself.
    restore: (conditions float [N, h, w, c] in [-1, 1], C) -> images [N, H, W, C]: the guess without a network, which G
      begins with, and which scores are compared with.
    factor: H / h = W / w.
    check: raises a UserError for images that it cannot be made of.
    given: whether it comes with images, so that none can be made of samples.
  """

  make: Callable[[jax.Array, jax.Array], jax.Array]
  restore: Callable[[jax.Array, int], jax.Array]
  factor: int = 1
  check: Callable[[Images], None] = lambda images: None
  given: bool = False

  def shape(self, images: Images) -> tuple[int, int, int]:
    """Returns (h, w, c)."""
    like = (
      jax.ShapeDtypeStruct((1, *images.input_shape), jnp.float32),
      jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1)),
    )
    return jax.eval_shape(self.make, *like).shape[1:]

  def shown(self, conditions: jax.Array, channels: int) -> jax.Array:
    """Returns conditions as float32 images [N, H, W, channels] to look at: large pixels, grey, a black box."""
    return _with_channels(repeated(to_float(conditions), self.factor), channels)


def _with_channels(images: jax.Array, channels: int) -> jax.Array:
  """Drops alpha, or repeats grey."""
  colours = images[..., : channels if images.shape[-1] >= channels else 1]
  return jnp.broadcast_to(colours, (*images.shape[:-1], channels))


def _resized(images: jax.Array, height: int, width: int) -> jax.Array:
  """Resamples with Keys' cubic kernel (a = -1/2), antialiased where it reduces."""
  return jax.image.resize(images, (len(images), height, width, images.shape[-1]), "cubic")


def _downscale(factor: int) -> Condition:
  def make(images: jax.Array, keys: jax.Array) -> jax.Array:
    del keys
    return to_uint8(_resized(images, images.shape[1] // factor, images.shape[2] // factor))

  def restore(conditions: jax.Array, channels: int) -> jax.Array:
    del channels
    return _resized(conditions, factor * conditions.shape[1], factor * conditions.shape[2])

  return Condition(make, restore, factor)


def _grey(images: jax.Array, keys: jax.Array) -> jax.Array:
  del keys
  weights = jnp.asarray(LUMA, images.dtype)[None, None, None]
  return to_uint8(jnp.sum(images * weights, axis=-1, keepdims=True))


def _check_colours(images: Images) -> None:
  if images.channels != 3:
    raise UserError(
      f"config.gan.condition = 'grey' with config.data.channels = {images.channels}: only RGB images, of 3 channels, "
      "can be colourised"
    )


def _mask(images: jax.Array, keys: jax.Array) -> jax.Array:
  visible = ~jax.vmap(partial(box, images.shape[1], images.shape[2]))(keys)[..., None]
  return jnp.concatenate([jnp.where(visible, to_uint8(images), 0), jnp.where(visible, 255, 0).astype(jnp.uint8)], -1)


def box(height: int, width: int, key: jax.Array) -> jax.Array:
  """Draws a box that lies in the image, its sides and place uniform: bool [height, width], true inside."""
  inside = []
  for size, axis_key in zip((height, width), jax.random.split(key), strict=True):
    side_key, start_key = jax.random.split(axis_key)
    side = jax.random.randint(side_key, (), round(SMALLEST_BOX * size), round(LARGEST_BOX * size) + 1)
    start = jax.random.randint(start_key, (), 0, size - side + 1)
    at = jnp.arange(size)
    inside.append((at >= start) & (at < start + side))
  return inside[0][:, None] & inside[1][None, :]


def _fill(conditions: jax.Array, channels: int) -> jax.Array:
  """Fills boxes with the mean of what is visible."""
  colours, visible = conditions[..., :channels], conditions[..., channels:] > 0
  total = jnp.sum(jnp.where(visible, colours, 0), axis=(1, 2), keepdims=True)
  count = jnp.sum(visible.astype(colours.dtype), axis=(1, 2), keepdims=True)
  return jnp.where(visible, colours, total / jnp.maximum(count, 1))


CONDITIONS: Mapping[str, Condition] = {
  **{f"downscale_{factor}": _downscale(factor) for factor in (2, 4, 8)},
  "grey": Condition(_grey, _with_channels, 1, _check_colours),
  "mask": Condition(_mask, _fill),
}
"""config.gan.condition -> its kind, of those that are made of images."""

PAIRS = "pairs"
"""config.gan.condition of conditions that come with images."""


def build_condition(name: str, images: Images) -> Condition:
  """Returns the kind of condition that has this name; raises a UserError if it does not fit the images."""
  channels = images.condition_channels
  settings = f"config.gan.condition = {name!r} with config.data.condition_channels = {channels}"
  if name != PAIRS and channels:
    raise UserError(f"{settings}: of conditions that come with images, the kind is {PAIRS!r}: set one of them to match")
  if name != PAIRS:
    condition = CONDITIONS[name]
    condition.check(images)
    return condition
  if channels not in (1, images.channels):
    raise UserError(
      f"{settings}: conditions are grey (1) or have the channels of the images ({images.channels}): set it to those of "
      "the data set, which is prepared by prepare_data --pairs"
    )
  return Condition(lambda pairs, keys: to_uint8(pairs[..., -channels:]), _with_channels, given=True)
