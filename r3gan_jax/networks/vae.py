"""The autoencoder of latent diffusion models, on whose latents GANs can train, too.

Rombach et al. 2022 (arXiv 2112.10752, appendix G), in the form of Stable Diffusion: 8 times fewer pixels a side, 4
latent channels. Its published weights are diffusers' AutoencoderKL (`interop.sd_vae`), whose names the layers have. The
latents here are the encoder's own, without the factor 0.18215 of Stable Diffusion.

    encoder    conv_in; of each level `blocks` residual blocks, and a convolution of stride 2 to the next; middle; head
    decoder    conv_in; middle; of each level `blocks` + 1 residual blocks, and doubling and a convolution; head
    middle     a residual block, attention, a residual block
    head       group norm, SiLU, conv_out
"""

from functools import partial
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from r3gan_jax.networks.precise import PRECISION, Conv
from r3gan_jax.ops.resample import repeat2x

_EPSILON = 1e-6


class Autoencoder(nn.Module):
  """The encoder and the decoder; the default is Stable Diffusion's.

  Convolutions and attention compute in `dtype`. Means and variances of group norm, the softmax, the last convolutions
  and all results are in float32, and so are the parameters.

  Attributes:
    widths: channels of each level, the resolution of images first.
    blocks: residual blocks of a level of the encoder; the decoder has one more.
    latent_channels: of the latents.
    image_channels: of the images.
    groups: of group norm; must divide all widths.
    dtype: float32 or bfloat16.
  """

  widths: tuple[int, ...] = (128, 256, 512, 512)
  blocks: int = 2
  latent_channels: int = 4
  image_channels: int = 3
  groups: int = 32
  dtype: Any = jnp.float32

  def setup(self) -> None:
    moments, latents = 2 * self.latent_channels, self.latent_channels
    self.encoder = Encoder(self.widths, self.blocks, moments, self.groups)
    self.quant_conv = Conv(moments, (1, 1))
    self.post_quant_conv = Conv(latents, (1, 1))
    self.decoder = Decoder(self.widths, self.blocks + 1, self.image_channels, self.groups)

  @property
  def factor(self) -> int:
    """Pixels a side of an image per pixel of its latents."""
    return int(2 ** (len(self.widths) - 1))

  def encode(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns mean and standard deviation of the latents: two float32 [N, H / factor, W / factor, latent_channels].

    Args:
      images: float [N, H, W, image_channels] in [-1, 1].

    Raises:
      ValueError: H or W is not a multiple of `factor`.
    """
    if images.shape[1] % self.factor or images.shape[2] % self.factor:
      raise ValueError(f"images of {images.shape[1:3]}: crop both sides to multiples of {self.factor}")
    moments = self.quant_conv(self.encoder(images.astype(self.dtype)))
    mean, log_variance = jnp.split(moments, 2, axis=-1)
    return mean, jnp.exp(0.5 * jnp.clip(log_variance, -30, 20))

  def decode(self, latents: jax.Array) -> jax.Array:
    """Latents, float [N, H, W, latent_channels] -> images, float32, factor times as large, about in [-1, 1]."""
    return self.decoder(self.post_quant_conv(latents.astype(jnp.float32)).astype(self.dtype))

  def __call__(self, images: jax.Array) -> jax.Array:
    """Decodes the mean: images as of `encode` -> images as of `decode`."""
    return self.decode(self.encode(images)[0])


def decode_tiled(
  autoencoder: Autoencoder, params: Any, latents: jax.Array, tile: int = 64, overlap: int = 16
) -> jax.Array:
  """Decodes images too large for memory in overlapping tiles, one at a time, as diffusers' AutoencoderKL does.

  It computes more, and another image than decoding as a whole: group norm and attention see a tile only, so colours can
  differ from tile to tile, and seams are blended linearly. What fits in one tile is decoded as a whole.

  Under `jax.jit` the program has one decoder for each shape of tiles: where those at the right and at the bottom are
  cut off, up to 9, and only one if sides are `tile` and multiples of `tile - overlap`, without overlap.

  Args:
    autoencoder: the module.
    params: its parameters.
    latents: float [N, H, W, latent_channels].
    tile: side of a tile, in pixels of the latents.
    overlap: of neighbours, in pixels of the latents, at most half a tile.

  Returns:
    As `Autoencoder.decode`.

  Raises:
    ValueError: `overlap` is not in [0, tile / 2].
  """
  if not 0 <= overlap <= tile // 2:
    raise ValueError(f"tiles of {tile} cannot overlap by {overlap}: give 0 to {tile // 2}")

  def decode(latents: jax.Array) -> jax.Array:
    return cast(jax.Array, autoencoder.apply({"params": params}, latents, method="decode"))

  _, height, width, _ = latents.shape
  if max(height, width) <= tile:
    return decode(latents)
  step, factor = tile - overlap, autoencoder.factor
  rows, columns = range(0, height, step), range(0, width, step)
  tiles = {(i, j): latents[:, i : i + tile, j : j + tile] for i in rows for j in columns}
  for shape in dict.fromkeys(cut.shape for cut in tiles.values()):
    alike = [place for place, cut in tiles.items() if cut.shape == shape]
    tiles.update(zip(alike, jax.lax.map(decode, jnp.stack([tiles[place] for place in alike])), strict=True))
  for i, j in tiles:
    if i > 0:
      tiles[i, j] = _blended(tiles[i - step, j], tiles[i, j], overlap * factor, axis=1)
    if j > 0:
      tiles[i, j] = _blended(tiles[i, j - step], tiles[i, j], overlap * factor, axis=2)
  kept = slice(step * factor)
  return jnp.concatenate([jnp.concatenate([tiles[i, j][:, kept, kept] for j in columns], 2) for i in rows], 1)


def _blended(before: jax.Array, image: jax.Array, overlap: int, axis: int) -> jax.Array:
  """Fades the last `overlap` pixels of `before` along an axis into the first of `image`; returns all of `image`."""
  size = before.shape[axis]
  overlap = min(size, image.shape[axis], overlap)
  end, start, rest = (
    jax.lax.slice_in_dim(part, first, last, axis=axis)
    for part, first, last in ((before, size - overlap, size), (image, 0, overlap), (image, overlap, None))
  )
  share = jnp.linspace(0, 1, overlap, endpoint=False, dtype=image.dtype)
  share = jnp.expand_dims(share, [other for other in range(image.ndim) if other != axis])
  return jnp.concatenate([end * (1 - share) + start * share, rest], axis)


class Encoder(nn.Module):
  """Images to what `quant_conv` makes the moments of; it computes in the dtype of the images.

  Attributes:
    widths: see `Autoencoder`.
    blocks: residual blocks of a level.
    channels: of the result.
    groups: see `Autoencoder`.
  """

  widths: tuple[int, ...]
  blocks: int
  channels: int
  groups: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, H, W, C] -> float32 [N, H / factor, W / factor, channels]."""
    x = _conv(x, self.widths[0], "conv_in")
    for level, width in enumerate(self.widths):
      if level > 0:
        x = _conv(x, x.shape[-1], f"down_blocks.{level - 1}.downsamplers.0.conv", strides=2, padding=((0, 1), (0, 1)))
      for block in range(self.blocks):
        x = ResidualBlock(width, self.groups, name=f"down_blocks.{level}.resnets.{block}")(x)
    return _head(_middle(x, self.groups), self.groups, self.channels)


class Decoder(nn.Module):
  """The result of `post_quant_conv` to images; it computes in the dtype of the latents, attributes as of `Encoder`."""

  widths: tuple[int, ...]
  blocks: int
  channels: int
  groups: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, H, W, C] -> float32 [N, factor H, factor W, channels]."""
    x = _middle(_conv(x, self.widths[-1], "conv_in"), self.groups)
    for level, width in enumerate(reversed(self.widths)):
      if level > 0:
        x = _conv(repeat2x(x), x.shape[-1], f"up_blocks.{level - 1}.upsamplers.0.conv")
      for block in range(self.blocks):
        x = ResidualBlock(width, self.groups, name=f"up_blocks.{level}.resnets.{block}")(x)
    return _head(x, self.groups, self.channels)


class ResidualBlock(nn.Module):
  """Twice group norm, SiLU and a convolution, beside the input, or a 1x1 convolution of it if channels change."""

  width: int
  groups: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, H, W, C] -> [N, H, W, width]."""
    y = _conv(nn.silu(_normalised(x, self.groups, "norm1")), self.width, "conv1")
    y = _conv(nn.silu(_normalised(y, self.groups, "norm2")), self.width, "conv2")
    if x.shape[-1] != self.width:
      x = _conv(x, self.width, "conv_shortcut", kernel=1)
    return x + y


