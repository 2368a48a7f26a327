"""Explores a trained generator: a `State` says what to draw, and an `Explorer` draws it, fast, one image at a time.

page.py shows both. Whatever comes from a page, a link or a pasted text is untrusted: a `State` checks itself, and an
`Explorer` checks it against the network. An image that a user has uploaded is named by an identifier, and never by a
path.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from io import BytesIO
from typing import Any
from urllib.parse import quote

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from PIL import Image

from r3gan_jax import editing, factory
from r3gan_jax.algorithms.capabilities import HasBoundedNoise, HasImageFeatures
from r3gan_jax.data.images import fit, to_array
from r3gan_jax.editing import Direction, Editor, Latents
from r3gan_jax.errors import UserError, one_line
from r3gan_jax.inversion import FineTuned, Inverter
from r3gan_jax.ops.images import to_uint8
from r3gan_jax.runs import TrainedRun
from r3gan_jax.sampling import lerp, slerp
from r3gan_jax.sources import build_decoder
from r3gan_jax.storage import as_path

STRONGEST = 4.0
"""The largest strength of a direction, in standard deviations; beyond it images fall apart."""
LARGEST_BYTES = 10_000_000
LARGEST_PIXELS = 32_000_000
"""The largest upload, as a file and as an image."""
FORMATS = ("PNG", "JPEG", "WEBP")
"""The formats of uploads; the readers of Pillow's other formats never see them."""

SEEDS = 2**32
"""Seeds are below this."""
_LONGEST_TEXT = 10_000
"""The longest text of a state, in characters."""
_CLOSED_FORM, _SAMPLES = 6, 256
"""How many directions are found if a run has none, and from how many samples of a StyleGAN's w."""
_STARTS, _STEPS = 4, 100
"""The starts and steps of an inversion: half and a fifth of cli.invert's, as someone waits."""
_KEPT = 64
"""How many inverted images are kept."""


@dataclass(frozen=True)
class State:
  """The state of a page: what is drawn. Numbers are converted to their type, and strengths of 0 are left out.

  Attributes:
    seed, other_seed: give the noise.
    mix: how far the noise is on the way from `seed` to `other_seed`, 0 to 1.
    label: the class; 0 without classes.
    truncation: see `Algorithm.generate`.
    strengths: how far to move along directions, by their names.
    style_seed, style_layers: a StyleGAN's layers that take their styles from another seed; 0 is the first.
    image: an inverted image in the place of `seed`, by the identifier that `Explorer.invert` gave it; "": none.

  Raises:
    UserError: a value has the wrong type, is not finite, or out of range.
  """

  seed: int = 0
  other_seed: int = 1
  mix: float = 0.0
  label: int = 0
  truncation: float = 1.0
  strengths: Mapping[str, float] = field(default_factory=dict)
  style_seed: int = 2
  style_layers: tuple[int, ...] = ()
  image: str = ""

  def __post_init__(self) -> None:
    values: dict[str, Any] = {name: _whole(name, getattr(self, name)) for name in ("seed", "other_seed", "style_seed")}
    values |= {name: _number(name, getattr(self, name), 0.0, 1.0) for name in ("mix", "truncation")}
    values["label"] = _whole("label", self.label)
    if not isinstance(self.strengths, Mapping):
      raise UserError("strengths: give numbers by the names of directions")
    strengths = {str(name): _number(str(name), value, -STRONGEST, STRONGEST) for name, value in self.strengths.items()}
    values["strengths"] = {name: value for name, value in strengths.items() if value}
    if not isinstance(self.style_layers, (list, tuple)):
      raise UserError("style_layers: give a list of layers")
    values["style_layers"] = tuple(sorted({_whole("style_layers", layer) for layer in self.style_layers}))
    if not isinstance(self.image, str):
      raise UserError("image: give the identifier of an uploaded image, or nothing")
    for name, value in values.items():
      object.__setattr__(self, name, value)

  def to_json(self) -> str:
    """Returns the state as JSON, which `from_json` reads; what is as in `State()` is left out."""
    plain = asdict(State())
    return json.dumps({name: value for name, value in asdict(self).items() if value != plain[name]})

  def to_query(self) -> str:
    """Returns the state as the query of a link: ?state=..., `to_json` with percent signs."""
    return f"?state={quote(self.to_json())}"

  @classmethod
  def from_json(cls, text: str) -> "State":
    """Reads what `to_json` has written; raises a UserError for anything else."""
    try:
      values = json.loads(text) if len(text) <= _LONGEST_TEXT else None
    except (ValueError, RecursionError):
      values = None
    if not isinstance(values, dict):
      raise UserError('this is not the JSON of a state, such as {"seed": 3}')
    if unknown := sorted(values.keys() - {field.name for field in fields(cls)}):
      raise UserError(f"a state has no {unknown[0][:50]!r}: it has {', '.join(field.name for field in fields(cls))}")
    return cls(**values)


