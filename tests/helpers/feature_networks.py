"""Made-up weights of feature networks, and what the original code computes with them: golden/feature_networks.npz.

    python -m helpers.feature_networks   # records, from tests/, with torch 2.13.0, torchvision 0.28.0, timm 1.0.31,
                                         # clean-fid 0.1.35, lpips 0.1.4, torch-fidelity 0.4.0 and pillow 13.0.0

A tensor is drawn from its name and shape, so that no weights are stored. Images are uint8 NHWC.
"""

import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np

GOLDEN = Path(__file__).parent.parent / "golden" / "feature_networks.npz"

SIDE = 299
RESIZED = {"larger": (32, 48), "smaller": (700, 340), "one": (1, 3), "same": (299, 299)}
"""Name -> (height, width) of images that are resized to `SIDE`; every 23rd pixel is recorded."""
EVERY = 23

WIDTH, DEPTH, HEADS = 24, 2, 3
"""Of the small DINOv2, whose patches and positions are those of the published one."""


def random_images(name: str, *shape: int) -> np.ndarray:
  """Returns uint8 [*shape, 3]; a third is black, and a third white, so that cubic interpolation overshoots."""
  random = np.random.default_rng(zlib.crc32(name.encode()))
  return np.clip(random.integers(-255, 511, (*shape, 3)), 0, 255).astype(np.uint8)


def made_up(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """Returns the weight of this name, float32: activations are of the order of 1; those of LPIPS are not negative."""
  random = np.random.default_rng(zlib.crc32(name.encode()))
  if name.startswith("lin"):
    return random.uniform(0, 1, shape).astype(np.float32)
  if "norm" in name or "gamma" in name:
    values = random.uniform(0.5, 1.5, shape) if not name.endswith("bias") else 0.3 * random.standard_normal(shape)
  elif name.endswith("bias"):
    values = 0.3 * random.standard_normal(shape)
  elif name in ("cls_token", "pos_embed"):
    values = random.standard_normal(shape)
  else:
    values = random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
  return values.astype(np.float32)


def dinov2_state(width: int = WIDTH, depth: int = DEPTH) -> dict[str, np.ndarray]:
  """Returns made-up weights of DINOv2 with patches of 14 pixels, by the names of the published file."""
  shapes = {
    "cls_token": (1, 1, width),
    "pos_embed": (1, 1 + 37 * 37, width),
    "mask_token": (1, width),
    "patch_embed.proj.weight": (width, 3, 14, 14),
    "patch_embed.proj.bias": (width,),
    "norm.weight": (width,),
    "norm.bias": (width,),
  }
  for block in range(depth):
    layers = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    layers |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width), "norm1": (width,), "norm2": (width,)}
    for layer, shape in layers.items():
      shapes |= {f"blocks.{block}.{layer}.weight": shape, f"blocks.{block}.{layer}.bias": shape[:1]}
    shapes |= {f"blocks.{block}.{layer}.gamma": (width,) for layer in ("ls1", "ls2")}
  return {name: made_up(name, shape) for name, shape in shapes.items()}


VGG16_WIDTHS = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
VGG16_CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
"""Of torchvision's `features`."""


def vgg16_state() -> dict[str, np.ndarray]:
  """Returns made-up weights of VGG16's convolutions, by torchvision's names."""
  shapes = {}
  for layer, inputs, width in zip(VGG16_CONVOLUTIONS, VGG16_WIDTHS[:-1], VGG16_WIDTHS[1:], strict=True):
    shapes |= {f"features.{layer}.weight": (width, inputs, 3, 3), f"features.{layer}.bias": (width,)}
  return {name: made_up(name, shape) for name, shape in shapes.items()}


def lpips_state() -> dict[str, np.ndarray]:
  """Returns made-up weights of LPIPS' layers, by the names of the published file."""
  widths = (64, 128, 256, 512, 512)
  return {(name := f"lin{layer}.model.1.weight"): made_up(name, (1, n, 1, 1)) for layer, n in enumerate(widths)}


def lpips_images() -> tuple[np.ndarray, np.ndarray]:
  """Returns two sets of images, float32 [4, 32, 48, 3] in 0..255, from far apart to near."""
  first, second = (random_images(name, 4, 32, 48).astype(np.float32) for name in ("first", "second"))
  return first, first + (second - first) * np.array([1, 0.1, 0.01, 1e-4], np.float32)[:, None, None, None]


DISTANCES = np.random.default_rng(0).lognormal(size=1234).astype(np.float32)
"""What a path length is the trimmed mean of."""


def _nchw(images: np.ndarray):
  import torch

  return torch.tensor(np.moveaxis(images, -1, 1))


def _nhwc(tensor) -> np.ndarray:
  return np.moveaxis(tensor.numpy(), 1, -1)


