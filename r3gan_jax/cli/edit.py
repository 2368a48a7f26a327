"""Finds directions that change one thing in what a trained generator draws, and moves images along them:

    python -m r3gan_jax.cli.edit --workdir=runs/NAME --find=closed_form
    python -m r3gan_jax.cli.edit --workdir=runs/NAME --direction=closed_form_0 --strength=-3,0,3 --seeds=0-7 \
      --out=edit.png

Directions are kept with the run, in runs/NAME/directions. --find is one of

    closed_form             --count directions, closed_form_0 and so on, from the weights alone: the noise that changes
                            G's features most
    pca                     --count directions, pca_0 and so on: the principal components of the features of --samples
    classifier              one direction, class_K, towards class --target=K of --classifier=FILE.npz, by which
                            --samples are sorted (cli.train_classifier makes the file); without --classifier, of the
                            run's own classes. --space says where: "noise" or "features". If the classifier has one
                            channel and the images have more, such as stacked digits, --channel says which, and the
                            name is class_K_channel_C

Features are R3GAN's at 4x4, or w, the input of all layers of a StyleGAN: r3gan_jax/editing.py explains them. Other GANs
have directions in noise by a classifier. Strength 1 is one standard deviation of the samples along a direction.

--seeds moves samples, in --class if that is given; --inversion=DIR moves the images that cli.invert has found. --out is

    edit.png                a row for each image, a column for each strength, enlarged by config.run.grid_scale
    edit.gif, edit.mp4      all images, from the lowest strength to the highest and back, in 4 seconds

With --classifier=FILE.npz, --out may be left out, and it prints for each strength

    class K                 the mean probability of --target; by default, of the class that changes most
    likeness                the mean cosine of the classifier's features and those of the same image before it was
                            edited; of stacked digits, of the digits that are not meant

beside those of random directions of the same length. Of a StyleGAN, --layers=0-3 moves only these layers.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags, logging
from etils import epath
from scipy.special import softmax

from r3gan_jax import editing, runs
from r3gan_jax.cli.shared.numbers import parse_numbers
from r3gan_jax.cli.shared.outputs import check_mp4, output_path
from r3gan_jax.cli.shared.runner import run
from r3gan_jax.editing import Direction, Editor, Latents
from r3gan_jax.errors import UserError
from r3gan_jax.metrics import residual_cnn
from r3gan_jax.metrics.feature_extractor import FeatureExtractor, ImageSet
from r3gan_jax.runs import TrainedRun
from r3gan_jax.sampling import FRAME_RATE, beside_its_channels, image_grid, labels_of_seeds, save_png, save_video
from r3gan_jax.storage import as_path, failing_as
from r3gan_jax.training.mesh import make_mesh

METHODS = ("closed_form", "pca", "classifier")

_WORKDIR = flags.DEFINE_string("workdir", None, "The work directory of the run.", required=True)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "", "The checkpoint: its images seen, or 'best'; default: the newest.")
_FIND = flags.DEFINE_enum("find", None, METHODS, "Finds directions by this method.")
_COUNT = flags.DEFINE_integer("count", 8, "How many directions closed_form and pca find.", lower_bound=1)
_SAMPLES = flags.DEFINE_integer("samples", 2000, "How many samples pca and classifier look at.", lower_bound=50)
_SPACE = flags.DEFINE_enum("space", "noise", editing.SPACES, "Where classifier finds its direction.")
_CLASSIFIER = flags.DEFINE_string("classifier", None, "A file of cli.train_classifier, of the run's images.")
_TARGET = flags.DEFINE_integer("target", None, "The class that a direction is to change.", lower_bound=0)
_CHANNEL = flags.DEFINE_integer("channel", 0, "The channel of stacked digits that --target is of.", lower_bound=0)
_NAME = flags.DEFINE_string("name", None, "Another name for what --find finds.")
_DIRECTION = flags.DEFINE_string("direction", None, "The name of a direction to move along.")
_STRENGTH = flags.DEFINE_list("strength", ["-3", "-1.5", "0", "1.5", "3"], "How far, in standard deviations.")
_LAYERS = flags.DEFINE_string("layers", None, "The layers of a StyleGAN to move, e.g. 0-3; default: all.")
_SEEDS = flags.DEFINE_string("seeds", "0-7", "Samples to edit, e.g. 0-7 or 1,5,10-19.")
_CLASS = flags.DEFINE_integer("class", None, "The class of all samples; default: each seed draws one.", lower_bound=0)
_INVERSION = flags.DEFINE_string("inversion", None, "Images to edit: the --out of cli.invert.")
_OUT = flags.DEFINE_string("out", None, "The .png, .gif or .mp4 to write.")

_OF_FINDING = (_COUNT, _SAMPLES, _SPACE, _NAME)
_OF_MOVING = (_STRENGTH, _LAYERS, _SEEDS, _CLASS, _INVERSION, _OUT)

_FIRST_SEED = 2**31
"""The first seed of the samples in which directions are found: others than those that users look at."""
_RANDOM_DIRECTIONS = 4
"""How many of them the effect of a direction is compared with."""
_SECONDS = 2
"""The length of a video from the lowest strength to the highest."""
_MIN_VIDEO_SIDE = 256
"""Smaller frames are enlarged, in pixels."""


def main() -> None:
  if bool(_FIND.value) == bool(_DIRECTION.value):
    raise UserError("give either --find, to find directions, or --direction, to move images along one")
  _check_flags(*((_FIND, _OF_MOVING) if _FIND.value else (_DIRECTION, _OF_FINDING)))
  if _DIRECTION.value and not (_OUT.value or _CLASSIFIER.value):
    raise UserError("--direction needs --out, for a picture, or --classifier, for numbers")
  out, kind = None, ""
  if _OUT.value:
    out, kind = output_path("out", _OUT.value, (".png", ".gif", ".mp4"))
    if kind == ".mp4":
      check_mp4("out", _OUT.value)
  strengths = _strengths()
  trained = runs.open_run(_WORKDIR.value, _CHECKPOINT.value)
  editor = Editor(trained.algorithm, trained.params, trained.carry, trained.title)
  classifier = _Classifier(trained) if _CLASSIFIER.value else None
  if _FIND.value:
    _find(trained, editor, classifier, _FIND.value)
    return
  direction = _read_direction(trained, editor)
  latents = _latents(trained, editor)
  if out:
    with failing_as(f"cannot write --out={out}", out):
      if kind == ".png":
        columns = [editor.draw(editor.moved(latents, direction, strength)) for strength in strengths]
        images = np.stack(columns, axis=1).reshape(-1, *trained.algorithm.image_shape)
        shown = beside_its_channels(images) if trained.config.run.grid_channels else images
        save_png(out, image_grid(shown, len(columns)), trained.config.run.grid_scale)
      else:
        frames = _frames(editor, latents, direction, strengths)
        save_video(out, frames, -(-_MIN_VIDEO_SIDE // trained.algorithm.image_shape[0]))
    print(f"{len(latents.noise)} images of {trained.title}, moved along {_DIRECTION.value}: {out}")
  if classifier:
    _print_effects(editor, classifier, latents, direction, strengths)


def _check_flags(mode: flags.FlagHolder[str | None], others: Sequence[flags.FlagHolder[Any]]) -> None:
  """Raises a UserError if a flag is given that this mode ignores."""
  for flag in others:
    if flag.present:
      raise UserError(f"--{flag.name} does not go with --{mode.name}: leave it out (--help explains both)")


def _strengths() -> list[float]:
  try:
    strengths = [float(text) for text in _STRENGTH.value]
  except ValueError:
    strengths = []
  if not strengths or not np.isfinite(strengths).all():
    raise UserError(f"--strength={','.join(_STRENGTH.value)}: give numbers, such as -3,0,3")
  return strengths


def _path(name: str | None) -> epath.Path:
  return as_path(_WORKDIR.value) / editing.DIRECTORY / f"{name}.npz"


class _Classifier:
  """The classifier of --classifier. `parts`: how many images of its own it sees in one of the run."""

  def __init__(self, trained: TrainedRun):
    network = residual_cnn.feature_network(_CLASSIFIER.value, trained.algorithm.image_shape)
    image = jax.ShapeDtypeStruct((1, *trained.algorithm.image_shape), np.uint8)
    _, self.parts, self.classes = jax.eval_shape(network.apply, network.params, image)["logits"].shape
    for flag, limit in ((_TARGET, self.classes), (_CHANNEL, self.parts)):
      if flag.value is not None and flag.value >= limit:
        raise UserError(f"--{flag.name}={flag.value}: {_CLASSIFIER.value} has {limit}: choose from 0 to {limit - 1}")
    self._extractor = FeatureExtractor(network, make_mesh(jax.local_devices()), 64)

  def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the probabilities [n, parts, classes] and the features [n, parts, D] of uint8 [n, H, W, C]."""
    found = list(self._extractor(ImageSet("edited", len(images), images.shape[1:], images.__getitem__)))
    logits, features = (np.concatenate([part[name] for part in found]) for name in ("logits", "features"))
    return softmax(logits, axis=2), features.reshape(len(images), self.parts, -1)


