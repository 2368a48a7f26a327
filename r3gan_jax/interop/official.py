"""Snapshots of the official PyTorch implementation, network-snapshot-*.pkl, without PyTorch.

Such a file is one pickle of a dict: the modules `G`, `D` and `G_ema`, the states of their Adams, `G_opt_state` and
`D_opt_state`, and the images seen, `cur_nimg`. The unpickler of interop.pytorch reads it, the official modules' names
admitted besides: all of them stand for one inert class. The architecture follows from names and shapes of G's tensors;
then every name and shape is checked against it.
"""

import itertools
import mmap
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from r3gan_jax.interop.pytorch import Storage, Tensor, Unpickler, check, load_legacy, one_line_errors
from r3gan_jax.networks.r3gan import Discriminator, Generator

Params = dict[str, Any]
Network = Generator | Discriminator

_MODULES = {
  "training.networks": ("Generator", "Discriminator"),
  "R3GAN.Networks": (
    *("Generator", "GeneratorStage", "GenerativeBasis", "UpsampleLayer"),
    *("Discriminator", "DiscriminatorStage", "DiscriminativeBasis", "DownsampleLayer"),
    *("ResidualBlock", "Convolution"),
  ),
  "R3GAN.FusedOperators": ("BiasedActivationCUDA",),
  "R3GAN.Resamplers": ("InterpolativeUpsamplerCUDA", "InterpolativeDownsamplerCUDA"),
  "torch.nn.modules.container": ("ModuleList",),
  "torch.nn.modules.conv": ("Conv2d",),
  "torch.nn.modules.linear": ("Linear",),
}
_EARLIER_MODULES = {
  "training.networks_baseline": "training.networks",
  **{f"BaselineGAN.{module}": f"R3GAN.{module}" for module in ("Networks", "FusedOperators", "Resamplers")},
}
"""As the published snapshots name them: huggingface.co/brownvc/R3GAN-ImgNet-32x32 lists what its file imports."""
_PICKLE = b"\x80"
_EMBEDDING = "Model.EmbeddingLayer.weight"
_RESAMPLING_KERNEL = np.outer([1, 3, 3, 1], [1, 3, 3, 1]).astype(np.float32) / 64


@dataclass(frozen=True)
class Snapshot:
  """A run of the official implementation in our layout: trees as of our modules, leaves float32 numpy arrays.

  Attributes:
    generator, discriminator: the modules; their `bfloat16_stages` are those it was trained with.
    params: "generator" and "discriminator" -> parameters.
    ema: the moving average of the generator's parameters.
    second_moments: "generator" and "discriminator" -> those of Adam; zeros where the file holds none.
    updates: how many Adam made of each; 0 where the file holds none.
    images_seen: `cur_nimg`.
  """

  generator: Generator
  discriminator: Discriminator
  params: dict[str, Params]
  ema: Params
  second_moments: dict[str, Params]
  updates: dict[str, int]
  images_seen: int


def read_snapshot(path: Path) -> Snapshot:
  """Reads a snapshot; executes nothing in it.

  Raises:
    UserError: there is no such file, or it is damaged, hostile, or holds other networks than R3GAN's.
  """
  with one_line_errors(path, "an official snapshot of R3GAN"):
    # Mapped: whatever sizes it claims, no more is reserved than is there.
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
      check(mapped[:1] == _PICKLE, "it is no pickle")
      content = _SnapshotUnpickler(cast(IO[bytes], mapped)).load()
    check(isinstance(content, dict), "it holds no dict")
    g, d, g_ema = (_OfficialNetwork(name, content) for name in ("G", "D", "G_ema"))
    generator = g.infer_generator()
    discriminator = d.infer_discriminator(generator)
    images_seen = content.get("cur_nimg")
    check(type(images_seen) is int and 0 <= images_seen < 2**31, "its cur_nimg is no number of images")
    (g_updates, g_moments), (d_updates, d_moments) = g.adam(generator), d.adam(discriminator)
    return Snapshot(
      generator,
      discriminator,
      params={"generator": g.params(generator), "discriminator": d.params(discriminator)},
      ema=g_ema.params(generator),
      second_moments={"generator": g_moments, "discriminator": d_moments},
      updates={"generator": g_updates, "discriminator": d_updates},
      images_seen=images_seen,
    )


def to_params(network: Network, state: Mapping[str, np.ndarray]) -> Params:
  """An official state dict as our parameters, float32; what is no parameter of `network` is passed over."""
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
  """Our parameters as an official state dict; the inverse of `to_params`."""
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
  """The buffers of the official module: PyTorch expects them beside the parameters."""
  stages = range(1, len(network.widths))
  return {f"{_transition(network, stage)}.Resampler.Kernel": _RESAMPLING_KERNEL for stage in stages}


