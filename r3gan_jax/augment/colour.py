"""Colour transforms, as one affine map of each pixel's (R, G, B); alpha stays.

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
  """Transforms one image [H, W, C] float32 by one sample's parameters.

  C is 3; 1, luma only; or 4, where colours are premultiplied by alpha, which maps [-1, 1] to [0, 1]: the result is the
  transformed colours premultiplied again, and linear in colours and alpha.
  """

  def value(name: str) -> jax.Array:
    (value,) = parameters.get(name, jnp.zeros(1))
    return value

  contrast, saturation, hue = jnp.exp2(value("contrast")), jnp.exp2(value("saturation")), value("hue")
  luma = contrast * (1 - 2 * value("luma_flip"))
  channels = image.shape[-1]
  if channels == 1:
    return luma * (image + value("brightness"))
  if channels not in (3, 4):
    raise ValueError(f"colour transforms need images of 1, 3 or 4 channels, not {channels}")
  chroma = contrast * saturation * (jnp.cos(hue) * _CHROMA + jnp.sin(hue) * _TURN)

  def mixed(colours: jax.Array) -> jax.Array:
    return jnp.einsum("hwc,kc->hwk", colours, luma * _LUMA + chroma, precision="highest")

  if channels == 3:
    return mixed(image) + luma * value("brightness")
  # Black is -1. With the matrix M and the offset b of above, 1 + the result is M (1 + x) + alpha (1 + b - M 1).
  alpha = (1 + image[..., 3:]) / 2
  colours = mixed(1 + image[..., :3]) + alpha * (1 + luma * value("brightness") - luma) - 1
  return jnp.concatenate([colours, image[..., 3:]], axis=-1)
