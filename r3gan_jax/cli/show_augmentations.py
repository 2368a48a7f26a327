"""Shows one image under each augmentation: `python -m r3gan_jax.cli.show_augmentations --out=augmentations.png`.

Each transform is shown alone, with probability 1, for a few seeds; the last panel shows all at p = 0.5, as in training.
"""

from io import BytesIO

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from absl import flags
from PIL import Image
from sklearn.datasets import load_sample_image

from r3gan_jax.augment.parameters import TRANSFORMS
from r3gan_jax.augment.pipeline import augment
from r3gan_jax.cli.shared.outputs import output_path
from r3gan_jax.cli.shared.runner import run
from r3gan_jax.data.images import Decoder, fit, to_array
from r3gan_jax.ops.images import to_float, to_uint8
from r3gan_jax.storage import as_path, failing_as, write_whole

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_IMAGE = flags.DEFINE_string("image", None, "An image file; default: a flower from scikit-learn.")
_OUT = flags.DEFINE_string("out", None, "The .png to write.", required=True)
_SIDE = flags.DEFINE_integer("side", 128, "The image is cropped to a square and resized to this many pixels.", 8)

DRAWS = 4
PANELS_A_ROW = 3


def main() -> None:
  out, _ = output_path("out", _OUT.value, (".png",))
  image = _load(_IMAGE.value, _SIDE.value)
  images = jnp.repeat(to_float(jnp.asarray(image))[None], DRAWS, axis=0)
  keys = jax.random.split(jax.random.key(0), DRAWS)
  on = {name: 1.0 for name in TRANSFORMS if name not in ("image_filter", "noise")}
  panels = {name.replace("_", " "): (1.0, {name: 1.0}) for name in TRANSFORMS} | {"all but filter and noise": (0.5, on)}

  rows = -(-len(panels) // PANELS_A_ROW)
  figure, axes = plt.subplots(rows, PANELS_A_ROW, figsize=(13, 1.15 * rows), layout="constrained")
  for axis in axes.ravel():
    axis.axis("off")
  for axis, (title, (p, multipliers)) in zip(axes.ravel(), panels.items(), strict=False):
    augmented = to_uint8(augment(images, keys, jnp.float32(p), multipliers))
    axis.imshow(np.concatenate([image, *np.asarray(augmented)], axis=1))
    axis.set_title(title if p == 1 else f"{title}, p = {p}", fontsize=9)
  buffer = BytesIO()
  figure.savefig(buffer, format="png", dpi=80)
  with failing_as(f"cannot write --out={out}", out):
    write_whole(out, buffer.getvalue())
  print(f"the image, then {DRAWS} draws of each augmentation: {out}")


def _load(path: str | None, side: int) -> np.ndarray:
  """Returns uint8 [side, side, 3]."""
  if path is None:
    picture = Image.fromarray(load_sample_image("flower.jpg"))
  else:
    with failing_as(f"cannot read --image={path}", path):
      data = as_path(path).read_bytes()
    picture = Decoder(channels=3)(data, f"--image={path}")
  return to_array(fit(picture, (side, side), "crop_resize", f"--image={path}"))


if __name__ == "__main__":
  run(main)
