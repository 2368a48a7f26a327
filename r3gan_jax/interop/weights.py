"""Finds or downloads the published weights of feature networks, verifies them, and converts them to Flax parameters."""

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from r3gan_jax.errors import UserError
from r3gan_jax.interop.download import check_sum, fetch
from r3gan_jax.interop.pytorch import read_state_dict
from r3gan_jax.storage import failing_as

Params = dict[str, Any]
Reader = Callable[[str, tuple[int, ...]], np.ndarray]
"""(name, shape) -> the tensor, float32; raises a UserError if there is none of that shape."""
Shapes = Mapping[str, tuple[int, ...]]
"""Leaf of a layer, such as 'kernel' or 'bias' -> its shape."""

_BATCH_NORM_EPSILON = 1e-3


@dataclass(frozen=True)
class PublishedWeights:
  """A published file of weights, and its conversion to the parameters of our network.

  Attributes:
    url: where it is.
    sha256: the first 8 hex digits of its SHA-256.
    layer: (reader, path of a layer in our network, leaf -> shape) -> leaf -> float32 array.
    file_name: its name in `cache_directory()`; default: that in the URL.
  """

  url: str
  sha256: str
  layer: Callable[[Reader, tuple[str, ...], Shapes], dict[str, np.ndarray]]
  file_name: str = ""

  def __post_init__(self) -> None:
    object.__setattr__(self, "file_name", self.file_name or self.url.rpartition("/")[2])

  @property
  def cached(self) -> Path:
    """The file in `cache_directory()`."""
    return cache_directory() / self.file_name

  def params(self, abstract: Params, path: Path | None = None, download: bool = False) -> Params:
    """Returns the parameters, with the structure and shapes of `abstract`.

    Args:
      abstract: the parameters as `jax.ShapeDtypeStruct`s.
      path: the published file, or a state dict or .npz of its tensors with their published names, of any values;
        default: the published file in `cache_directory()`.
      download: downloads the published file if it is missing.

    Raises:
      UserError: the file is missing and `download` is off; it cannot be downloaded; a file with the published name has
        another checksum; a tensor is missing or has another shape.
    """
    path = path or self.cached
    if not path.exists():
      if not download:
        raise UserError(f"{path} does not exist: put {self.url} there, or download it with --download")
      fetch(self.url, path, self.sha256, otherwise=f"put it at {path}")
    if path.name == self.file_name:
      with failing_as(f"cannot read {path}", path):
        check_sum(path, self.sha256)
    try:
      return self.convert(read_state_dict(path), abstract, str(path))
    except UserError as error:
      raise UserError(
        f"{error}: give {self.url}, or a state dict (.pth) or .npz that has its tensors by name and shape"
      ) from None

  def convert(self, tensors: Mapping[str, np.ndarray], abstract: Params, title: str) -> Params:
    """Converts published tensors by name to `params`; `title` names them in errors."""

    def read(name: str, shape: tuple[int, ...]) -> np.ndarray:
      if name not in tensors:
        raise UserError(f"{title} has no tensor {name}")
      if tensors[name].shape != shape or not jnp.issubdtype(tensors[name].dtype, jnp.number):
        raise UserError(f"{title}: {name} is {tensors[name].dtype} {tensors[name].shape}, not numbers {shape}")
      return tensors[name].astype(np.float32)

    layers: dict[tuple[str, ...], dict[str, tuple[int, ...]]] = {}
    for (*path, leaf), value in flatten_dict(abstract).items():
      layers.setdefault(tuple(path), {})[leaf] = value.shape
    return unflatten_dict(
      {(*path, leaf): value for path, of in layers.items() for leaf, value in self.layer(read, path, of).items()}
    )


def published(path: Path) -> bool:
  """Returns whether `path` has the name of a published file, so that its checksum is verified when it is read."""
  return path.name in (weights.file_name for weights in (INCEPTION, VGG16, DINOV2, LPIPS))


def file_fingerprint(path: Path) -> str:
  """Returns the first 8 hex digits of the SHA-256 of a file."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()[:8]


def cache_directory() -> Path:
  """Returns the directory of weights and cached statistics: r3gan_jax in the user's cache."""
  return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "r3gan_jax"


