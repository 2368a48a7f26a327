"""Reads snapshots of the official PyTorch implementation, network-snapshot-*.pkl, without PyTorch.

Such a file is one pickle of a dict: the modules `G`, `D` and `G_ema`, the Adam states `G_opt_state` and `D_opt_state`,
and the images seen, `cur_nimg`. The unpickler of interop.pytorch reads it and also accepts the names of the official
modules, which all become one inert class. The architecture is inferred from names and shapes of G's tensors; then
every name and shape is checked against it.
"""

import itertools
import mmap
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import jax.numpy as jnp
import numpy as np

from r3gan_jax.errors import UserError
from r3gan_jax.interop.official_names import (
  EMBEDDING,
  Network,
  Params,
  official_parameters,
  resampling_kernels,
  to_params,
  to_state_dict,
)
from r3gan_jax.interop.pytorch import Storage, Tensor, Unpickler, check, load_legacy, one_line_errors
from r3gan_jax.networks.r3gan import Discriminator, Generator

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
"""Module names in published snapshots, as in the list of imports at huggingface.co/brownvc/R3GAN-ImgNet-32x32."""
_PICKLE = b"\x80"


@dataclass(frozen=True)
class Snapshot:
  """A run of the official implementation in our layout: our modules and trees of float32 arrays.

  Attributes:
    generator, discriminator: the modules, with the `bfloat16_stages` of the run.
    params: "generator" and "discriminator" -> parameters.
    ema: the moving average of the generator's parameters.
    second_moments: "generator" and "discriminator" -> Adam's second moments; zeros if the file has none.
    updates: "generator" and "discriminator" -> Adam's count of updates; 0 if the file has none.
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
    UserError: there is no such file, or it is damaged, hostile, or has other networks than R3GAN's.
  """
  with one_line_errors(path, "an official snapshot of R3GAN"):
    # Mapped, so that no more memory is reserved than the file has, whatever it claims.
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
      check(mapped[:1] == _PICKLE, "it is not a pickle")
      content = _SnapshotUnpickler(cast(IO[bytes], mapped)).load()
    check(isinstance(content, dict), "it is not a dict")
    g, d, g_ema = (_OfficialNetwork(name, content) for name in ("G", "D", "G_ema"))
    generator = g.infer_generator()
    discriminator = d.infer_discriminator(generator)
    images_seen = content.get("cur_nimg")
    check(type(images_seen) is int and 0 <= images_seen < 2**31, "cur_nimg is not a number of images")
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


def settings_of(snapshot: Snapshot) -> dict[str, Any]:
  """Returns the settings that a snapshot fixes, by their names in configs/common.py.

  Raises:
    UserError: its class embeddings have lengths that no setting can express.
  """
  generator, discriminator = snapshot.generator, snapshot.discriminator
  found, expected = (generator.embed_dim, discriminator.embed_dim), (generator.noise_dim, generator.widths[0])
  if generator.num_classes and found != expected:
    raise UserError(
      f"the snapshot's class embeddings have lengths {found}, but no config.gan gives others than noise_dim and "
      f"widths[0], {expected}: use it through interop.official.read_snapshot"
    )
  shape = ("widths", "cardinalities", "blocks", "expansion", "noise_dim", "bfloat16_stages")
  return {
    "algorithm": "r3gan",
    "data": {
      "resolution": 4 * 2 ** (len(generator.widths) - 1),
      "channels": generator.image_channels,
      "num_classes": generator.num_classes,
    },
    "gan": {"network": "r3gan"} | {name: getattr(generator, name) for name in shape},
  }


def official_arrays(snapshot: Snapshot) -> dict[str, np.ndarray]:
  """Returns a snapshot as arrays by official names, in PyTorch's layout.

  `N/NAME` for each N of G, D and G_ema and each NAME in its state dict; `N_opt_state/exp_avg_sq/NAME` and
  `N_opt_state/step`, Adam's, for each N of G and D; and `cur_nimg`.
  """
  arrays: dict[str, np.ndarray] = {"cur_nimg": np.asarray(snapshot.images_seen)}

  def add(title: str, state_dict: dict[str, np.ndarray]) -> None:
    arrays.update({f"{title}/{name}": value for name, value in state_dict.items()})

  add("G_ema", to_state_dict(snapshot.generator, snapshot.ema) | resampling_kernels(snapshot.generator))
  network: Network
  for letter, name, network in (("G", "generator", snapshot.generator), ("D", "discriminator", snapshot.discriminator)):
    add(letter, to_state_dict(network, snapshot.params[name]) | resampling_kernels(network))
    add(f"{letter}_opt_state/exp_avg_sq", to_state_dict(network, snapshot.second_moments[name]))
    arrays[f"{letter}_opt_state/step"] = np.asarray(snapshot.updates[name])
  return arrays


class _Module:
  """The tensors and submodules of a PyTorch module."""

  __slots__ = ("buffers", "data_type", "modules", "parameters")

  def __setstate__(self, state: Any) -> None:
    check(isinstance(state, dict), "a module without state")
    self.parameters, self.buffers, self.modules = (state.get(f"_{n}") for n in ("parameters", "buffers", "modules"))
    check(
      all(isinstance(part, dict) for part in (self.parameters, self.buffers, self.modules)),
      "an invalid state of a module",
    )
    self.data_type = state.get("DataType")  # the dtype of an official stage


class _SnapshotUnpickler(Unpickler):
  """Reads a snapshot, in which each storage is pickled as bytes in torch.save's legacy form."""

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
    raise pickle.UnpicklingError("a reference to an external storage")

  def _storage(self, content: Any) -> Storage:
    check(isinstance(content, bytes) and content[:1] == _PICKLE, "a storage that is not in torch.save's legacy form")
    if id(content) not in self._read:  # once, however often a hostile file asks
      storage = load_legacy(content)
      check(isinstance(storage, Storage), "an object in place of a storage")
      self._read[id(content)] = storage
    return self._read[id(content)]


