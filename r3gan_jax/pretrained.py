"""Finds pretrained networks and their weights: for scores, and for GANs that use them in training."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from r3gan_jax.errors import UserError
from r3gan_jax.interop.weights import DINOV2, INCEPTION, LPIPS, VGG16, cache_directory
from r3gan_jax.metrics import digits_cnn, dinov2, inception, lpips, residual_cnn, vgg
from r3gan_jax.metrics.features import RESIZES, FeatureNetwork, pixels
from r3gan_jax.ops.images import to_float, to_uint8

FEATURE_NETWORKS = ("inception", "vgg16", "dinov2", "digits", "pixels")


def build_feature_network(
  name: str, resize: str = "tensorflow", weights: Path | None = None, download: bool = False
) -> FeatureNetwork:
  """Builds a network of `FEATURE_NETWORKS` with its weights.

  Args:
    name: "inception" for FID, KID and Inception score, "vgg16" for precision and recall, "dinov2" for FD_DINOv2,
      "digits" for (stacked) MNIST, "pixels" for tiny images.
    resize: how images are resized for Inception, of `features.RESIZES`.
    weights: its file; default: the published one, or MNIST's classifier, from the user's cache.
    download: fetches the published file if it is missing.

  Raises:
    UserError: the name or the resize is unknown, or the weights are missing, damaged, or another network's.
  """
  if resize not in RESIZES:
    raise UserError(f"resize {resize!r} is unknown: choose from {list(RESIZES)}")
  if name == "inception":
    return inception.feature_network(INCEPTION.params(inception.abstract_params(), weights, download), resize)
  if name == "vgg16":
    return vgg.feature_network(VGG16.params(vgg.abstract_params(), weights, download))
  if name == "dinov2":
    return dinov2.feature_network(DINOV2.params(dinov2.abstract_params(), weights, download))
  if name == "digits":
    path = weights or classifier_path("mnist")
    return digits_cnn.feature_network(digits_cnn.load(path)[0], path.stem)
  if name == "pixels":
    return pixels()
  raise UserError(f"feature network {name!r} is unknown: choose from {list(FEATURE_NETWORKS)}")


OF_ONE_METRIC = {"fd_dinov2": (DINOV2,), "ppl": (VGG16, LPIPS)}
"""The metrics whose networks cannot be chosen -> the published weights of these."""


def lpips_params(download: bool = False) -> dict:
  """Returns the published parameters of `metrics.lpips.LPIPS`; errors are those of `build_feature_network`."""
  abstract = lpips.abstract_params()
  vgg16 = VGG16.params(abstract.pop("vgg16"), download=download)
  return LPIPS.params(abstract, download=download) | {"vgg16": vgg16}


def classifier_path(data_set: str) -> Path:
  """Returns where `cli.train_classifier` keeps the classifier of a data set."""
  return cache_directory() / f"digits-cnn-{data_set}.npz"


@dataclass(frozen=True, eq=False)
class PretrainedNetwork:
  """A network that a GAN uses in training but does not train; see `algorithms.capabilities.HasPretrainedNetworks`.

  Attributes:
    apply: (params, images [N, H, W, C], uint8, uint16 or float in [-1, 1]) -> outputs by name; pure.
    features: length of its output 'features', [N, features].
    read: returns the parameters, numpy arrays, the same at every call. Whatever needs no weights does not call it.
  """

  apply: Callable[[Any, jax.Array], Mapping[str, jax.Array]]
  features: int
  read: Callable[[], Any]


def residual_classifier(setting: str, path: str, shape: tuple[int, int, int], classes: int = 0) -> PretrainedNetwork:
  """Returns the classifier that `cli.train_classifier --config` wrote, of images (H, W, C): 'features' and 'logits'.

  Args:
    setting: that names the file, for the UserError of `read` if it does not fit: see `metrics.residual_cnn.load`.
    classes: that it has to know; 0: any number.
  """

  @cache
  def read() -> Any:
    try:
      return residual_cnn.load(path, shape, classes)
    except UserError as error:
      raise UserError(f"{setting}: {error}") from None

  return PretrainedNetwork(residual_cnn.outputs, residual_cnn.FEATURES, read)


def pretrained_features(setting: str, name: str, shape: tuple[int, int, int]) -> PretrainedNetwork:
  """Returns the network of a name of `FEATURE_NETWORKS`, with weights from the user's cache, or of a classifier's file.

  Args:
    setting: that names it, for UserErrors: that the name is unknown, of `read`, and of `apply` to latents.
    name: see above; a file is that of `residual_classifier`.
    shape: (H, W, C) of the images.
  """
  if name.endswith(".npz"):
    return residual_classifier(setting, name, shape)
  # Without weights, which only training needs.
  networks: dict[str, Callable[[], tuple[FeatureNetwork, Any]]] = {
    "inception": lambda: (inception.feature_network({}), inception.abstract_params()),
    "vgg16": lambda: (vgg.feature_network({}), vgg.abstract_params()),
    "dinov2": lambda: (dinov2.feature_network({}), dinov2.abstract_params()),
    "digits": lambda: (digits_cnn.feature_network({}, ""), digits_cnn.abstract_params()),
    "pixels": lambda: (pixels(), ()),
  }
  if name not in networks:
    raise UserError(f"{setting} is unknown: choose from {list(networks)}, or FILE.npz of cli.train_classifier")
  network, abstract = networks[name]()

  def apply(params: Any, images: jax.Array) -> Mapping[str, jax.Array]:
    if jnp.issubdtype(images.dtype, jnp.floating):
      raise UserError(f"{setting} sees images, not latents: train a network for them with cli.train_classifier")
    return network.apply(params, images if images.dtype == jnp.uint8 else to_uint8(to_float(images)))

  @cache
  def read() -> Any:
    try:
      return build_feature_network(name).params
    except UserError as error:
      raise UserError(f"{setting}: {error}") from None

  outputs = jax.eval_shape(apply, abstract, jax.ShapeDtypeStruct((1, *shape), jnp.uint8))
  return PretrainedNetwork(apply, outputs["features"].shape[-1], read)
