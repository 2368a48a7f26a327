"""Converts between the official implementation's names and layouts of R3GAN's parameters and ours."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from r3gan_jax.networks.r3gan import Discriminator, Generator

Params = dict[str, Any]
Network = Generator | Discriminator

EMBEDDING = "Model.EmbeddingLayer.weight"
_RESAMPLING_KERNEL = np.outer([1, 3, 3, 1], [1, 3, 3, 1]).astype(np.float32) / 64


def to_params(network: Network, state: Mapping[str, np.ndarray]) -> Params:
  """Converts an official state dict to our parameters, float32; ignores other entries."""
  leaves = {}
  for name, path, _ in official_parameters(network):
    value = state[name]
    if name.endswith(".Layer.weight") and value.shape[2:] == (1, 1):
      value = value[..., 0, 0]
    elif name.endswith(".Basis.weight"):  # depthwise: [C, 1, H, W]
      value = value[:, 0]
    # [C]; [out, in] -> [in, out]; [C, H, W] -> [H, W, C]; OIHW -> HWIO
    value = value.transpose(((0,), (1, 0), (1, 2, 0), (2, 3, 1, 0))[value.ndim - 1])
    leaves[path] = np.ascontiguousarray(value, np.float32)
  return unflatten_dict(leaves)


def to_state_dict(network: Network, params: Params) -> dict[str, np.ndarray]:
  """Converts our parameters to an official state dict; the inverse of `to_params`."""
  leaves = flatten_dict(params)
  state = {}
  for name, path, _ in official_parameters(network):
    value = np.asarray(leaves[path])
    value = value.transpose(((0,), (1, 0), (2, 0, 1), (3, 2, 0, 1))[value.ndim - 1])
    if name.endswith(".Layer.weight") and value.ndim == 2:
      value = value[..., None, None]
    elif name.endswith(".Basis.weight"):
      value = value[:, None]
    state[name] = np.ascontiguousarray(value)
  return state


def resampling_kernels(network: Network) -> dict[str, np.ndarray]:
  """Returns the buffers of the official module, which its state dict has besides the parameters."""
  stages = range(1, len(network.widths))
  return {f"{_transition(network, stage)}.Resampler.Kernel": _RESAMPLING_KERNEL for stage in stages}


def official_parameters(network: Network) -> Iterator[tuple[str, tuple[str, ...], tuple[int, ...]]]:
  """Yields (official name, path in our tree, official shape) of each parameter, for RGB images."""
  widths = network.widths
  generates = isinstance(network, Generator)
  for stage, width in enumerate(widths):
    inner = round(network.expansion * width)
    group = inner // network.cardinalities[stage]
    for block in range(network.blocks[stage]):
      # G's stages begin with a transition, D's end with one.
      name = f"{stage_name(network, stage)}.Layers.{block + generates}"
      path = f"stage_{stage}_block_{block}"
      yield f"{name}.LinearLayer1.Layer.weight", (path, "conv1"), (inner, width, 1, 1)
      yield f"{name}.LinearLayer2.Layer.weight", (path, "conv2"), (inner, group, 3, 3)
      yield f"{name}.LinearLayer3.Layer.weight", (path, "conv3"), (width, inner, 1, 1)
      yield f"{name}.NonLinearity1.Bias", (path, "bias1"), (inner,)
      yield f"{name}.NonLinearity2.Bias", (path, "bias2"), (inner,)
  for stage, (coarse, fine) in enumerate(itertools.pairwise(widths), start=1):
    if coarse != fine:
      path, shape = (f"up_{stage}", (fine, coarse)) if generates else (f"down_{stage - 1}", (coarse, fine))
      yield f"{_transition(network, stage)}.LinearLayer.Layer.weight", (path, "conv", "kernel"), (*shape, 1, 1)

  basis, constant, linear = _transition(network, 0), ("basis", "constant"), ("basis", "linear", "kernel")
  embed_dim = network.embed_dim if network.num_classes else 0
  if isinstance(network, Generator):
    yield f"{basis}.Basis", constant, (widths[0], 4, 4)
    yield f"{basis}.LinearLayer.weight", linear, (widths[0], network.noise_dim + embed_dim)
    yield "Model.AggregationLayer.Layer.weight", ("to_image", "kernel"), (3, widths[-1], 1, 1)
  else:
    yield "Model.ExtractionLayer.Layer.weight", ("from_image", "kernel"), (widths[-1], 3, 1, 1)
    yield f"{basis}.Basis.weight", constant, (widths[0], 1, 4, 4)
    yield f"{basis}.LinearLayer.weight", linear, (embed_dim or 1, widths[0])
  if network.num_classes:
    yield EMBEDDING, ("class_embedding", "kernel"), (embed_dim, network.num_classes)


def stage_name(network: Network, stage: int) -> str:
  """Returns the official name of a stage: G lists its stages from 4x4 upward, D down to 4x4."""
  return f"Model.MainLayers.{stage if isinstance(network, Generator) else len(network.widths) - 1 - stage}"


def _transition(network: Network, stage: int) -> str:
  """Returns the name of the layer between `stage` and the next lower one; for stage 0, of the basis."""
  return f"{stage_name(network, stage)}.Layers.{0 if isinstance(network, Generator) else network.blocks[stage]}"
