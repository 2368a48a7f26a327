"""The interface of feature networks, and the resizing of their input images."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from r3gan_jax.networks.precise import PRECISION

RESIZES = ("pytorch", "tensorflow", "clean")
"""The conventions of `resize` that Inception's scores are published with."""

_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_STANDARD_DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)


@dataclass(frozen=True)
class FeatureNetwork:
  """A network whose features or logits a metric uses.

  Attributes:
    name: recorded with every number.
    apply: (params, uint8 images [N, H, W, C]) -> 'features' float32 [N, D] and other outputs by name. It is pure, takes
      any H and W, and treats images independently.
    params: the parameters.
    resize: a convention of `resize`, or "none" if images are not resized; recorded with every number.
  """

  name: str
  apply: Callable[[Any, jax.Array], Mapping[str, jax.Array]]
  params: Any
  resize: str


def pixels() -> FeatureNetwork:
  """Returns the network whose features are the pixels themselves, in [0, 1]: for tiny images, which no network knows.

  Distances between pixels ignore what images show, so they say nothing of large images.
  """

  def apply(params: Any, images: jax.Array) -> dict[str, jax.Array]:
    del params
    return {"features": images.reshape(images.shape[0], -1).astype(jnp.float32) / 255}

  return FeatureNetwork("pixels", apply, (), "none")


def resize(images: jax.Array, side: int, convention: str) -> jax.Array:
  """Resizes, by interpolation along one axis after the other.

  Args:
    images: [N, H, W, C] of any dtype, in 0..255.
    side: height and width of the result, in pixels.
    convention: "pytorch" and "tensorflow" are bilinear without antialiasing. They differ in the position of output
      pixel j among W input pixels: "pytorch" (j + 1/2) W / side - 1/2, so that pixel centres correspond; "tensorflow"
      j W / side, as in TensorFlow 1, NVIDIA's Inception graph and the scores of the StyleGAN family. Positions beyond
      the first or last pixel get its value. "bicubic" is cubic with antialiasing, as torch's `interpolate` with
      antialias=True; what it overshoots is kept. "clean" clips that to 0..255, as clean-fid, which resizes by Pillow in
      float32 (Parmar et al. 2022, arXiv 2104.11222).

  Returns:
    float32 [N, side, side, C].
  """
  vertical, horizontal = (_interpolation(size, side, convention) for size in images.shape[1:3])
  resized = jnp.einsum(
    "ih,nhwc,jw->nijc", vertical, images.astype(jnp.float32), horizontal, precision=PRECISION, optimize=True
  )
  return jnp.clip(resized, 0, 255) if convention == "clean" else resized


def cubic(x: np.ndarray, a: float) -> np.ndarray:
  """Returns the kernel of cubic convolution at x, which is 0 beyond 2 (Keys 1981); a is its slope at 1."""
  x = np.abs(x)
  near = ((a + 2) * x - (a + 3)) * x**2 + 1
  far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
  return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def standardise(images: jax.Array) -> jax.Array:
  """Standardises RGB images in 0..255 by ImageNet's channel statistics, as torchvision does: float32 [N, H, W, 3]."""
  mean, deviation = (jnp.asarray(values)[None, None, None] for values in (_MEAN, _STANDARD_DEVIATION))
  return (images / 255 - mean) / deviation


def as_rgb(images: jax.Array) -> jax.Array:
  """Repeats grey images, puts RGBA ones, premultiplied, over white: uint8 [N, H, W, 1, 3 or 4] -> [N, H, W, 3]."""
  if images.shape[-1] == 4:
    colours, alpha = images[..., :3], images[..., 3:]
    return jnp.minimum(colours, alpha) + (255 - alpha)
  return jnp.broadcast_to(images, (*images.shape[:3], 3))


def _interpolation(size: int, side: int, convention: str) -> np.ndarray:
  """Returns the matrix [side, size] of interpolation along one axis."""
  if convention in ("bicubic", "clean"):
    # The kernel is as wide as an output pixel, if that is the wider one, and the image ends at its border.
    width = max(size / side, 1.0)
    centres = (np.arange(side)[:, None] + 0.5) * size / side
    weights = cubic((np.arange(size)[None] + 0.5 - centres) / width, -0.5)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
  shift = {"pytorch": 0.5, "tensorflow": 0.0}[convention]
  positions = np.clip((np.arange(side) + shift) * size / side - shift, 0, size - 1)
  below = np.floor(positions).astype(int)
  above = np.minimum(below + 1, size - 1)
  matrix = np.zeros((side, size))
  np.add.at(matrix, (np.arange(side), below), 1 - (positions - below))
  np.add.at(matrix, (np.arange(side), above), positions - below)
  return matrix.astype(np.float32)
