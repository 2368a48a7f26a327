"""Prepares a data set for training: `python -m r3gan_jax.cli.prepare_data` with one of

    --images=FOLDER_OR_ZIP --name=ffhq64 --resolution=64    image files, centre-cropped, resized and packed
    --pairs=FOLDER_OR_ZIP --name=facades --resolution=256   pairs of images, in folders A and B or side by side
    --idx=DIRECTORY --name=mnist                            MNIST or Fashion-MNIST from their idx files
    --tfds=cifar10                                          any data set of TFDS, prepared by TFDS (needs TensorFlow)
    --prepared=imagenet256 --encode=sd-vae --name=latents   the latents of a prepared data set, for training on these

The result is a self-describing directory DATA_DIR/NAME/VERSION for config.data.source = "tfds". The same command
continues an interrupted preparation.
"""

import os
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from r3gan_jax.cli.shared.outputs import output_path
from r3gan_jax.cli.shared.runner import run
from r3gan_jax.data.files import ImageFiles
from r3gan_jax.data.images import FITS, Decoder
from r3gan_jax.data.latents import prepare_latents
from r3gan_jax.data.pairs import DIRECTIONS, prepare_pairs
from r3gan_jax.data.prepare import prepare_idx, prepare_images, prepare_tfds
from r3gan_jax.data.shards import Prepared
from r3gan_jax.data.source import digest
from r3gan_jax.data.tfds import default_data_dir, describe_directory, prepared_directory
from r3gan_jax.errors import UserError
from r3gan_jax.interop.sd_vae import PUBLISHED, read_autoencoder
from r3gan_jax.ops.images import to_float
from r3gan_jax.storage import as_path, is_remote
from r3gan_jax.training.mesh import batch_sharding, make_mesh, replicated

_IMAGES = flags.DEFINE_string("images", None, "A directory tree or zip of image files.")
_PAIRS = flags.DEFINE_string(
  "pairs", None, "A directory or zip with folders A and B of the same names, or of images whose halves are A and B."
)
_IDX = flags.DEFINE_string("idx", None, "A directory with {train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz].")
_TFDS = flags.DEFINE_string("tfds", None, "A data set of TFDS, e.g. cifar10 or imagenet_resized/64x64.")
_PREPARED = flags.DEFINE_string("prepared", None, "A prepared data set to encode, by its name or directory.")
flags.mark_flags_as_mutual_exclusive(["images", "pairs", "idx", "tfds", "prepared"], required=True)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "The directory of prepared data sets; default: TFDS's.")
_NAME = flags.DEFINE_string(
  "name", None, "The name of the new data set, but with --tfds: the name of the data set (config.data.name)."
)
_RESOLUTION = flags.DEFINE_integer(
  "resolution", None, "With --images, --pairs, --prepared: the height, in pixels.", lower_bound=1
)
_WIDTH = flags.DEFINE_integer("width", None, "With --images, --pairs, --prepared: default: the height.", lower_bound=1)
_GREY = flags.DEFINE_bool("grey", False, "With --images, --pairs: one channel instead of three, for grey images.")
_ALPHA = flags.DEFINE_bool("alpha", False, "With --images, --pairs: keep transparency as a fourth channel.")
_DIRECTION = flags.DEFINE_enum("direction", "AtoB", DIRECTIONS, "With --pairs: from the condition to the image.")
_GREY_CONDITIONS = flags.DEFINE_bool("grey_conditions", False, "With --pairs: one channel for conditions, e.g. labels.")
_BITS = flags.DEFINE_enum("bits", "8", ("8", "16"), "With --images: bits of a channel; 16 with --grey.")
_BACKGROUND = flags.DEFINE_string(
  "background", "white", "With --images, --pairs: the colour under transparent pixels, a name or #rrggbb."
)
_CLASS_DIRECTORIES = flags.DEFINE_bool("class_directories", False, "With --images: each directory is one class.")
_SKIP_CORRUPT = flags.DEFINE_bool(
  "skip_corrupt", False, "With --images, --pairs: leave out and count unreadable images."
)
_PROCESSES = flags.DEFINE_integer(
  "processes", os.cpu_count() or 1, "With --images, --pairs: the number of processes.", lower_bound=1
)
_MANUAL_DIR = flags.DEFINE_string("manual_dir", None, "With --tfds: a directory of files downloaded by hand.")
_FIT = flags.DEFINE_enum("fit", "crop_resize", FITS, "With --prepared: how images come to another size.")
_ENCODE = flags.DEFINE_enum("encode", None, ("sd-vae",), "With --prepared: the autoencoder, that of Stable Diffusion.")
_WEIGHTS = flags.DEFINE_string(
  "weights", PUBLISHED, "With --prepared: the autoencoder's folder or .safetensors, or hf://OWNER/NAME."
)
_MIRRORED = flags.DEFINE_bool("mirrored", False, "With --prepared: also encode mirror images, for config.data.x_flip.")

