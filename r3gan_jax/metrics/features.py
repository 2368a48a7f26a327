"""What the metrics know of a feature network, and how images come to the size that it was trained on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

RESIZES = ("pytorch", "tensorflow")
"""Conventions of resizing: see `resize`."""

PRECISION = jax.lax.Precision.HIGHEST
"""Of every product in a feature network: published scores are float32's, which TPUs and GPUs do not use unasked."""


@dataclass(frozen=True)
class FeatureNetwork:
  """A network whose features, or logits, a metric compares.

  Attributes:
    name: recorded with every number.
    apply: (params, uint8 images [N, H, W, C]) -> 'features' float32 [N, D] and what else the network has; pure, of any
      H and W; one image's result does not depend on the others.
    params: its parameters.
    resize: of `RESIZES`, recorded with every number; "none" where the network takes images as they are.
  """

  name: str
  apply: Callable[[Any, jax.Array], Mapping[str, jax.Array]]
  params: Any
  resize: str


def resize(images: jax.Array, side: int, convention: str) -> jax.Array:
  """Bilinear, from two pixels along each axis: never antialiased, whatever the factor.

  Args:
    images: [N, H, W, C] of any dtype.
    side: of the result.
    convention: where along W pixels pixel j of the result is taken: "pytorch" at (j + 1/2) W / side - 1/2 (pixels are
      squares, whose centres correspond), "tensorflow" at j W / side (TensorFlow 1, hence NVIDIA's Inception graph and
      the scores of the StyleGAN family). Beyond the first and last pixel the image goes on as they are.

  Returns:
    float32 [N, side, side, C].
  """
  vertical, horizontal = (_interpolation(size, side, convention) for size in images.shape[1:3])
  return jnp.einsum(
    "ih,nhwc,jw->nijc", vertical, images.astype(jnp.float32), horizontal, precision=PRECISION, optimize=True
  )


def as_rgb(images: jax.Array) -> jax.Array:
  """[N, H, W, 1 or 3] -> [N, H, W, 3]: grey is repeated."""
  return jnp.broadcast_to(images, (*images.shape[:3], 3))


def _interpolation(size: int, side: int, convention: str) -> np.ndarray:
  """The matrix [side, size] of linear interpolation along one axis."""
  shift = {"pytorch": 0.5, "tensorflow": 0.0}[convention]
  positions = np.clip((np.arange(side) + shift) * size / side - shift, 0, size - 1)
  below = np.floor(positions).astype(int)
  above = np.minimum(below + 1, size - 1)
  matrix = np.zeros((side, size))
  np.add.at(matrix, (np.arange(side), below), 1 - (positions - below))
  np.add.at(matrix, (np.arange(side), above), positions - below)
  return matrix.astype(np.float32)
