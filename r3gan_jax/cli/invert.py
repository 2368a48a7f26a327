"""Finds noise from which a trained generator draws given images:

    python -m r3gan_jax.cli.invert --workdir=runs/NAME --image=A.png --image=B.png --out=DIR

Images of another size are cropped and resized as by prepare_data. With classes, give --class once for all images, or
once for each --image.

    --fine_tune             also changes G's features at 4x4, or a StyleGAN's w in every layer, which have many more
                            dimensions than noise: much closer, but no longer an image that G draws by itself
    --interpolate=2         2 seconds from each image to the next and back to the first, as a loop

DIR gets one 0_A.png per image (the target, the image from the noise and, if fine-tuned, from the features),
interpolation.gif with --interpolate, and inversion.npz with n images in the order of the flags:

    noise            float32 [n, noise_dim]
    offsets          float32 [n, offset_dim], of inversion.FineTuned, added to the features; [n, 0] if not fine-tuned
    labels           int32 [n], with classes
    targets, images  [n, H, W, C], the given images and the drawn ones
    losses           float32 [n, starts], the final loss of each start; the best start is kept
    mse              float32 [n], mean squared error of pixels in [-1, 1]

The noise can be used like any other. In Python:

    trained, found = runs.open_run("runs/NAME"), numpy.load("DIR/inversion.npz")
    sampler = Sampler(trained.algorithm, make_mesh(jax.local_devices()))
    images = sampler.batches(trained.params, trained.carry, found["noise"], found.get("labels"))

If fine-tuned, use r3gan_jax.inversion.FineTuned(trained.algorithm, trained.params, trained.carry) as the algorithm and
numpy.concatenate([found["noise"], found["offsets"]], axis=1) as the noise.
"""

from pathlib import PurePosixPath
from typing import cast

import jax
import numpy as np
from absl import flags

from r3gan_jax import runs
from r3gan_jax.algorithms.base import Algorithm
from r3gan_jax.algorithms.capabilities import HasImageFeatures
from r3gan_jax.cli.shared.outputs import output_path
from r3gan_jax.cli.shared.runner import run
from r3gan_jax.data.images import Decoder, fit, to_8_bits, to_array, to_straight_alpha
from r3gan_jax.errors import UserError
from r3gan_jax.inversion import FineTuned, Inverter
from r3gan_jax.sampling import (
  FRAME_RATE,
  Sampler,
  image_grid,
  interpolation,
  noise_path,
  over_checkerboard,
  save_png,
  save_video,
)
from r3gan_jax.sources import build_decoder
from r3gan_jax.storage import as_path, failing_as, make_directory, write_npz
from r3gan_jax.training.mesh import make_mesh