def _resized() -> dict[str, np.ndarray]:
  """As clean-fid does ("clean"), and EDM2's `DINOv2Detector` ("bicubic")."""
  import torch
  from cleanfid.resize import build_resizer

  clean, recorded = build_resizer("clean"), {}
  for name, size in RESIZED.items():
    image = random_images(name, *size)
    bicubic = torch.nn.functional.interpolate(
      _nchw(image[None]).float(), size=(SIDE, SIDE), mode="bicubic", antialias=True
    )
    recorded[f"clean/{name}"] = clean(image)[::EVERY, ::EVERY]
    recorded[f"bicubic/{name}"] = _nhwc(bicubic)[0, ::EVERY, ::EVERY]
  return recorded


def dinov2_features(state: dict[str, np.ndarray], heads: int, images: np.ndarray) -> np.ndarray:
  """Returns what timm's transformer computes with EDM2's preprocessing and the positions of the published code.

  They are interpolated by a scale that is 0.1 patches too large, without antialiasing: `interpolate_offset` and
  `interpolate_antialias` of dinov2/hub/backbones.py. timm and transformers do that otherwise.
  """
  import timm
  import torch

  tensors = {name: torch.tensor(value) for name, value in state.items() if name != "mask_token"}
  width, scale = state["cls_token"].shape[-1], (16 + 0.1) / 37
  patches = tensors["pos_embed"][:, 1:].reshape(1, 37, 37, width).permute(0, 3, 1, 2)
  patches = torch.nn.functional.interpolate(patches, scale_factor=(scale, scale), mode="bicubic")
  patches = patches.permute(0, 2, 3, 1).reshape(1, 16 * 16, width)
  tensors["pos_embed"] = torch.cat([tensors["pos_embed"][:, :1], patches], dim=1)
  network = timm.models.vision_transformer.VisionTransformer(
    img_size=224,
    patch_size=14,
    embed_dim=width,
    depth=sum(name.endswith("ls1.gamma") for name in state),
    num_heads=heads,
    init_values=1.0,
    global_pool="token",
    num_classes=0,
  )
  network.load_state_dict(tensors)
  x = torch.nn.functional.interpolate(_nchw(images).float(), size=(224, 224), mode="bicubic", antialias=True) / 255
  x = (x - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[:, None, None]
  with torch.no_grad():
    return network.eval()(x).numpy()


def _lpips_distances() -> np.ndarray:
  """As `lpips.LPIPS(net="vgg")` does."""
  import lpips
  import torch

  network = lpips.LPIPS(net="vgg", pnet_rand=True, pretrained=False, verbose=False)
  slices = {f"features.{n}": f"slice{1 + sum(n > end for end in (3, 8, 15, 22))}.{n}" for n in VGG16_CONVOLUTIONS}
  trunk = {}
  for name, value in vgg16_state().items():
    layer, leaf = name.rsplit(".", 1)
    trunk[f"{slices[layer]}.{leaf}"] = torch.tensor(value)
  network.net.load_state_dict(trunk)
  network.load_state_dict({name: torch.tensor(value) for name, value in lpips_state().items()}, strict=False)
  with torch.no_grad():
    first, second = (_nchw(images) / 127.5 - 1 for images in lpips_images())
    return network(first, second).numpy().ravel()


def _path_lengths() -> np.ndarray:
  """The mean and standard deviation of `calculate_ppl` of torch-fidelity, with distances in place of images."""
  import torch
  from torch_fidelity import metric_ppl
  from torch_fidelity.generative_model_modulewrapper import GenerativeModelModuleWrapper

  distances = iter(torch.tensor(DISTANCES))
  metric_ppl.create_sample_similarity = lambda *_, **__: lambda first, _: torch.stack([next(distances) for _ in first])
  generator = GenerativeModelModuleWrapper(torch.nn.Identity(), 4, "normal", 0)
  # Its call of numpy.percentile names an argument that NumPy 2 has renamed.
  metric_ppl.np = SimpleNamespace(
    **{name: getattr(np, name) for name in ("random", "concatenate", "logical_and", "extract", "mean", "std")},
    percentile=lambda values, share, interpolation: np.percentile(values, share, method=interpolation),
  )
  found = metric_ppl.calculate_ppl(
    1,
    input1=generator,
    input1_model_num_samples=len(DISTANCES),
    input1_model_z_size=4,
    input1_model_z_type="normal",
    input1_model_num_classes=0,
    cuda=False,
    verbose=False,
  )
  return np.array([found[f"perceptual_path_length_{name}"] for name in ("mean", "std")])


def main() -> None:
  np.savez_compressed(
    GOLDEN,
    **_resized(),
    dinov2=dinov2_features(dinov2_state(), HEADS, random_images("dinov2", 3, 40, 64)),
    lpips=_lpips_distances(),
    path_lengths=_path_lengths(),
  )


if __name__ == "__main__":
  main()