class _OfficialNetwork:
  """One network of a snapshot: parameters and buffers in PyTorch's order, and the state of its Adam."""

  def __init__(self, name: str, content: dict[Any, Any]):
    self._name = name
    self._module: Any = content.get(name)
    self._adam: Any = content.get(f"{name}_opt_state", {"state": {}})
    self._parameters: dict[str, Tensor] = {}
    self._buffers: dict[str, Tensor] = {}
    self._walk(self._module, "", set())

  def infer_generator(self) -> Generator:
    """Infers the module from the names and shapes of a few parameters."""
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
    embed_dim, num_classes = self._shape(EMBEDDING, 2) if EMBEDDING in self._parameters else (0, 0)
    noise_dim = self._shape("Model.MainLayers.0.Layers.0.LinearLayer.weight", 2)[1] - embed_dim
    check(noise_dim > 0, f"{self._name} has no noise input")
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
    """Returns the mirror image of `generator`."""
    shared = ("widths", "cardinalities", "blocks", "num_classes", "expansion", "bfloat16_stages")
    embed_dim = self._shape(EMBEDDING, 2)[0] if generator.num_classes else 0
    return Discriminator(**{name: getattr(generator, name) for name in shared}, embed_dim=embed_dim)

  def params(self, network: Network) -> Params:
    """Returns the parameters; their names and shapes must be exactly those of `network`."""
    kernels, buffers = resampling_kernels(network), _arrays(self._buffers)
    check(buffers.keys() == kernels.keys(), f"{self._name} has buffers other than resampling kernels")
    check(all(np.array_equal(buffers[name], kernels[name]) for name in kernels), "it resamples with another filter")
    return self._to_params(network, self._parameters)

  def adam(self, network: Network) -> tuple[int, Params]:
    """Returns the count of updates and the second moments; zeros without a state."""
    names = list(self._parameters)
    check(isinstance(self._adam, dict), f"{self._name}_opt_state is not a dict")
    entries, groups = self._adam.get("state"), self._adam.get("param_groups")
    if entries == {}:
      zeros = {name: np.zeros(shape, np.float32) for name, _, shape in official_parameters(network)}
      return 0, to_params(network, zeros)
    check(isinstance(groups, list), "Adam has no parameter groups")
    check(all(isinstance(group, dict) for group in groups), "Adam's parameter groups are not dicts")
    check(
      [group.get("params") for group in groups] == [list(range(len(names)))],
      "Adam does not have all parameters in one group",
    )
    check(isinstance(entries, dict) and entries.keys() == set(range(len(names))), "Adam has other parameters")
    steps = {_count(entry["step"]) for entry in entries.values()}
    check(len(steps) == 1, "Adam's counts of updates differ")
    return steps.pop(), self._to_params(network, {name: entries[n]["exp_avg_sq"] for n, name in enumerate(names)})

  def _to_params(self, network: Network, tensors: Mapping[str, Any]) -> Params:
    expected = {name: shape for name, _, shape in official_parameters(network)}
    for name in (*expected, *tensors):
      shape = getattr(tensors.get(name), "shape", "absent")
      wanted = expected.get(name, "absent")
      check(
        shape == wanted,
        f"{self._name}.{name} is {shape}, not {wanted}: the networks are not R3GAN's, or differ in size",
      )
    return to_params(network, _arrays(tensors))

  def _shape(self, name: str, ndim: int) -> Sequence[int]:
    check(name in self._parameters, f"{self._name} has no {name}")
    shape = self._parameters[name].shape
    check(len(shape) == ndim and all(shape), f"{self._name}.{name} is {shape}")
    return shape

  def _bfloat16_stages(self) -> int:
    """Returns the number of bfloat16 stages of G, whose stages are listed from 4x4 upward."""
    stages = self._module.modules["Model"].modules["MainLayers"].modules.values()
    lowered = [stage.data_type == "bfloat16" for stage in stages]
    check(lowered == sorted(lowered), "the bfloat16 stages are not those of the highest resolutions")
    return sum(lowered)

  def _walk(self, module: Any, prefix: str, seen: set[int]) -> None:
    check(isinstance(module, _Module), f"{self._name}.{prefix}".rstrip(".") + " is not a module")
    check(id(module) not in seen and len(prefix) < 200, "modules that are nested unlike R3GAN's")
    seen.add(id(module))
    for tensors, found in ((module.parameters, self._parameters), (module.buffers, self._buffers)):
      for name, tensor in tensors.items():
        if tensor is not None:
          check(isinstance(tensor, Tensor), f"{self._name}.{prefix}{name} is not a tensor")
          found[f"{prefix}{name}"] = tensor
    for name, child in module.modules.items():
      self._walk(child, f"{prefix}{name}.", seen)


def _arrays(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
  check(len({id(tensor.storage) for tensor in tensors.values()}) == len(tensors), "tensors that share a storage")
  check(all(jnp.issubdtype(tensor.storage.dtype, jnp.floating) for tensor in tensors.values()), "integer tensors")
  return {name: tensor.array() for name, tensor in tensors.items()}


def _count(step: Any) -> int:
  """Converts a count of updates, which is a number or, since PyTorch 1.12, a scalar tensor."""
  number = float(step.array() if isinstance(step, Tensor) else step)
  check(number.is_integer() and 0 <= number < 2**31, "Adam's count of updates is invalid")
  return int(number)