def _find(trained: TrainedRun, editor: Editor, classifier: _Classifier | None, method: str) -> None:
  """Finds directions, and writes them."""
  target = _TARGET.value
  space = _SPACE.value
  if method != "classifier":
    space = "features" if method == "pca" or editor.has_styles else "noise"
  names = [f"{_NAME.value or method}_{index}" for index in range(_COUNT.value)]
  if method == "classifier":
    names = [
      _NAME.value or f"class_{target}" + f"_channel_{_CHANNEL.value}" * bool(classifier and classifier.parts > 1)
    ]
  paths = [_path(name) for name in names]
  for path in paths:
    if path.exists():
      raise UserError(f"{path} exists: give another --name, or delete it")
  facts: dict[str, Any] = {"method": method, "images_seen": trained.images_seen, "samples": _SAMPLES.value}
  seeds = _FIRST_SEED + np.arange(_SAMPLES.value)
  latents = editor.latents(seeds, _own_classes(trained, seeds))
  if method == "closed_form":
    vectors = editing.closed_form(editor, latents, _COUNT.value)
  elif method == "pca":
    vectors = editing.principal_components(editor.features(latents), _COUNT.value)
  else:
    vector, accuracy = editing.boundary(
      editor.values(latents, space), _are_target(trained, editor, classifier, latents)
    )
    print(f"the plane is right for {accuracy:.1%} of the samples held out, where both sides count the same")
    facts |= {"target": target, "channel": _CHANNEL.value, "classifier": _CLASSIFIER.value or "", "accuracy": accuracy}
    vectors = vector[None]
  with failing_as(f"cannot write below --workdir={_WORKDIR.value}", paths[0]):
    for path, vector in zip(paths, vectors, strict=False):  # there can be fewer than --count
      editing.write_direction(path, Direction(space, vector, facts))
      print(path)