class AttentionBlock(nn.Module):
  """Attention of one head between all pixels, beside the input."""

  groups: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, H, W, C] -> [N, H, W, C]."""
    channels = x.shape[-1]
    dense = partial(nn.Dense, channels, dtype=x.dtype, precision=PRECISION)
    pixels = _normalised(x, self.groups, "group_norm").reshape(x.shape[0], -1, channels)
    queries, keys, values = (dense(name=name)(pixels) for name in ("to_q", "to_k", "to_v"))
    logits = jnp.einsum("nqc,nkc->nqk", queries, keys, precision=PRECISION, preferred_element_type=jnp.float32)
    weights = nn.softmax(logits * channels**-0.5).astype(x.dtype)
    seen = jnp.einsum("nqk,nkc->nqc", weights, values, precision=PRECISION)
    return x + dense(name="to_out.0")(seen).reshape(x.shape)


# Called in compact methods, whose module gets the layers.


def _middle(x: jax.Array, groups: int) -> jax.Array:
  x = ResidualBlock(x.shape[-1], groups, name="mid_block.resnets.0")(x)
  x = AttentionBlock(groups, name="mid_block.attentions.0")(x)
  return ResidualBlock(x.shape[-1], groups, name="mid_block.resnets.1")(x)


def _head(x: jax.Array, groups: int, channels: int) -> jax.Array:
  x = nn.silu(_normalised(x.astype(jnp.float32), groups, "conv_norm_out"))
  return _conv(x, channels, "conv_out")


def _normalised(x: jax.Array, groups: int, name: str) -> jax.Array:
  norm = nn.GroupNorm(groups, epsilon=_EPSILON, use_fast_variance=False, name=name)
  return norm(x.astype(jnp.float32)).astype(x.dtype)


def _conv(x: jax.Array, width: int, name: str, kernel: int = 3, strides: int = 1, padding: Any = "SAME") -> jax.Array:
  return Conv(width, (kernel, kernel), strides, padding, dtype=x.dtype, name=name)(x)
