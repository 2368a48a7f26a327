"""Reads and writes Stable Diffusion's autoencoder in the form of diffusers' AutoencoderKL, without PyTorch.

A folder has diffusion_pytorch_model.safetensors and config.json, of which only the number of groups of group norm is
read: all else follows from the tensors' names and shapes. Before 2023, and so in the published sd-vae-ft-mse and
sd-vae-ft-ema, attention's to_q, to_k, to_v and to_out.0 were query, key, value and proj_attn. AutoencoderKLFlux2, the
autoencoder of FLUX.2, has the same tensors, with 32 latent channels, and a batch norm besides.
"""

import itertools
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load, save

from r3gan_jax.errors import UserError, one_line
from r3gan_jax.interop import hub
from r3gan_jax.networks.vae import Autoencoder
from r3gan_jax.storage import as_path, failing_as, is_file, read, write_whole

Params = dict[str, Any]

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
CONFIG_FILE = "config.json"
PUBLISHED = "hf://stabilityai/sd-vae-ft-mse"

_GROUPS = "norm_num_groups"
_EARLIER_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_NOT_READ = "bn."
"""The batch norm of FLUX.2's autoencoder: it is of its latents in patches, for a transformer."""

_CURE = f"give diffusers' AutoencoderKL, such as {PUBLISHED}"


def read_autoencoder(path: epath.PathLike) -> tuple[Autoencoder, Params]:
  """Reads an autoencoder of any size in this form; `clone(dtype=jnp.bfloat16)` computes in bfloat16.

  Args:
    path: the folder; its safetensors, without config.json of 32 groups; or hf://OWNER/NAME[@REVISION].

  Returns:
    The module, and its parameters, float32; the file's are float16 or float32.

  Raises:
    UserError: there is no such file, or it is damaged or has another network; the Hub does not give it.
  """
  folder = epath.Path(hub.fetch(path, (CONFIG_FILE, WEIGHTS_FILE))) if hub.is_address(path) else as_path(path)
  file = folder / WEIGHTS_FILE if folder.is_dir() else folder
  tensors = _tensors(file)
  try:
    autoencoder = _autoencoder(tensors, _groups(file.parent / CONFIG_FILE))
    return autoencoder, _params(autoencoder, tensors)
  except ValueError as error:
    raise UserError(f"{file}: {error}: {_CURE}") from None


def write_autoencoder(folder: epath.PathLike, autoencoder: Autoencoder, params: Params) -> None:
  """Writes an autoencoder in this form, which diffusers' AutoencoderKL.from_pretrained reads, too.

  Args:
    folder: its files are replaced.
    autoencoder: the module.
    params: its parameters.

  Raises:
    OSError: the files cannot be written.
  """
  levels = len(autoencoder.widths)
  config = {
    "_class_name": "AutoencoderKL",
    "in_channels": autoencoder.image_channels,
    "out_channels": autoencoder.image_channels,
    "latent_channels": autoencoder.latent_channels,
    "block_out_channels": autoencoder.widths,
    "layers_per_block": autoencoder.blocks,
    _GROUPS: autoencoder.groups,
    "down_block_types": ["DownEncoderBlock2D"] * levels,
    "up_block_types": ["UpDecoderBlock2D"] * levels,
  }
  tensors = {_name(path): _to_torch(np.asarray(leaf)) for path, leaf in flatten_dict(params).items()}
  folder = as_path(folder)
  write_whole(folder / WEIGHTS_FILE, save(tensors, {"format": "pt"}))
  write_whole(folder / CONFIG_FILE, json.dumps(config, indent=2) + "\n")