def _are_target(trained: TrainedRun, editor: Editor, classifier: _Classifier | None, latents: Latents) -> np.ndarray:
  """Returns which samples are of the class --target, bool [n]."""
  target = _TARGET.value
  if target is None:
    raise UserError("--find=classifier needs --target: the number of a class")
  if classifier:
    return classifier(editor.draw(latents))[0][:, _CHANNEL.value].argmax(axis=1) == target
  classes = trained.algorithm.num_classes
  if not classes:
    raise UserError("--find=classifier needs --classifier=FILE.npz: this run has no classes of its own")
  if target >= classes:
    raise UserError(f"--target={target}: choose from 0 to {classes - 1}")
  if _SPACE.value == "noise":
    raise UserError("the run's own classes do not depend on the noise: add --space=features, or --classifier=FILE.npz")
  assert latents.labels is not None
  return latents.labels == target


def _own_classes(trained: TrainedRun, seeds: np.ndarray) -> np.ndarray | None:
  classes = trained.algorithm.num_classes
  return labels_of_seeds(seeds, classes) if classes else None


def _read_direction(trained: TrainedRun, editor: Editor) -> Direction:
  direction = editing.read_direction(_path(_DIRECTION.value), editor)
  if direction.facts.get("images_seen") != trained.images_seen:
    logging.warning("%s was found at another checkpoint than %s", _DIRECTION.value, trained.title)
  if _LAYERS.value is None:
    return direction
  if direction.space != "features" or not editor.has_styles:
    raise UserError(f"--layers={_LAYERS.value}: only directions in a StyleGAN's w have layers: leave it out")
  return editor.only_layers(direction, np.array([*parse_numbers("layers", _LAYERS.value, editor.feature_shape[0])]))