def _whole(name: str, value: Any) -> int:
  """Returns a whole number in [0, 2^32); pages and JSON may say 3.0 for 3."""
  number = _number(name, value, 0, SEEDS - 1)
  if number != int(number):
    raise UserError(f"{name[:50]} = {number}: give a whole number")
  return int(number)


def _number(name: str, value: Any, lowest: float, highest: float) -> float:
  is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
  if not is_number or not lowest <= value <= highest:  # NaN is in no range
    given = f" = {value:.6g}" if is_number and abs(value) < 1e300 else ""
    raise UserError(f"{name[:50]}{given}: give a number from {lowest:g} to {highest:.10g}")
  return float(value)


class Explorer:
  """Draws the states of a run, on the first device of this process; compiled once, when it is built.

  Attributes:
    trained: the run.
    directions: those in its work directory, by name; if there are none, those of the closed form, if it has one.
    layers: how many layers of a StyleGAN have styles of their own; 0 of other GANs.

  Raises:
    UserError: a direction is of another run, the GAN draws from images, or what it draws is not finite.
  """

  def __init__(self, trained: TrainedRun, workdir: epath.PathLike):
    self.trained = trained
    self._algorithm = trained.algorithm
    self._networks = jax.device_put(jax.device_get((trained.params, trained.carry)), jax.local_devices()[0])
    self._editor = Editor(trained.algorithm, trained.params, trained.carry, trained.title)
    try:
      self._fine_tuned: FineTuned | None = FineTuned(trained.algorithm, trained.params, trained.carry)
    except UserError:  # it has no features
      self._fine_tuned = None
    self.layers = self._fine_tuned.shape[0] if self._fine_tuned and self._editor.has_styles else 0
    self._decoder = build_decoder(trained.config)
    self._inverted: dict[str, Latents] = {}
    self._inverter: Inverter | None = None
    self._draw = jax.jit(partial(self._drawn, factory.quantised_in(trained.config, trained.algorithm)))
    self.directions: Mapping[str, Direction] = {}
    self.draw(State())
    self.directions = self._read_directions(as_path(workdir) / editing.DIRECTORY)

  @property
  def num_classes(self) -> int:
    """The number of classes; 0 if unconditional."""
    return self._algorithm.num_classes

  def draw(self, state: State) -> np.ndarray:
    """Draws uint8 [H, W, C]: equal states give equal images.

    Its last bits can differ from those of cli.sample, which computes 64 images at a time.

    Raises:
      UserError: the state has what the run has not, or the image is not finite.
    """
    self._check(state)
    labels = np.array([state.label], np.int32) if self.num_classes else None
    first, other, style = self._editor.latents(np.array([state.seed, state.other_seed, state.style_seed]), None).noise
    start = self._inverted[state.image] if state.image else Latents(first[None], np.zeros((1, 0), np.float32), labels)
    # As in samples that cli.sample interpolates.
    between = lerp if isinstance(self._algorithm, HasBoundedNoise) else slerp
    noise = between(start.noise[0], other, np.array([state.mix]))
    latents = Latents(noise, start.offsets * np.float32(1 - state.mix), labels)
    for name, strength in state.strengths.items():
      latents = self._editor.moved(latents, self.directions[name], strength)
    offset_dim = self._fine_tuned.offset_dim if self._fine_tuned else 0
    offsets = np.broadcast_to(latents.offsets if latents.offsets.size else np.float32(0), (1, offset_dim))
    styled = np.isin(np.arange(self.layers), state.style_layers)
    inputs = (latents.noise, offsets, style[None], styled, labels, np.float32(state.truncation))
    image, finite = self._draw(*self._networks, *inputs)
    if not finite:
      raise UserError(f"{self.trained.title} draws an image that is not finite (NaN or infinity): move less")
    return np.asarray(image)

  def invert(self, data: bytes, label: int) -> str:
    """Finds the latents of an uploaded image, of class `label`; returns an identifier of them, for `State.image`.

    Args:
      data: a PNG, JPEG or WebP; it is cropped and resized as by cli.invert.
      label: 0 without classes.

    Raises:
      UserError: the upload is too large, not an image, or not one for this run, or there is no such class.
    """
    self._check(State(label=label))
    check_upload(data)
    identifier = hashlib.sha256(b"%d %b" % (label, data)).hexdigest()[:16]
    if identifier in self._inverted:
      return identifier
    name, algorithm = "the upload", self._algorithm
    target = to_array(fit(self._decoder(data, name), algorithm.image_shape[:2], "crop_resize", name))
    if self._inverter is None:
      params, carry = self._networks
      features = algorithm.image_features if isinstance(algorithm, HasImageFeatures) else None
      self._inverter = Inverter(algorithm, params, carry, features, _STEPS, fine_tune=self._fine_tuned is not None)
    starts = self._editor.latents(np.arange(_STARTS), None).noise
    found = self._inverter(target, label if self.num_classes else None, starts, name)
    self._inverted[identifier] = Latents(found.noise[None], found.offsets[None], None)
    if len(self._inverted) > _KEPT:
      del self._inverted[next(iter(self._inverted))]  # the oldest
    return identifier

  def _check(self, state: State) -> None:
    """Raises a UserError if the state has what this run has not."""
    if state.label >= max(self.num_classes, 1):
      cure = f"choose from 0 to {self.num_classes - 1}" if self.num_classes else "this run has no classes"
      raise UserError(f"label = {state.label}: {cure}")
    if unknown := sorted(state.strengths.keys() - self.directions.keys()):
      cure = f"choose from {', '.join(self.directions)}" if self.directions else "this run has none"
      raise UserError(f"there is no direction {unknown[0][:50]!r}: {cure}")
    if state.style_layers and state.style_layers[-1] >= self.layers:
      cure = f"choose from 0 to {self.layers - 1}" if self.layers else "only a StyleGAN has some"
      raise UserError(f"style_layers: there is no layer {state.style_layers[-1]}: {cure}")
    if state.image and state.image not in self._inverted:
      raise UserError("the uploaded image is not kept any more: upload it again")

  def _read_directions(self, directory: epath.Path) -> dict[str, Direction]:
    paths = sorted(directory.glob("*.npz")) if directory.exists() else []
    if paths or not self._fine_tuned:
      return {path.stem: editing.read_direction(path, self._editor) for path in paths}
    latents = self._editor.latents(np.arange(_SAMPLES), None)
    found = editing.closed_form(self._editor, latents, _CLOSED_FORM)
    space = "features" if self.layers else "noise"
    return {f"closed_form_{index}": Direction(space, vector, {}) for index, vector in enumerate(found)}

  def _drawn(
    self,
    quantised_in: jnp.dtype,
    params: Any,
    carry: Any,
    noise: jax.Array,
    offsets: jax.Array,
    styles: jax.Array,
    styled: jax.Array,
    labels: jax.Array | None,
    truncation: Any,
  ) -> tuple[jax.Array, jax.Array]:
    """Draws one image.

    Args:
      noise, styles: [1, noise_dim]; the latter gives the w of the layers that are `styled`, bool [layers].
      offsets: [1, offset_dim], of `FineTuned`; [1, 0] of a GAN without features.
      truncation: a scalar, not a constant of the program, which would be compiled for every position of a slider.

    Returns:
      uint8 [H, W, C], and whether all of it is finite.
    """
    if self._fine_tuned is None:
      images = self._algorithm.generate(params, carry, noise, labels, truncation)
    else:
      if self.layers:
        own, others = (self._fine_tuned.features(params, carry, z, labels, truncation) for z in (noise, styles))
        chosen = jnp.repeat(styled, math.prod(self._fine_tuned.shape[1:]))[None]
        offsets = offsets + jnp.where(chosen, others - own, 0)
      rows = jnp.concatenate([noise, offsets], axis=1)
      images = self._fine_tuned.generate(params, carry, rows, labels, truncation)
    return to_uint8(images, quantised_in)[0], jnp.isfinite(images).all()


def check_upload(data: bytes) -> None:
  """Reads the header of an uploaded image, and no more.

  Raises:
    UserError: it is too large as a file or as an image, or not of one of `FORMATS`.
  """
  if len(data) > LARGEST_BYTES:
    raise UserError(f"the upload has {len(data):,} bytes: make it smaller than {LARGEST_BYTES:,}")
  try:
    width, height = Image.open(BytesIO(data), formats=FORMATS).size
  except Image.DecompressionBombError:
    width, height = LARGEST_PIXELS, 2
  except Exception as error:  # a broken file can raise anything in Pillow's readers
    why = "" if isinstance(error, Image.UnidentifiedImageError) else f" ({one_line(error)})"
    raise UserError(f"the upload is not an image that can be read{why}: give a PNG, JPEG or WebP") from None
  if width * height > LARGEST_PIXELS:
    raise UserError(f"the upload has more than {LARGEST_PIXELS // 1_000_000} megapixels: make it smaller")
