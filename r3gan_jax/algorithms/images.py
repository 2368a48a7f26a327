"""The images of a GAN, and the stages of networks that their sides need."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from r3gan_jax.errors import UserError


class Images(NamedTuple):
  """Everything that a GAN knows of its data; `num_classes` is 0 for unconditional data.

  Attributes:
    latents: they are an autoencoder's, float32 of mean 0, rather than images of integers.
    condition_channels: those of the condition that comes with each image; 0: none does.
  """

  height: int
  width: int
  channels: int
  num_classes: int
  latents: bool = False
  condition_channels: int = 0

  @property
  def shape(self) -> tuple[int, int, int]:
    """(H, W, C)."""
    return self.height, self.width, self.channels

  @property
  def input_shape(self) -> tuple[int, int, int]:
    """(H, W, C) of real images in a batch: the channels of the image, then those of its condition."""
    return self.height, self.width, self.channels + self.condition_channels

  @property
  def side(self) -> int:
    """The side of square images, which most networks need; raises a UserError for others."""
    if self.height != self.width:
      raise UserError(
        f"config.data.width = {self.width} with config.data.resolution = {self.height}: the networks of this GAN need "
        "square images: set width to 0, or choose config.algorithm = 'r3gan'"
      )
    return self.height


def check_stages(settings: Any, names: Sequence[str], images: Images, halvings: int = 0) -> None:
  """Raises a UserError unless images are square, and each of these settings has one entry per stage: 4x4, 8x8, ...

  The last stage has the images' side after so many halvings.
  """
  first_stage(settings, names, images._replace(width=images.side), halvings)


def first_stage(settings: Any, names: Sequence[str], images: Images, halvings: int = 0) -> tuple[int, int]:
  """Checks that each of these settings has one entry per stage, each twice as large as the one before.

  The first stage has a shorter side of 4 to 7 pixels, 4 if the images are square; the last has that of the images,
  after so many halvings.

  Returns:
    (height, width) of the first stage.

  Raises:
    UserError: there is another number of entries, or the images cannot be halved so often.
  """
  size = f"config.data.resolution = {images.height}" + f", width = {images.width}" * (images.height != images.width)
  shorter = min(images.height, images.width) >> halvings
  stages = max(1, (shorter // 4).bit_length())
  scale = 2 ** (stages - 1 + halvings)
  base = images.height // scale, images.width // scale
  if images.height % scale or images.width % scale or min(base) < 4 or base[0] == base[1] != 4:
    need = "4 times a power of 2" if images.height == images.width else f"sides of a whole number times {scale}"
    raise UserError(f"{size}: the networks need {need}: try {_nearest(images, scale)}")
  for name in names:
    entries = getattr(settings, name)
    if len(entries) != stages:
      last = [side >> halvings for side in (images.height, images.width)]
      raise UserError(
        f"config.gan.{name} = {entries} has {len(entries)} entries, but images of {size} need {stages}, one for each "
        f"stage from {base[0]}x{base[1]} to {last[0]}x{last[1]}"
      )
  return base


def _nearest(images: Images, scale: int) -> str:
  """Returns the largest sides below those of the images that networks can have."""
  if images.height == images.width:
    return str(max(4, 2 ** (images.height.bit_length() - 1)))
  height, width = (max(1, side // scale) * scale for side in (images.height, images.width))
  return f"{height}, width = {width}"


def lowest_stage(settings: Any, name: str, images: Images) -> int:
  """Returns the side at which networks begin that have one entry of a setting for each doubling up to the images' side.

  It is 4, as of DCGAN; with one entry more it is 2, which suits images of 8x8.

  Raises:
    UserError: the setting has another number of entries.
  """
  if images.side == 2 * 2 ** len(getattr(settings, name)):
    return 2
  check_stages(settings, (name,), images, halvings=1)
  return 4


def check_unconditional(name: str, images: Images) -> None:
  """Raises a UserError if the data have classes, which the GAN of this name does not use."""
  if images.num_classes:
    raise UserError(f"config.data.num_classes = {images.num_classes}: {name} takes no classes: set it to 0")