def _latents(trained: TrainedRun, editor: Editor) -> Latents:
  """Returns the latents of --inversion, or those of --seeds."""
  classes = trained.algorithm.num_classes
  if _INVERSION.value:
    _check_flags(_INVERSION, (_SEEDS, _CLASS))
    return editing.read_latents(as_path(_INVERSION.value) / "inversion.npz", editor)
  seeds = np.array(list(parse_numbers("seeds", _SEEDS.value, 2**32)))
  if _CLASS.value is None:
    return editor.latents(seeds, _own_classes(trained, seeds))
  if _CLASS.value >= classes:
    cure = f"choose from 0 to {classes - 1}" if classes else "this run has no classes: leave it out"
    raise UserError(f"--class={_CLASS.value}: {cure}")
  return editor.latents(seeds, np.full(len(seeds), _CLASS.value, np.int32))


def _frames(editor: Editor, latents: Latents, direction: Direction, strengths: Sequence[float]) -> Iterator[np.ndarray]:
  """Yields the images as a grid, from the lowest strength to the highest, and back."""
  there = np.linspace(min(strengths), max(strengths), _SECONDS * FRAME_RATE).tolist()
  drawn = []
  for strength in there:
    images = editor.draw(editor.moved(latents, direction, strength))
    drawn.append(image_grid(images, math.ceil(math.sqrt(len(images)))))
    yield drawn[-1]
  yield from drawn[-2:0:-1]


def _print_effects(
  editor: Editor, classifier: _Classifier, latents: Latents, direction: Direction, strengths: Sequence[float]
) -> None:
  """Prints, for each strength, what a direction changes and what it keeps, and random ones after it."""
  before, features = classifier(editor.draw(latents))
  others = [editor.random_direction(direction, seed) for seed in range(_RANDOM_DIRECTIONS)]
  found = {
    (which, strength): classifier(editor.draw(editor.moved(latents, which, strength)))
    for which in (direction, *others)
    for strength in strengths
  }
  channel, target = _CHANNEL.value, _TARGET.value
  if target is None:
    after = found[direction, max(strengths, key=abs)][0]
    change = np.abs(np.mean(after - before, axis=0))
    channel, target = np.unravel_index(change.argmax(), change.shape)
  kept = [part for part in range(classifier.parts) if classifier.parts == 1 or part != channel]

  def effect(which: Direction, strength: float) -> np.ndarray:
    after, moved = found[which, strength]
    alike = editing.likeness(*(them[:, kept].reshape(len(them), -1) for them in (moved, features)))
    return np.array([np.mean(after[:, channel, target]), np.mean(alike)])

  of_channel = f" of channel {channel}" if classifier.parts > 1 else ""
  print(f"{_DIRECTION.value} on {len(before)} images [mean of {len(others)} random directions of its length]")
  print(f"{'strength':>8}  {f'class {target}{of_channel}':>22}  {'likeness':>16}")
  for strength in strengths:
    own, random = effect(direction, strength), np.mean([effect(other, strength) for other in others], axis=0)
    print(f"{strength:8g}  {own[0]:12.3f} [{random[0]:7.3f}]  {own[1]:6.3f} [{random[1]:7.3f}]")


if __name__ == "__main__":
  run(main)
