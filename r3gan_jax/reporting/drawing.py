"""Draws panels of curves: as SVG in the colours of the page around it, and as PNG."""

import re
import textwrap
from collections.abc import Sequence
from io import BytesIO
from itertools import cycle
from typing import Any

import matplotlib
import numpy as np

from r3gan_jax.reporting.series import Curve, Panel

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib import ticker
from matplotlib.axes import Axes

MAX_POINTS = 600
"""Longer curves are thinned; their peaks stay."""

_INK = "#010203"
_LARGEST = 1e100
"""Where larger values are drawn: matplotlib computes with them."""


def svg(panel: Panel, label: str) -> str:
  """Returns a panel without its title as SVG in the page's own colour, light or dark; `label` describes it."""
  inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color")
  settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "r3gan_jax"} | dict.fromkeys(inked, _INK)
  with plt.rc_context(settings):
    figure, axis = plt.subplots(figsize=(4.2, 2.8), layout="constrained")
    _draw(axis, panel)
    buffer = BytesIO()
    figure.savefig(
      buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
    )
    plt.close(figure)
  text = buffer.getvalue().decode()
  text = re.sub(r'<g id="[^"]*">', "<g>", text[text.index("<svg") :])  # ids that every figure repeats
  return text.replace(_INK, "currentColor").replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def png(panels: Sequence[Panel]) -> bytes:
  """Returns panels side by side as PNG."""
  figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.4), layout="constrained", squeeze=False)
  for axis, panel in zip(axes[0], panels, strict=True):
    _draw(axis, panel)
    # A metric's name is text, not a formula.
    axis.set_title("\n".join(textwrap.wrap(panel.title, 40, max_lines=3)), parse_math=False)
  buffer = BytesIO()
  figure.savefig(buffer, format="png", dpi=110)
  plt.close(figure)
  return buffer.getvalue()


def _draw(axis: Axes, panel: Panel) -> None:
  millions = max(curve.images_seen[-1] for curve in panel.curves) >= 10_000_000
  drawn = [thinned(curve) for curve in panel.curves]
  values = np.concatenate([curve.values for curve in drawn])
  logarithmic = panel.logarithmic and len(values) > 0 and values.min() > 0
  for curve, style in zip(drawn, cycle(("-", "--", ":", "-."))):
    marker = "o" if len(curve.values) < 20 else None
    y = np.maximum(curve.values, 1 / _LARGEST) if logarithmic else curve.values
    x = curve.images_seen / (1e6 if millions else 1e3)
    axis.plot(x, y, style, label=curve.label, marker=marker, markersize=3)
  axis.set_xlabel(f"images seen ({'millions' if millions else 'thousands'})")
  if logarithmic:
    make_logarithmic(axis, np.log10(values.max()) - np.log10(values.min()))
  else:
    axis.ticklabel_format(useOffset=False)
  axis.grid(alpha=0.2)
  if len(drawn) > 1:
    axis.legend(framealpha=0)


def make_logarithmic(axis: Axes, decades: float) -> None:
  """Labels the axis of values with plain numbers, enough of them also if they span few `decades`."""
  axis.set_yscale("log")
  many = ticker.LogLocator(subs=(1, 2, 5) if decades < 3 else (1,))
  axis.yaxis.set_major_locator(many if decades > 0.7 else ticker.MaxNLocator(5))
  axis.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:.4g}"))
  axis.yaxis.set_minor_formatter(ticker.NullFormatter())


def thinned(curve: Curve) -> Curve:
  """Drops values that are not finite, and of many keeps the smallest and the largest of each part, and the last."""
  finite = np.isfinite(curve.values)
  label, x, y = curve.label, curve.images_seen[finite], np.clip(curve.values[finite], -_LARGEST, _LARGEST)
  if len(y) > MAX_POINTS:
    parts = np.array_split(np.arange(len(y)), MAX_POINTS // 2)
    kept = {len(y) - 1} | {int(part[extreme(y[part])]) for part in parts for extreme in (np.argmin, np.argmax)}
    x, y = x[sorted(kept)], y[sorted(kept)]
  return Curve(label, x, y)