def _tensors(file: epath.Path) -> dict[str, np.ndarray]:
  """Reads all tensors, by their names of today."""
  if not is_file(file):
    raise UserError(f"{file} does not exist: {_CURE}")
  try:
    with failing_as(f"cannot read {file}", file):
      tensors = load(read(file))
  except (SafetensorError, KeyError) as error:  # a KeyError names a dtype that NumPy does not have
    raise UserError(f"{file} is not a safetensors file of float16 or float32 ({one_line(error)}): {_CURE}") from None
  return {
    ".".join(_EARLIER_NAMES.get(part, part) for part in name.split(".")): tensor
    for name, tensor in tensors.items()
    if not name.startswith(_NOT_READ)
  }


def _groups(config: epath.Path) -> int:
  """Returns the number of groups that config.json states, or else the published one."""
  if not is_file(config):
    return Autoencoder.groups
  try:
    groups = json.loads(read(config)).get(_GROUPS, Autoencoder.groups)
  except (ValueError, AttributeError):
    groups = None
  if type(groups) is not int or groups < 1:
    raise UserError(f"{config} is damaged: it needs a number of groups, {_GROUPS}: replace it")
  return groups


def _autoencoder(tensors: Mapping[str, np.ndarray], groups: int) -> Autoencoder:
  """Infers the module; raises a ValueError if a tensor that says something of it is missing, or groups do not fit."""

  def sizes(name: str) -> tuple[int, ...]:
    if name not in tensors or tensors[name].ndim != 4:
      raise ValueError(f"it has no convolution {name}")
    return tensors[name].shape

  def counted(name: str) -> int:
    """Returns how many of these names, with numbers from 0 for {}, there are."""
    return next(number for number in itertools.count() if name.format(number) not in tensors)

  levels = max(counted("encoder.down_blocks.{}.resnets.0.conv1.weight"), 1)
  widths = tuple(sizes(f"encoder.down_blocks.{level}.resnets.0.conv1.weight")[0] for level in range(levels))
  if any(width % groups for width in widths):
    raise ValueError(f"{groups} groups of group norm ({_GROUPS} of {CONFIG_FILE}) do not divide its widths {widths}")
  return Autoencoder(
    widths,
    blocks=counted("encoder.down_blocks.0.resnets.{}.conv1.weight"),
    latent_channels=sizes("post_quant_conv.weight")[0],
    image_channels=sizes("encoder.conv_in.weight")[1],
    groups=groups,
  )


def _params(autoencoder: Autoencoder, tensors: dict[str, np.ndarray]) -> Params:
  """Converts the tensors; raises a ValueError if they are not those of the module."""
  side, channels = autoencoder.factor, autoencoder.image_channels
  images = jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)
  abstract = flatten_dict(jax.eval_shape(autoencoder.init, jax.random.key(0), images)["params"])
  names = {_name(path) for path in abstract}
  for problem, different in (("lacks", names - tensors.keys()), ("has unknown", tensors.keys() - names)):
    if different:
      first = ", ".join(sorted(different)[:3])
      raise ValueError(f"it {problem} tensors: {first}{' ...' if len(different) > 3 else ''}")
  return unflatten_dict({path: _from_torch(tensors, _name(path), leaf.shape) for path, leaf in abstract.items()})


def _name(path: tuple[str, ...]) -> str:
  *layer, leaf = path
  return ".".join((*layer, {"kernel": "weight", "scale": "weight"}.get(leaf, leaf)))


def _from_torch(tensors: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
  """Converts a tensor to a parameter of this shape: [I, O] of [O, I] or [O, I, 1, 1], [kh, kw, I, O] of [O, I, kh, kw].

  [C] stays.
  """
  tensor = tensors[name]
  if len(shape) == 2 and tensor.shape[2:] == (1, 1):
    tensor = tensor[..., 0, 0]
  value = tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T
  if value.shape != shape or tensor.dtype not in (np.float16, np.float32):
    raise ValueError(f"its {name} is {tensor.dtype} {tensor.shape}, which does not fit {shape}")
  return np.ascontiguousarray(value, np.float32)


def _to_torch(value: np.ndarray) -> np.ndarray:
  """Converts a parameter to a tensor, as of `_from_torch`."""
  return np.ascontiguousarray(value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T)