def official_parameters(network: Network) -> Iterator[tuple[str, tuple[str, ...], tuple[int, ...]]]:
  """Of each parameter: its official name, its path in our tree, its official shape (images are RGB)."""
  widths = network.widths
  generates = isinstance(network, Generator)
  for stage, width in enumerate(widths):
    inner = round(network.expansion * width)
    group = inner // network.cardinalities[stage]
    for block in range(network.blocks[stage]):
      # G's stages begin with a transition, D's end with one.
      name = f"{_stage(network, stage)}.Layers.{block + generates}"
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
    yield _EMBEDDING, ("class_embedding", "kernel"), (embed_dim, network.num_classes)


def _stage(network: Network, stage: int) -> str:
  """G lists its stages from 4x4 upward, D downward to it."""
  return f"Model.MainLayers.{stage if isinstance(network, Generator) else len(network.widths) - 1 - stage}"


def _transition(network: Network, stage: int) -> str:
  """The layer between `stage` and the one below it; of stage 0, the basis."""
  return f"{_stage(network, stage)}.Layers.{0 if isinstance(network, Generator) else network.blocks[stage]}"


class _Module:
  """What a PyTorch module's state says of its tensors and submodules."""

  __slots__ = ("buffers", "data_type", "modules", "parameters")

  def __setstate__(self, state: Any) -> None:
    check(isinstance(state, dict), "a module without a state")
    self.parameters, self.buffers, self.modules = (state.get(f"_{n}") for n in ("parameters", "buffers", "modules"))
    check(all(isinstance(part, dict) for part in (self.parameters, self.buffers, self.modules)), "no module's state")
    self.data_type = state.get("DataType")  # of an official stage: what it computes in


class _SnapshotUnpickler(Unpickler):
  """A snapshot's storages are pickled in it as bytes, of torch.save's legacy form."""

  def __init__(self, file: IO[bytes]):
    super().__init__(file)
    self._read: dict[int, Storage] = {}
    self._admitted |= {
      **{(module, name): _Module for module, names in _MODULES.items() for name in names},
      **{(earlier, name): _Module for earlier, module in _EARLIER_MODULES.items() for name in _MODULES[module]},
      **{("torch", name): name for name in ("float32", "bfloat16")},
      ("torch.storage", "_load_from_bytes"): self._storage,
    }

  def persistent_load(self, identifier: Any) -> Storage:
    raise pickle.UnpicklingError("a reference to a storage elsewhere")

  def _storage(self, content: Any) -> Storage:
    check(
      isinstance(content, bytes) and content[:1] == _PICKLE, "a storage that torch.save's legacy form does not hold"
    )
    if id(content) not in self._read:  # once, however often a hostile file asks
      storage = load_legacy(content)
      check(isinstance(storage, Storage), "a storage that is something else")
      self._read[id(content)] = storage
    return self._read[id(content)]


