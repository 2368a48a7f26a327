"""The pictures of a run as HTML: the grids of samples, real images, and what the GAN draws besides."""

import base64
import html
from io import BytesIO

import numpy as np
from etils import epath
from PIL import Image

MAX_GRIDS = 24
MAX_GRIDS_BYTES = 1_500_000
"""Grids larger than this in total are embedded as JPEGs of at most `MAX_SIDE` pixels a side."""
MAX_SIDE = 1024

UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""The exceptions that Pillow raises for damaged pictures."""


def samples(directory: epath.Path, newest: int | None) -> str:
  """Returns the grids by images seen, with a slider, and the real images beside them.

  Args:
    directory: the run's samples; may be missing.
    newest: the images seen of the run; later grids are of a part that was lost. None: unknown.
  """
  every = sorted(
    (int(path.stem.removeprefix("fakes_")), path)
    for path in directory.glob("fakes_*.png")
    if path.stem.removeprefix("fakes_").isdecimal()
  )
  every = [(count, path) for count, path in every if newest is None or count <= newest]
  shown = [every[i] for i in np.unique(np.linspace(0, len(every) - 1, MAX_GRIDS).round().astype(int))] if every else []
  compress = sum(path.stat().length for _, path in shown) > MAX_GRIDS_BYTES
  notes = [f"{len(shown)} of {len(every)} grids, evenly spread"] if len(shown) < len(every) else []
  notes += [f"compressed to JPEGs of at most {MAX_SIDE} pixels"] * compress
  notes += ["all grids at full quality are in the run's directory samples"] * bool(notes)

  def embedded(path: epath.Path, text: str) -> str:
    try:
      return _image(path, text, compress)
    except UNREADABLE as error:  # damaged, or deleted since
      notes.append(f"{path.name} cannot be read ({error})")
      return ""

  grids = {count: image for count, path in shown if (image := embedded(path, f"Generated, at {count:,} images seen"))}
  figures = []
  if grids:
    last = len(grids) - 1
    images = "".join(
      f'<div data-at="{count:,}"{"" if index == last else " hidden"}>{image}</div>'
      for index, (count, image) in enumerate(grids.items())
    )
    figures.append(
      f"<figure id=grids>{images}<figcaption><label>Generated, at <output>{max(grids):,}</output> images seen"
      f"<input type=range min=0 max={last} value={last}{' hidden' if last == 0 else ''}></label></figcaption></figure>"
    )
  if (directory / "reals.png").exists() and (image := embedded(directory / "reals.png", "Real images")):
    figures.append(f"<figure>{image}<figcaption>Real</figcaption></figure>")
  for name, (count, path) in _others(directory).items():
    if image := embedded(path, f"{name}, at {count:,} images seen"):
      figures.append(f"<figure>{image}<figcaption>{html.escape(name)}, at {count:,} images seen</figcaption></figure>")
  text = f"<div class=samples>{''.join(figures)}</div>\n" if figures else ""
  if not grids:
    text = "<p class=note>No samples have been drawn yet.</p>\n" + text
  return text + (f"<p class=note>{html.escape('; '.join(notes).capitalize())}.</p>" if notes else "")


def _others(directory: epath.Path) -> dict[str, tuple[int, epath.Path]]:
  """Returns the newest picture of each kind that the GAN draws besides samples: NAME_0000012345.png."""
  newest = {}
  for path in sorted(directory.glob("*_*.png")):
    name, _, count = path.stem.rpartition("_")
    if name != "fakes" and count.isdecimal():
      newest[name.replace("_", " ").capitalize()] = int(count), path
  return newest


def _image(path: epath.Path, text: str, compress: bool) -> str:
  """Returns a picture that a click enlarges.

  Raises:
    One of `UNREADABLE`: it cannot be read.
  """
  data, kind = path.read_bytes(), "png"
  image: Image.Image = Image.open(BytesIO(data))
  image.load()
  if compress:
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    buffer = BytesIO()
    image.convert("L" if image.mode in ("L", "LA") else "RGB").save(buffer, "JPEG", quality=85)
    data, kind = buffer.getvalue(), "jpeg"
  source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
  size = f'width={image.width} height={image.height} style="--width: {image.width}px"'
  text = html.escape(text)
  return f'<button class=enlarge title="Enlarge"><img alt="{text}" {size} src="{source}"></button>'