def _inception_layer(read: Reader, path: tuple[str, ...], shapes: Shapes) -> dict[str, np.ndarray]:
  """Converts the layer of the same name; folds batch normalisation into the convolution."""
  name, shape = ".".join(path), shapes["kernel"]
  if len(shape) == 2:
    return {"kernel": _kernel(read, f"{name}.weight", shape), "bias": read(f"{name}.bias", shape[-1:])}
  kernel = _kernel(read, f"{name}.conv.weight", shape)
  scale, bias, mean, variance = (
    read(f"{name}.bn.{leaf}", shape[-1:]).astype(np.float64)
    for leaf in ("weight", "bias", "running_mean", "running_var")
  )
  scale /= np.sqrt(variance + _BATCH_NORM_EPSILON)
  folded = {"kernel": kernel * scale, "bias": bias - mean * scale}
  return jax.tree.map(lambda leaf: leaf.astype(np.float32), folded)


_VGG16_LAYERS = {
  **dict(
    zip(
      [f"conv{block}_{n}" for block, n in ((1, 2), (2, 2), (3, 3), (4, 3), (5, 3)) for n in range(1, n + 1)],
      [f"features.{index}" for index in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)],
      strict=True,
    )
  ),
  "fc1": "classifier.0",
  "fc2": "classifier.3",
}
"""Our name -> the published one; the numbers left out are activations, pools and dropout."""


def _vgg16_layer(read: Reader, path: tuple[str, ...], shapes: Shapes) -> dict[str, np.ndarray]:
  (layer,), shape = path, shapes["kernel"]
  name = _VGG16_LAYERS[layer]
  kernel = _kernel(read, f"{name}.weight", shape)
  if layer == "fc1":  # its inputs are 7x7 features, flattened as [C, H, W] there, as [H, W, C] here
    kernel = kernel.reshape(-1, 7, 7, shape[1]).transpose(1, 2, 0, 3).reshape(shape)
  return {"kernel": kernel, "bias": read(f"{name}.bias", shape[-1:])}


def _dinov2_layer(read: Reader, path: tuple[str, ...], shapes: Shapes) -> dict[str, np.ndarray]:
  """Converts the layer of the same name, but for "blocks.0" and "patch_embed.proj"."""
  layer = "".join(f"{part}." for part in path)
  layer = layer.replace("blocks_", "blocks.").replace("patch_embed.", "patch_embed.proj.")
  found = {}
  for leaf, shape in shapes.items():
    if leaf == "kernel":
      found[leaf] = _kernel(read, f"{layer}weight", shape)
    else:
      found[leaf] = read(layer + ("weight" if leaf == "scale" else leaf), shape)
  return found


def _lpips_layer(read: Reader, path: tuple[str, ...], shapes: Shapes) -> dict[str, np.ndarray]:
  """Converts all weights, which are there those of 1x1 convolutions."""
  assert not path
  return {leaf: read(f"{leaf}.model.1.weight", (1, *shape, 1, 1)).reshape(shape) for leaf, shape in shapes.items()}


def _kernel(read: Reader, name: str, shape: tuple[int, ...]) -> np.ndarray:
  """Returns a kernel [inputs, outputs] or [h, w, inputs, outputs]; PyTorch has [outputs, inputs] or with h, w last."""
  *window, inputs, outputs = shape
  return np.moveaxis(read(name, (outputs, inputs, *window)), (0, 1), (-1, -2))


INCEPTION = PublishedWeights(
  "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
  "6726825d",
  _inception_layer,
)
VGG16 = PublishedWeights("https://download.pytorch.org/models/vgg16-397923af.pth", "397923af", _vgg16_layer)
# The authors publish no checksum: this one is that of four copies on the Hugging Face Hub, by different people, which
# agree; they have 1,217,586,395 bytes.
DINOV2 = PublishedWeights(
  "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth", "d5383ea8", _dinov2_layer
)
# Beside VGG16; the checksum is that of the file in the package lpips 0.1.4.
LPIPS = PublishedWeights(
  "https://github.com/richzhang/PerceptualSimilarity/raw/master/lpips/weights/v0.1/vgg.pth",
  "a78928a0",
  _lpips_layer,
  "lpips-v0.1-vgg.pth",
)