class _OfficialNetwork:
  """`name` of a snapshot: its parameters and buffers, in PyTorch's order, and the state of its Adam."""

  def __init__(self, name: str, content: dict[Any, Any]):
    self._name = name
    self._module: Any = content.get(name)
    self._adam: Any = content.get(f"{name}_opt_state", {"state": {}})
    self._parameters: dict[str, Tensor] = {}
    self._buffers: dict[str, Tensor] = {}
    self._walk(self._module, "", set())

  def infer_generator(self) -> Generator:
    """The module that has the parameters' names and shapes, as far as these few tell."""
    widths: list[int] = []
    cardinalities: list[int] = []
    blocks: list[int] = []
    expansion = 0.0
    while f"Model.MainLayers.{len(widths)}.Layers.1.LinearLayer1.Layer.weight" in self._parameters:
      layers = f"Model.MainLayers.{len(widths)}.Layers"
      inner, width = self._shape(f"{layers}.1.LinearLayer1.Layer.weight", 4)[:2]
      widths.append(width)
      group = self._shape(f"{layers}.1.LinearLayer2.Layer.weight", 4)[1]
      check(inner % group == 0, f"{self._name}'s groups of {group} channels do not divide {inner}")
      cardinalities.append(inner // group)
      expansion = inner / width
      following = (f"{layers}.{n}.LinearLayer1.Layer.weight" for n in itertools.count(2))
      blocks.append(next(n for n, name in enumerate(following, start=1) if name not in self._parameters))
    check(bool(widths), f"{self._name} has no stages")
    embed_dim, num_classes = self._shape(_EMBEDDING, 2) if _EMBEDDING in self._parameters else (0, 0)
    noise_dim = self._shape("Model.MainLayers.0.Layers.0.LinearLayer.weight", 2)[1] - embed_dim
    check(noise_dim > 0, f"{self._name} takes no noise")
    return Generator(
      widths=tuple(widths),
      cardinalities=tuple(cardinalities),
      blocks=tuple(blocks),
      noise_dim=noise_dim,
      num_classes=num_classes,
      embed_dim=embed_dim,
      expansion=expansion,
      bfloat16_stages=self._bfloat16_stages(),
    )

  def infer_discriminator(self, generator: Generator) -> Discriminator:
    """The mirror image of `generator`."""
    shared = ("widths", "cardinalities", "blocks", "num_classes", "expansion", "bfloat16_stages")
    embed_dim = self._shape(_EMBEDDING, 2)[0] if generator.num_classes else 0
    return Discriminator(**{name: getattr(generator, name) for name in shared}, embed_dim=embed_dim)

  def params(self, network: Network) -> Params:
    """The parameters, whose names and shapes must be exactly those of `network`."""
    kernels, buffers = resampling_kernels(network), _arrays(self._buffers)
    check(buffers.keys() == kernels.keys(), f"{self._name} has other buffers than resampling kernels")
    check(all(np.array_equal(buffers[name], kernels[name]) for name in kernels), "it resamples by another filter")
    return self._to_params(network, self._parameters)

  def adam(self, network: Network) -> tuple[int, Params]:
    """How many updates it made, and the second moments; zeros where there is no state."""
    names = list(self._parameters)
    check(isinstance(self._adam, dict), f"{self._name}_opt_state is no dict")
    entries, groups = self._adam.get("state"), self._adam.get("param_groups")
    if entries == {}:
      zeros = {name: np.zeros(shape, np.float32) for name, _, shape in official_parameters(network)}
      return 0, to_params(network, zeros)
    check(isinstance(groups, list), "Adam has no groups")
    check(all(isinstance(group, dict) for group in groups), "Adam's groups are no dicts")
    check([group.get("params") for group in groups] == [list(range(len(names)))], "Adam's groups are not one of all")
    check(isinstance(entries, dict) and entries.keys() == set(range(len(names))), "Adam has other parameters")
    steps = {_count(entry["step"]) for entry in entries.values()}
    check(len(steps) == 1, "Adam's parameters differ in their updates")
    return steps.pop(), self._to_params(network, {name: entries[n]["exp_avg_sq"] for n, name in enumerate(names)})

  def _to_params(self, network: Network, tensors: Mapping[str, Any]) -> Params:
    expected = {name: shape for name, _, shape in official_parameters(network)}
    for name in (*expected, *tensors):
      shape = getattr(tensors.get(name), "shape", "absent")
      wanted = expected.get(name, "absent")
      check(shape == wanted, f"{self._name}.{name} is {shape}, not {wanted}: not R3GAN, or not of one size")
    return to_params(network, _arrays(tensors))

  def _shape(self, name: str, ndim: int) -> Sequence[int]:
    check(name in self._parameters, f"{self._name} has no {name}")
    shape = self._parameters[name].shape
    check(len(shape) == ndim and all(shape), f"{self._name}.{name} is {shape}")
    return shape

  def _bfloat16_stages(self) -> int:
    """Of G, whose stages are listed from 4x4 upward."""
    stages = self._module.modules["Model"].modules["MainLayers"].modules.values()
    lowered = [stage.data_type == "bfloat16" for stage in stages]
    check(lowered == sorted(lowered), "the stages in bfloat16 are not the highest ones")
    return sum(lowered)

  def _walk(self, module: Any, prefix: str, seen: set[int]) -> None:
    check(isinstance(module, _Module), f"{self._name}.{prefix}".rstrip(".") + " is no module")
    check(id(module) not in seen and len(prefix) < 200, "modules that are nested as R3GAN's are not")
    seen.add(id(module))
    for tensors, found in ((module.parameters, self._parameters), (module.buffers, self._buffers)):
      for name, tensor in tensors.items():
        if tensor is not None:
          check(isinstance(tensor, Tensor), f"{self._name}.{prefix}{name} is no tensor")
          found[f"{prefix}{name}"] = tensor
    for name, child in module.modules.items():
      self._walk(child, f"{prefix}{name}.", seen)


def _arrays(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
  check(len({id(tensor.storage) for tensor in tensors.values()}) == len(tensors), "tensors that share a storage")
  check(all(jnp.issubdtype(tensor.storage.dtype, jnp.floating) for tensor in tensors.values()), "tensors of integers")
  return {name: tensor.array() for name, tensor in tensors.items()}


def _count(step: Any) -> int:
  """A number of updates: a number, or, since PyTorch 1.12, a tensor of no dimensions."""
  number = float(step.array() if isinstance(step, Tensor) else step)
  check(number.is_integer() and 0 <= number < 2**31, "Adam's updates are no number")
  return int(number)
