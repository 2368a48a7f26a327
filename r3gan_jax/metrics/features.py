"""The interface of feature networks, and the resizing of their input images."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from r3gan_jax.networks.precise import PRECISION

RESIZES = ("pytorch", "tensorflow")
"""The conventions of `resize`."""


@dataclass(frozen=True)
class FeatureNetwork:
  """A network whose features or logits a metric uses.

  Attributes:
    name: recorded with every number.
    apply: (params, uint8 images [N, H, W, C]) -> 'features' float32 [N, D] and other outputs by name. It is pure, takes
      any H and W, and treats images independently.
    params: the parameters.
    resize: one of `RESIZES`, or "none" if images are not resized; recorded with every number.
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
  """Resizes bilinearly without antialiasing.

  Args:
    images: [N, H, W, C] of any dtype.
    side: height and width of the result, in pixels.
    convention: the position of output pixel j among W input pixels: "pytorch" (j + 1/2) W / side - 1/2, so that pixel
      centres correspond; "tensorflow" j W / side, as in TensorFlow 1, NVIDIA's Inception graph and the scores of the
      StyleGAN family. Positions beyond the first or last pixel get its value.

  Returns:
    float32 [N, side, side, C].
  """
  vertical, horizontal = (_interpolation(size, side, convention) for size in images.shape[1:3])
  return jnp.einsum(
    "ih,nhwc,jw->nijc", vertical, images.astype(jnp.float32), horizontal, precision=PRECISION, optimize=True
  )


def as_rgb(images: jax.Array) -> jax.Array:
  """Repeats grey images, puts RGBA ones, premultiplied, over white: uint8 [N, H, W, 1, 3 or 4] -> [N, H, W, 3]."""
  if images.shape[-1] == 4:
    colours, alpha = images[..., :3], images[..., 3:]
    return jnp.minimum(colours, alpha) + (255 - alpha)
  return jnp.broadcast_to(images, (*images.shape[:3], 3))


def _interpolation(size: int, side: int, convention: str) -> np.ndarray:
  """Returns the matrix [side, size] of linear interpolation along one axis."""
  shift = {"pytorch": 0.5, "tensorflow": 0.0}[convention]
  positions = np.clip((np.arange(side) + shift) * size / side - shift, 0, size - 1)
  below = np.floor(positions).astype(int)
  above = np.minimum(below + 1, size - 1)
  matrix = np.zeros((side, size))
  np.add.at(matrix, (np.arange(side), below), 1 - (positions - below))
  np.add.at(matrix, (np.arange(side), above), positions - below)
  return matrix.astype(np.float32)
