"""Aligns D's features of reals with those of a pretrained network (losses/pretrained.py): docs/guidance.md."""

from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from r3gan_jax.algorithms.base import Params
from r3gan_jax.errors import UserError
from r3gan_jax.losses.pretrained import cosine_similarity
from r3gan_jax.networks.alignment import AlignmentHead
from r3gan_jax.pretrained import PretrainedNetwork

ALIGNMENT = "alignment"
"""The name of the pretrained network, and of the head among D's layers."""


@dataclass(frozen=True)
class Alignment:
  """How the features of a discriminator are aligned.

  Attributes:
    network: has the features with which they are aligned, of the real image as it is.
    layer: D's layer, whose output [N, h, w, C] for the augmented real image is projected: `networks.alignment`.
    weight: of the mean cosine similarity in D's loss.
  """

  network: PretrainedNetwork
  layer: str
  weight: float

  def check(self, discriminator: nn.Module, images: jax.Array, labels: jax.Array | None) -> None:
    """Raises a UserError unless D has the layer, and none of the head's name, which would be on the way to its logit.

    Args:
      discriminator: see `R3GAN`.
      images, labels: of one image.
    """
    layers = jax.eval_shape(discriminator.init, jax.random.key(0), images, labels)["params"]
    kind = type(discriminator).__name__
    if self.layer not in layers:
      raise UserError(
        f"config.gan.alignment_weight needs {self.layer} of the discriminator, which {kind} does not have: choose "
        "config.gan.network = 'r3gan', or set the weight to 0"
      )
    if ALIGNMENT in layers:
      raise UserError(
        f"{kind} has a layer {ALIGNMENT!r} of its own on the way to its logit, but the head must not be: rename it"
      )

  def init(
    self, key: jax.Array, discriminator: nn.Module, params: Any, images: jax.Array, labels: jax.Array | None
  ) -> Any:
    """Returns the parameters of the head; `params` are those of D, and the others as of `check`."""
    features = self._features(discriminator, params, images, labels)
    return AlignmentHead(self.network.features).init(key, features)["params"]

  def gradients(
    self, discriminator: nn.Module, params: Params, images: jax.Array, augmented: jax.Array, labels: jax.Array | None
  ) -> tuple[Any, jax.Array]:
    """Returns the gradient of -weight * similarity with respect to D's parameters, and the mean similarity.

    Neither the logits nor R1 and R2 depend on the head, so the gradient of the rest of D's loss is what it is without
    alignment, and both add up. This costs a pass of the reals through D, up to the layer, and back.

    Args:
      discriminator: see `R3GAN`.
      params: those of all networks by name.
      images: real ones [N, H, W, C], for the pretrained network.
      augmented: the same for D.
      labels: int32 [N], or None.
    """
    targets = self.network.apply(params[ALIGNMENT], images)["features"]
    head = AlignmentHead(targets.shape[-1])

    def loss(of_discriminator: Any) -> tuple[jax.Array, jax.Array]:
      features = self._features(discriminator, of_discriminator, augmented, labels)
      projected = cast(jax.Array, head.apply({"params": of_discriminator[ALIGNMENT]}, features))
      similarity = jnp.mean(cosine_similarity(projected, targets.astype(projected.dtype)))
      return -self.weight * similarity, similarity

    return jax.grad(loss, has_aux=True)(params["discriminator"])

  def _features(self, discriminator: nn.Module, params: Any, images: jax.Array, labels: jax.Array | None) -> jax.Array:
    """Returns the output [N, h, w, C] of the aligned layer of D; XLA drops what comes after it."""
    _, captured = discriminator.apply(
      {"params": params},
      images,
      labels,
      capture_intermediates=lambda module, _: module.path == (self.layer,),
      mutable=["intermediates"],
    )
    return captured["intermediates"][self.layer]["__call__"][0]
