"""The generators of AutoGAN's search space (Gong et al. 2019, arXiv 1908.03835); D is that of networks/resnet_sn.py.

Three cells double the resolution, for CIFAR-10 from 4x4, by two 3x3 convolutions each. 14 numbers say the rest:

    cell 1    convolution, norm, upsampling, shortcut
    cell 2    convolution, norm, upsampling, shortcut, skips
    cell 3    convolution, norm, upsampling, shortcut, skips

Skips add the features of earlier cells, from between their two convolutions, enlarged and through 1x1 convolutions, to
those of the cell. In the authors' code, which is kept here, a feature that leaves a cell includes what came in.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
from flax import linen as nn

from r3gan_jax.errors import UserError
from r3gan_jax.networks.layers import BatchNorm, Conv
from r3gan_jax.networks.resnet_sn import glorot
from r3gan_jax.ops.resample import repeat2x

CONVOLUTIONS = ("after", "before")
"""Norm and ReLU come after the convolution, or before it."""
NORMS = ("none", "batch", "instance")
UPSAMPLINGS = ("bilinear", "nearest", "transposed")
SKIPS = ((), (1,), (2,), (1, 2))
"""The cells that a skip comes from, by its number."""

FOUND = (1, 0, 1, 1, 1, 0, 0, 1, 1, 1, 0, 1, 0, 3)
"""The architecture that the paper found for CIFAR-10."""


class Cell(NamedTuple):
  """One cell: entries of the tables above, whether it has a shortcut, and the cells of which it takes features."""

  convolution: str
  norm: str
  upsampling: str
  shortcut: bool
  skips: tuple[int, ...]


def decoded(architecture: Sequence[int]) -> tuple[Cell, Cell, Cell]:
  """Decodes 14 numbers, see the module.

  Raises:
    UserError: they are not 14, or one is out of range; or a cell has transposed convolutions, which are not written.
  """
  setting = f"config.gan.architecture = {tuple(architecture)}"
  ranges = [*(2, 3, 3, 2), *(2, 3, 3, 2, 2), *(2, 3, 3, 2, 4)]
  if len(architecture) != len(ranges):
    raise UserError(f"{setting} has {len(architecture)} entries: give 4 for the first cell and 5 for each other one")
  for index, (entry, count) in enumerate(zip(architecture, ranges, strict=True)):
    if not 0 <= entry < count:
      raise UserError(f"{setting}: entry {index + 1} must be from 0 to {count - 1}")
  cells = []
  for entries in (architecture[:4], architecture[4:9], architecture[9:]):
    convolution, norm, upsampling, shortcut, *skips = entries
    if UPSAMPLINGS[upsampling] == "transposed":
      raise UserError(f"{setting} has transposed convolutions: only bilinear (0) and nearest (1) are implemented")
    of_cell = CONVOLUTIONS[convolution], NORMS[norm], UPSAMPLINGS[upsampling], bool(shortcut)
    cells.append(Cell(*of_cell, SKIPS[skips[0]] if skips else ()))
  first, second, third = cells
  return first, second, third


class Generator(nn.Module):
  """Maps noise to images of side 8 * lowest_side.

  Attributes:
    cells: from `decoded`.
    width: channels of all features.
    axis_name: the mesh axis over which a batch is sharded.
    lowest_side: the resolution at which the first cell begins.
    image_channels: channels of the images.
  """

  cells: tuple[Cell, Cell, Cell]
  width: int
  axis_name: str
  lowest_side: int = 4
  image_channels: int = 3

  attention_side = 0

  @nn.compact
  def __call__(self, z: jax.Array, labels: None = None, *, train: bool) -> jax.Array:
    """[N, noise_dim] -> [N, H, W, image_channels] in [-1, 1], float32."""
    del labels
    side = self.lowest_side
    x = nn.Dense(side**2 * self.width, name="linear")(z).reshape(-1, side, side, self.width)
    inner: list[jax.Array] = []
    for cell in self.cells:
      side *= 2
      skips = [(source, inner[source - 1]) for source in cell.skips]
      x, feature = _CellLayers(cell, self.width, self.axis_name, name=f"cell_{side}")(x, skips, train)
      inner.append(feature)
    x = nn.relu(BatchNorm(self.axis_name, name="norm")(x, train))
    return nn.tanh(Conv(self.image_channels, glorot, name="to_image")(x))


class _CellLayers(nn.Module):
  """A cell. Attributes as in `Generator`."""

  cell: Cell
  width: int
  axis_name: str

  @nn.compact
  def __call__(self, x: jax.Array, skips: Sequence[tuple[int, jax.Array]], train: bool) -> tuple[jax.Array, jax.Array]:
    """[N, H, W, width], (cell, its feature) -> [N, 2H, 2W, width], and the feature between the convolutions."""
    side = 2 * x.shape[1]
    inner = self._convolved(1, x, train, side)
    for source, feature in skips:
      inner += self._enlarged(self._pointwise(f"skip_from_{source}", feature), side)
    result = self._convolved(2, inner, train, side)
    if self.cell.shortcut:
      result += self._enlarged(self._pointwise("shortcut", x), side)
    return result, inner

  def _convolved(self, number: int, x: jax.Array, train: bool, side: int) -> jax.Array:
    """Applies a 3x3 convolution at this resolution, with norm and ReLU before or after it."""

    def activated(x: jax.Array) -> jax.Array:
      if self.cell.norm == "batch":
        x = BatchNorm(self.axis_name, name=f"norm_{number}")(x, train)
      if self.cell.norm == "instance":
        x = nn.InstanceNorm(use_bias=False, use_scale=False, name=f"norm_{number}")(x)
      return nn.relu(x)

    x = activated(x) if self.cell.convolution == "before" else x
    x = Conv(self.width, glorot, name=f"conv_{number}")(self._enlarged(x, side))
    return x if self.cell.convolution == "before" else activated(x)

  def _pointwise(self, name: str, x: jax.Array) -> jax.Array:
    """Applies a 1x1 convolution, before enlarging, with which it commutes."""
    return nn.Dense(self.width, kernel_init=glorot, name=name)(x)

  def _enlarged(self, x: jax.Array, side: int) -> jax.Array:
    if self.cell.upsampling == "nearest":
      while x.shape[1] < side:
        x = repeat2x(x)
      return x
    return jax.image.resize(x, (x.shape[0], side, side, x.shape[3]), self.cell.upsampling)
