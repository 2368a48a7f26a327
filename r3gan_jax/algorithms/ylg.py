"""YLG, "your local GAN": SAGAN with sparse attention (Daras et al. 2020, arXiv 1911.12287).

All is SAGAN's but the attention of both networks, which has eight heads, each with a mask of the places that a place
sees (networks/ylg.py). Together they see a third of all places at 16x16 (of keys at 8x8), in patterns that follow the
distance in the image.
"""

from dataclasses import dataclass
from typing import Any

from r3gan_jax.algorithms import sagan
from r3gan_jax.algorithms.images import Images
from r3gan_jax.algorithms.sagan import SAGAN
from r3gan_jax.networks.resnet_sn import Discriminator, Generator
from r3gan_jax.networks.ylg import HEADS, aligned_masks, tiled_masks
from r3gan_jax.settings import setting

PHASES = sagan.PHASES


@dataclass(frozen=True)
class Settings(sagan.Settings):
  """`config.gan` of YLG: SAGAN's, which the paper keeps, with one of its own."""

  tiled: bool = setting(False)  # masks as in the released code, where most places do not see themselves


def smoke(settings: Settings) -> dict[str, Any]:
  """Returns the changes for `:smoke`: SAGAN's, with the 64 channels that eight heads need."""
  widths = {name: (64,) * len(getattr(settings, name)) for name in ("generator_widths", "discriminator_widths")}
  return sagan.smoke(settings) | widths


def build(settings: Settings, images: Images, platform: str) -> SAGAN:
  """Builds YLG; arguments and errors are those of `algorithms.r3gan.build`."""
  del platform
  masks = tiled_masks if settings.tiled else aligned_masks
  of_generator, of_discriminator = sagan.of_networks(settings, images, HEADS)
  return SAGAN(
    generator=Generator(**of_generator, masks=masks),
    discriminator=Discriminator(**of_discriminator, masks=masks),
    **sagan.of_training(settings, images),
  )
