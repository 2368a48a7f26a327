"""AutoGAN: the GAN with a generator that was found by search (Gong et al. 2019, arXiv 1908.03835).

The paper searches for G's architecture; here is what it found, and how such a G is trained: by SNGAN's recipe, SAGAN's
phases without classes or attention, with five updates of D per update of G, whose batch is twice D's. D is SNGAN's;
only its weights are normalised spectrally. Samples are of a moving average of G and of its moments.
"""

from dataclasses import dataclass
from typing import Any

from r3gan_jax.algorithms import sagan
from r3gan_jax.algorithms.base import DATA_AXIS
from r3gan_jax.algorithms.images import Images, check_unconditional
from r3gan_jax.algorithms.sagan import SAGAN
from r3gan_jax.errors import UserError
from r3gan_jax.networks.autogan import FOUND, Generator, decoded
from r3gan_jax.networks.resnet_sn import Discriminator
from r3gan_jax.settings import not_negative, positive, setting

PHASES = sagan.PHASES


@dataclass(frozen=True)
class Settings(sagan.Training):
  """`config.gan` of AutoGAN; the defaults are the paper's, for CIFAR-10."""

  architecture: tuple[int, ...] = setting(FOUND)  # of G, see networks/autogan.py
  generator_width: int = setting(256, positive)
  discriminator_width: int = setting(128, positive)
  generator_spectral_norm: bool = setting(False)
  discriminator_updates: int = setting(5, positive)
  generator_batches: int = setting(2, positive)
  generator_learning_rate: float = setting(2e-4, not_negative)
  discriminator_learning_rate: float = setting(2e-4, not_negative)
  ema_half_life: float = setting(220_000.0, not_negative)  # images: a decay of 0.999 per update of G


def smoke(settings: Settings) -> dict[str, Any]:
  """Returns the changes for `:smoke`: tiny networks and two updates of D, a minute on a CPU."""
  del settings
  return {"generator_width": 16, "discriminator_width": 16, "noise_dim": 16, "discriminator_updates": 2}


def build(settings: Settings, images: Images, platform: str) -> SAGAN:
  """Builds AutoGAN; arguments and errors are those of `algorithms.r3gan.build`."""
  del platform
  check_unconditional("autogan", images)
  if images.side % 8:
    raise UserError(f"config.data.resolution = {images.side}: autogan's three cells need a multiple of 8")
  cells = decoded(settings.architecture)
  generator = Generator(cells, settings.generator_width, DATA_AXIS, images.side // 8, images.channels)
  discriminator = Discriminator((settings.discriminator_width,) * 4, whole_blocks=2, head_bias=False)
  return SAGAN(generator=generator, discriminator=discriminator, **sagan.of_training(settings, images))
