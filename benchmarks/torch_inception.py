"""FID's Inception in PyTorch, with separate batch normalisation and weights from a state dict."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor


class Inception:
  """uint8 [N, 3, H, W] -> pool3 [N, 2048], logits [N, 1008]; half-pixel bilinear to 299.

  Args:
    state: the published weights by name, on the device.
  """

  def __init__(self, state: Mapping[str, Tensor]):
    self._state = state

  @torch.inference_mode()
  def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
    x = F.interpolate(images.float(), (299, 299), mode="bilinear", align_corners=False) * (2 / 255) - 1
    x = self._conv(x, "Conv2d_1a_3x3", 2, valid=True)
    x = self._conv(x, "Conv2d_2a_3x3", valid=True)
    x = F.max_pool2d(self._conv(x, "Conv2d_2b_3x3"), 3, 2)
    x = self._conv(x, "Conv2d_3b_1x1")
    x = F.max_pool2d(self._conv(x, "Conv2d_4a_3x3", valid=True), 3, 2)
    for block in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
      five = self._chain(x, block, "branch5x5_1", "branch5x5_2")
      three = self._chain(x, block, "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3")
      x = torch.cat([self._chain(x, block, "branch1x1"), five, three, self._pool(x, block)], 1)
    x = self._halve(x, "Mixed_6a", ("branch3x3",), ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"))
    for block in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
      seven = self._chain(x, block, *(f"branch7x7_{n}" for n in range(1, 4)))
      double = self._chain(x, block, *(f"branch7x7dbl_{n}" for n in range(1, 6)))
      x = torch.cat([self._chain(x, block, "branch1x1"), seven, double, self._pool(x, block)], 1)
    x = self._halve(x, "Mixed_7a", ("branch3x3_1", "branch3x3_2"), tuple(f"branch7x7x3_{n}" for n in range(1, 5)))
    for block in ("Mixed_7b", "Mixed_7c"):
      three = self._chain(x, block, "branch3x3_1")
      double = self._chain(x, block, "branch3x3dbl_1", "branch3x3dbl_2")
      parts = [self._chain(three, block, f"branch3x3_2{half}") for half in "ab"]
      parts += [self._chain(double, block, f"branch3x3dbl_3{half}") for half in "ab"]
      pool = self._pool(x, block, maximum=block == "Mixed_7c")
      x = torch.cat([self._chain(x, block, "branch1x1"), *parts, pool], 1)
    pool3 = x.mean((2, 3))
    return pool3, F.linear(pool3, self._state["fc.weight"], self._state["fc.bias"])

  def _conv(self, x: Tensor, name: str, stride: int = 1, valid: bool = False) -> Tensor:
    kernel = self._state[f"{name}.conv.weight"]
    padding = (0, 0) if valid else (kernel.shape[2] // 2, kernel.shape[3] // 2)
    x = F.conv2d(x, kernel, stride=stride, padding=padding)
    mean, variance, scale, bias = (
      self._state[f"{name}.bn.{leaf}"] for leaf in ("running_mean", "running_var", "weight", "bias")
    )
    return F.relu(F.batch_norm(x, mean, variance, scale, bias, eps=1e-3), inplace=True)

  def _chain(self, x: Tensor, block: str, *layers: str) -> Tensor:
    for layer in layers:
      x = self._conv(x, f"{block}.{layer}")
    return x

  def _pool(self, x: Tensor, block: str, maximum: bool = False) -> Tensor:
    pooled = F.max_pool2d(x, 3, 1, 1) if maximum else F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    return self._conv(pooled, f"{block}.branch_pool")

  def _halve(self, x: Tensor, block: str, *branches: tuple[str, ...]) -> Tensor:
    """Computes branches that end in unpadded convolutions of stride 2, and a max pool."""
    parts = [self._conv(self._chain(x, block, *layers), f"{block}.{last}", 2, valid=True) for *layers, last in branches]
    return torch.cat([*parts, F.max_pool2d(x, 3, 2)], 1)
