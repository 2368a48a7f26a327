"""Made-up weights of Stable Diffusion's autoencoder, and what diffusers computes with them (tests/golden/sd_vae.npz).

    python -m helpers.sd_vae        # records, from tests/, with torch 2.13.0 and diffusers 0.42.1 installed

A tensor is drawn from its name and shape, so that no weights are stored. Images and latents are NHWC.
"""

import json
import zlib
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

GOLDEN = Path(__file__).parent.parent / "golden" / "sd_vae.npz"

NETWORKS = {
  "rgb": {"widths": (32, 32, 64, 64), "blocks": 2, "latent_channels": 4, "image_channels": 3, "groups": 16},
  "grey": {"widths": (16, 32), "blocks": 1, "latent_channels": 3, "image_channels": 1, "groups": 8},
}
"""Name -> attributes."""
CASES = {"square": ("rgb", (2, 32, 32, 3)), "rectangle": ("rgb", (1, 24, 56, 3)), "pixels": ("grey", (1, 10, 6, 1))}
"""Name -> (network, shape of the images)."""
TILES = {"tiles": ((1, 14, 11, 3), 8, 2), "row_of_tiles": ((2, 4, 13, 3), 8, 4)}
"""Name -> (shape of the latents, side of a tile, overlap), of the network "grey"."""


def made_up(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """Returns the weight of this name, float32: logits of attention and all activations are of the order of 1."""
  random = np.random.default_rng(zlib.crc32(name.encode()))
  if "norm" in name:
    values = random.uniform(0.5, 1.5, shape) if name.endswith("weight") else 0.3 * random.standard_normal(shape)
  elif name.endswith("bias"):
    values = 0.3 * random.standard_normal(shape)
  else:
    values = random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
  if "conv_in" in name:
    values = values * 0.003  # the first group norm then depends on its epsilon
  return values.astype(np.float32)


def state_dict(network: str) -> dict[str, np.ndarray]:
  """Returns the made-up weights of one of `NETWORKS`, by diffusers' names."""
  with np.load(GOLDEN) as golden:
    tensors = zip(golden[f"{network}/names"], golden[f"{network}/shapes"], strict=True)
    return {str(name): made_up(str(name), tuple(map(int, shape.split()))) for name, shape in tensors}


def write(folder: Path, network: str) -> Path:
  """Writes the made-up weights as diffusers does; returns the folder."""
  save_file(state_dict(network), folder / "diffusion_pytorch_model.safetensors")
  (folder / "config.json").write_text(json.dumps({"norm_num_groups": NETWORKS[network]["groups"]}))
  return folder


def diffusers_network(attributes: dict):
  """Builds diffusers' network with made-up weights."""
  import torch
  from diffusers import AutoencoderKL

  levels = len(attributes["widths"])
  network = AutoencoderKL(
    in_channels=attributes["image_channels"],
    out_channels=attributes["image_channels"],
    down_block_types=("DownEncoderBlock2D",) * levels,
    up_block_types=("UpDecoderBlock2D",) * levels,
    block_out_channels=attributes["widths"],
    layers_per_block=attributes["blocks"],
    latent_channels=attributes["latent_channels"],
    norm_num_groups=attributes["groups"],
  ).eval()
  state = network.state_dict()
  network.load_state_dict({name: torch.tensor(made_up(name, tuple(value.shape))) for name, value in state.items()})
  return network


def record() -> dict[str, np.ndarray]:
  """Returns names and shapes of the tensors of each network, and inputs and results of each case."""
  import torch

  def nchw(array: np.ndarray):
    return torch.tensor(np.moveaxis(array, -1, 1).copy())

  def nhwc(tensor) -> np.ndarray:
    return np.moveaxis(tensor.numpy(), 1, -1)

  networks = {name: diffusers_network(attributes) for name, attributes in NETWORKS.items()}
  recorded = {}
  for name, network in networks.items():
    state = network.state_dict()
    recorded[f"{name}/names"] = np.array([*state])
    recorded[f"{name}/shapes"] = np.array([" ".join(map(str, value.shape)) for value in state.values()])
  random = np.random.default_rng(0)
  with torch.inference_mode():
    for name, (network, shape) in CASES.items():
      images = random.uniform(-1, 1, shape).astype(np.float32)
      posterior = networks[network].encode(nchw(images)).latent_dist
      latents = random.standard_normal(nhwc(posterior.mean).shape).astype(np.float32)
      decoded = networks[network].decode(nchw(latents)).sample
      results = {"mean": nhwc(posterior.mean), "std": nhwc(posterior.std), "decoded": nhwc(decoded)}
      results |= {"images": images, "latents": latents}
      recorded |= {f"{name}/{key}": value for key, value in results.items()}
    grey = networks["grey"]
    grey.enable_tiling()
    for name, (shape, tile, overlap) in TILES.items():
      grey.tile_latent_min_size, grey.tile_sample_min_size, grey.tile_overlap_factor = tile, 2 * tile, overlap / tile
      latents = random.standard_normal(shape).astype(np.float32)
      recorded |= {f"{name}/latents": latents, f"{name}/decoded": nhwc(grey.decode(nchw(latents)).sample)}
  return recorded


if __name__ == "__main__":
  np.savez_compressed(GOLDEN, **record())
