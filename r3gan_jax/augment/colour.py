"""Colour transforms, as one affine map of each pixel's (R, G, B).

They act on luma, the part of a colour along the grey axis, and on chroma, the rest. In order:

    brightness    luma + b        contrast      both times c
    luma_flip     luma negated    hue           chroma rotated about the grey axis
    saturation    chroma times s
"""

import jax
import jax.numpy as jnp
import numpy as np

from r3gan_jax.augment.parameters import Parameters

NAMES = ("brightness", "contrast", "luma_flip", "hue", "saturation")

_GREY = np.full(3, 3**-0.5, np.float32)  # the unit vector along the grey axis
_LUMA = np.outer(_GREY, _GREY)  # projects onto it
_CHROMA = np.eye(3, dtype=np.float32) - _LUMA  # projects onto the rest
_TURN = np.cross(np.eye(3, dtype=np.float32), _GREY)  # colour -> grey axis x colour: the chroma, rotated by 90 degrees


def recolour(image: jax.Array, parameters: Parameters) -> jax.Array:
  """Transforms one image [H, W, C] float32, C = 3, or 1 (luma only), by one sample's parameters."""

  def value(name: str) -> jax.Array:
    (value,) = parameters.get(name, jnp.zeros(1))
    return value

  contrast, saturation, hue = jnp.exp2(value("contrast")), jnp.exp2(value("saturation")), value("hue")
  luma = contrast * (1 - 2 * value("luma_flip"))
  channels = image.shape[-1]
  if channels == 1:
    return luma * (image + value("brightness"))
  if channels != 3:
    raise ValueError(f"colour transforms need images of 1 or 3 channels, not {channels}")
  chroma = contrast * saturation * (jnp.cos(hue) * _CHROMA + jnp.sin(hue) * _TURN)
  mixed = jnp.einsum("hwc,kc->hwk", image, luma * _LUMA + chroma, precision="highest")
  return mixed + luma * value("brightness")