_ENCODED_AT_ONCE = 16
"""Images on each device."""

_GOES_WITH = {
  "images": (
    "name",
    "resolution",
    "width",
    "grey",
    "alpha",
    "bits",
    "background",
    "class_directories",
    "skip_corrupt",
    "processes",
  ),
  "pairs": (
    "name",
    "resolution",
    "width",
    "grey",
    "alpha",
    "direction",
    "grey_conditions",
    "background",
    "skip_corrupt",
    "processes",
  ),
  "idx": ("name",),
  "tfds": ("manual_dir",),
  "prepared": ("name", "resolution", "width", "fit", "encode", "weights", "mirrored"),
}


def main() -> None:
  source = next(name for name in _GOES_WITH if flags.FLAGS[name].value is not None)
  if not flags.FLAGS[source].value:
    raise UserError(f"--{source} is empty: give what to prepare")
  for name in dict.fromkeys(chain(*_GOES_WITH.values())):
    if name not in _GOES_WITH[source] and flags.FLAGS[name].present:
      raise UserError(f"--{name} does not go with --{source}: leave it out")
  if is_remote(_DATA_DIR.value or ""):
    raise UserError(
      f"--data_dir={_DATA_DIR.value}: prepared data sets are written to local disks only: give a local directory"
    )
  given = _DATA_DIR.value and Path(output_path("data_dir", _DATA_DIR.value, directory=True)[0])
  data_dir = given or default_data_dir()
  name = _TFDS.value or _NAME.value or ""
  if not name:
    raise UserError("--name is missing: give the data set a name")
  if _TFDS.value:
    prepared = prepare_tfds(name, data_dir, Path(as_path(_MANUAL_DIR.value)) if _MANUAL_DIR.value else None)
  elif _PREPARED.value:
    prepared = _encode(_PREPARED.value, name, data_dir)
  elif _IDX.value:
    prepared = prepare_idx(as_path(_IDX.value), name, data_dir)
  elif _GREY.value and _ALPHA.value:
    raise UserError("--grey does not go with --alpha: leave one of them out")
  elif not _RESOLUTION.value:
    raise UserError("--resolution is missing: give the height in pixels, e.g. --resolution=64; other widths by --width")
  else:
    files = ImageFiles(_PAIRS.value or _IMAGES.value or "")
    size = _RESOLUTION.value, _WIDTH.value or _RESOLUTION.value
    decoder = Decoder(1 if _GREY.value else 4 if _ALPHA.value else 3, _BACKGROUND.value, int(_BITS.value))
    processes, skip_corrupt = _PROCESSES.value, _SKIP_CORRUPT.value
    if _PAIRS.value:
      grey, direction = _GREY_CONDITIONS.value, _DIRECTION.value
      prepared = prepare_pairs(files, name, data_dir, size, decoder, grey, direction, processes, skip_corrupt)
    else:
      by_directory = _CLASS_DIRECTORIES.value
      prepared = prepare_images(files, name, data_dir, size, decoder, by_directory, processes, skip_corrupt)
  left_out = f" ({prepared.left_out:,} corrupt images left out)" if prepared.left_out else ""
  print(f"{prepared.images:,} images{left_out} in {prepared.directory}: {describe_directory(prepared.directory)}")
  if prepared_directory(name, data_dir) == prepared.directory:
    where = f"--config.data.name={name}" + (f" --config.run.data_path={data_dir}" if _DATA_DIR.value else "")
  else:
    where = f"--config.run.data_path={prepared.directory}"
  if _PAIRS.value:
    channels = 1 if _GREY_CONDITIONS.value else decoder.channels
    where = f"--config.gan.condition=pairs --config.data.condition_channels={channels} {where}"
  print(f"train on it with {where}")


def _encode(images: str, name: str, data_dir: Path) -> Prepared:
  if not _ENCODE.value:
    raise UserError("--encode is missing: --prepared is for making latents: --encode=sd-vae")
  autoencoder, params = read_autoencoder(_WEIGHTS.value)
  weights = digest(*jax.tree.leaves(params))
  mesh = make_mesh(jax.local_devices())
  by_image = batch_sharding(mesh)

  @partial(jax.jit, in_shardings=(replicated(mesh), by_image), out_shardings=by_image)
  def encode(params: Any, images: jax.Array) -> jax.Array:
    moments: Any = autoencoder.apply({"params": params}, to_float(images), method="encode")
    return jnp.concatenate(moments, axis=-1)

  params = jax.device_put(params, replicated(mesh))
  batch = _ENCODED_AT_ONCE * mesh.size
  height = _RESOLUTION.value
  return prepare_latents(
    images,
    name,
    data_dir,
    (height, _WIDTH.value or height) if height else None,
    _FIT.value,
    lambda images: np.asarray(encode(params, images)),
    _MIRRORED.value,
    batch,
    weights,
  )


if __name__ == "__main__":
  run(main)