_WORKDIR = flags.DEFINE_string("workdir", None, "The work directory of the run.", required=True)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "", "The checkpoint: its images seen, or 'best'; default: the newest.")
_IMAGE = flags.DEFINE_multi_string("image", None, "An image file; may be given several times.", required=True)
_CLASS = flags.DEFINE_multi_integer("class", None, "The class of all images, or, given once per image, of each.")
_STARTS = flags.DEFINE_integer("starts", 8, "Random starts; the best result is kept.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 500, "Optimiser steps, and again as many of fine-tuning.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the first start; start i uses seed + i.", lower_bound=0)
_FINE_TUNE = flags.DEFINE_bool("fine_tune", False, "Also optimise G's features at 4x4, or a StyleGAN's w.")
_INTERPOLATE = flags.DEFINE_float(
  "interpolate", None, "Seconds from each image to the next, for a .gif.", lower_bound=1 / FRAME_RATE
)
_OUT = flags.DEFINE_string("out", None, "The directory to write.", required=True)

_MIN_SIDE = 256
"""Smaller images are enlarged in the pictures, in pixels."""


def main() -> None:
  out, _ = output_path("out", _OUT.value, directory=True)
  if _INTERPOLATE.value and len(_IMAGE.value) < 2:
    raise UserError("--interpolate needs at least two images: give --image again")
  if _SEED.value + _STARTS.value > 2**32:
    raise UserError(f"--seed={_SEED.value}: its {_STARTS.value} starts need seeds beyond 2^32; choose a smaller one")
  trained = runs.open_run(_WORKDIR.value, _CHECKPOINT.value)
  algorithm = trained.algorithm
  networks = trained.params, trained.carry
  labels = _labels(algorithm.num_classes)
  decoder = build_decoder(trained.config)
  targets = np.stack([_read(name, decoder, algorithm.image_shape[:2]) for name in _IMAGE.value])
  with failing_as(f"cannot write --out={out}", out):  # before the work rather than after it
    make_directory(out)

  features = algorithm.image_features if isinstance(algorithm, HasImageFeatures) else None
  inverter = Inverter(algorithm, *networks, features, _STEPS.value, _FINE_TUNE.value)
  sampler = Sampler(algorithm, make_mesh(jax.local_devices()), title=trained.title)
  starts = sampler.noise(_SEED.value + np.arange(_STARTS.value))
  found = []
  for index, (name, target) in enumerate(zip(_IMAGE.value, targets, strict=True)):
    found.append(inverter(target, None if labels is None else int(labels[index]), starts, name))
    print(f"{name}: mean squared error of pixels {found[-1].mse:.3g}", flush=True)

  noise, offsets = np.stack([it.noise for it in found]), np.stack([it.offsets for it in found])
  shown = [to_8_bits(targets), np.concatenate(list(sampler.batches(*networks, noise, labels)))]
  if _FINE_TUNE.value:
    sampler = Sampler(cast(Algorithm, FineTuned(algorithm, *networks)), make_mesh(jax.local_devices()))
    shown.append(np.concatenate(list(sampler.batches(*networks, np.concatenate([noise, offsets], axis=1), labels))))
  arrays = {
    "noise": noise,
    "offsets": offsets,
    "targets": to_straight_alpha(targets),
    "images": to_straight_alpha(shown[-1]),
    "losses": np.stack([it.losses for it in found]),
    "mse": np.array([it.mse for it in found], np.float32),
  } | ({} if labels is None else {"labels": labels})
  scale = -(-_MIN_SIDE // targets.shape[1])
  with failing_as(f"cannot write --out={out}", out):
    write_npz(out / "inversion.npz", arrays)
    for index, (name, images) in enumerate(zip(_IMAGE.value, zip(*shown, strict=True), strict=True)):
      save_png(out / f"{index}_{PurePosixPath(name).stem}.png", image_grid(np.stack(images), len(images)), scale)
    if _INTERPOLATE.value:
      steps = round(_INTERPOLATE.value * FRAME_RATE)
      parts = [noise_path(algorithm, noise, steps), interpolation(offsets, steps, straight=True)]
      rows = np.concatenate(parts, axis=1)
      batches = sampler.batches(*networks, rows, None if labels is None else np.repeat(labels[:1], len(rows)))
      save_video(out / "interpolation.gif", (image for batch in batches for image in over_checkerboard(batch)), scale)
  print(f"{len(found)} images by the checkpoint at {trained.images_seen:,} images seen: {out}")


def _labels(num_classes: int) -> np.ndarray | None:
  """Returns int32 [images], the class of each image; None without classes."""
  classes, images = _CLASS.value, len(_IMAGE.value)
  if not num_classes:
    if classes:
      raise UserError(f"--class={classes[0]}: the run in {_WORKDIR.value} has no classes: leave --class out")
    return None
  if not classes:
    raise UserError(f"--class is missing: give the class of the images, from 0 to {num_classes - 1}")
  for label in classes:
    if not 0 <= label < num_classes:
      raise UserError(f"--class={label}: choose from 0 to {num_classes - 1}")
  if len(classes) not in (1, images):
    raise UserError(f"--class is given {len(classes)} times for {images} images: give it once, or once for each")
  if _INTERPOLATE.value and len(set(classes)) > 1:
    raise UserError("--interpolate stays within a class: give --class once, for all images")
  return np.resize(np.array(classes, np.int32), images)


def _read(name: str, decoder: Decoder, size: tuple[int, int]) -> np.ndarray:
  """Returns uint8 or uint16 [*size, channels]."""
  path = as_path(name)
  with failing_as(f"cannot read --image={name}", path):
    data = path.read_bytes()
  return to_array(fit(decoder(data, f"--image={name}"), size, "crop_resize", name))


if __name__ == "__main__":
  run(main)
