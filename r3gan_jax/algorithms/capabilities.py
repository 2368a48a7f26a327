"""What an algorithm may have or do besides `algorithms.base.Algorithm`: each class is asked for by `isinstance`."""

from collections.abc import Collection, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from r3gan_jax.algorithms.base import Algorithm, Carry, Params
from r3gan_jax.pretrained import PretrainedNetwork


@runtime_checkable
class HasBoundedNoise(Protocol):
  """An algorithm whose noise fills a box. Others have N(0, 1), which is near a sphere.

  It is interpolated along straight lines, which do not leave the box, rather than on the sphere, and inversion stays in
  the box.
  """

  @property
  def noise_bounds(self) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest noise, float32 [noise_dim] each."""


@runtime_checkable
class HasLeadingRows(Protocol):
  """An algorithm with parameters whose rows have two meanings; for training/transfer.py."""

  @property
  def leading_rows(self) -> Mapping[str, Mapping[str, int]]:
    """Network -> parameter, "layer/.../name" -> how many of its first rows mean the same in every configuration."""


@runtime_checkable
class HasFrozenLayers(Protocol):
  """An algorithm that may keep layers as config.init_from has them: they get no gradients and no optimiser state."""

  @property
  def frozen(self) -> Collection[tuple[str, str]]:
    """The (network, layer) that are never updated; a layer is all below one key of the network's parameters."""


@runtime_checkable
class HasPretrainedNetworks(Protocol):
  """An algorithm whose phases use networks that nothing trains; sampling does not need them.

  Phases find their parameters in `params`, beside those of the networks that are trained. They are an argument of the
  training step: a constant would be part of the compiled program, and in the state they would be in every checkpoint.
  """

  @property
  def pretrained(self) -> Mapping[str, PretrainedNetwork]:
    """Name -> network; no name is that of a network that is trained."""


def trainable(algorithm: Any, trees: Params) -> Params:
  """Returns network -> parameters, or trees like them, without frozen layers; `trees` itself if there are none."""
  if not (frozen := algorithm.frozen if isinstance(algorithm, HasFrozenLayers) else ()):
    return trees
  return {
    network: {layer: part for layer, part in tree.items() if (network, layer) not in frozen}
    for network, tree in trees.items()
  }


@runtime_checkable
class HasStandingMoments(Protocol):
  """An algorithm that recomputes the moments of batch norm for its averaged parameters, rather than average them."""

  def standing(self, params: Params, carry: Carry) -> Carry:
    """Returns the carry for `Algorithm.generate`; pure and traceable, and the same wherever it is computed."""


@runtime_checkable
class HasPictures(Protocol):
  """An algorithm that draws other pictures than samples at a snapshot."""

  def pictures(self, params: Params, carry: Carry, images: jax.Array) -> Mapping[str, jax.Array]:
    """Returns pictures [N, height, width, C] by name, from real images float32 [N, H, W, C] in [-1, 1]; traceable.

    Each name becomes a grid, samples/NAME_*.png, which the report shows.
    """


@runtime_checkable
class HasClassifier(Protocol):
  """An algorithm that learns to classify images; for the metric "classification_error"."""

  def classify(self, params: Params, carry: Carry, images: jax.Array) -> jax.Array:
    """Returns logits of the data's classes [N, K] from images float32 [N, H, W, C] in [-1, 1]; traceable.

    An image's logits do not depend on the other images.
    """


@runtime_checkable
class HasCategories(Protocol):
  """An algorithm that sorts images into categories of its own, without labels; for "classification_error"."""

  def categorise(self, params: Params, carry: Carry, images: jax.Array) -> jax.Array:
    """Returns logits of the categories [N, K]; otherwise as `HasClassifier.classify`."""


@runtime_checkable
class HasCodes(Protocol):
  """An algorithm that encodes images; for "classification_error", by the class of the nearest code."""

  def encode(self, params: Params, carry: Carry, images: jax.Array) -> jax.Array:
    """Returns codes [N, D]; otherwise as `HasClassifier.classify`."""


@runtime_checkable
class HasImageDtype(Protocol):
  """An algorithm whose images may be computed in another dtype than float32; for config.run.quantisation."""

  @property
  def image_dtype(self) -> jnp.dtype:
    """The dtype of the generator's last layer."""


@runtime_checkable
class HasBfloat16(Protocol):
  """An algorithm whose generator may compute in bfloat16; for the metric "ppl", whose steps are below its rounding."""

  def in_float32(self) -> Algorithm:
    """Returns the same algorithm with a generator in float32, which has the same parameters."""


@runtime_checkable
class HasStyles(Protocol):
  """An algorithm that maps z to w, where paths are straight; for the metric "ppl"."""

  def styles(self, params: Params, noise: jax.Array) -> jax.Array:
    """Returns w [N, width] of noise [N, noise_dim]."""

  def from_styles(self, params: Params, carry: Carry, w: jax.Array, noise: jax.Array) -> jax.Array:
    """Draws images from w; what else `noise` has is used as by `Algorithm.generate`."""


@runtime_checkable
class HasImageFeatures(Protocol):
  """An algorithm whose discriminator can compare two images; for inversion.py."""

  @property
  def image_features(self) -> nn.Module:
    """(images, labels) -> logits, by params["discriminator"]; its feature maps of an image ignore the other images."""


class LearnsFromUnlabelled:
  """The base class of semi-supervised algorithms, the only ones that get images without a label.

  With config.data.labelled_images, 'label' is -1 for those. (JAX indexes the last class with it.) A mean over the
  labelled images alone couples the batch; see `Phase.group`.
  """
