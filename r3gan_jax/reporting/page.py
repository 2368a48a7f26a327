"""A run's report as one HTML page that loads nothing else."""

import html
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib import resources
from string import Template
from typing import Any

import numpy as np
from etils import epath

from r3gan_jax.reporting import drawing, pictures, series, status
from r3gan_jax.reporting.series import Metrics, Panel, Score
from r3gan_jax.training.workdir import flatten

_ARROWS = {"min": "\N{DOWNWARDS ARROW}", "max": "\N{UPWARDS ARROW}", "": ""}
_AIMS = {"min": "lower is better", "max": "higher is better", "": ""}


def page(
  workdir: epath.Path, config: Mapping[str, Any], metrics: Metrics, events: status.Events, protocol: Mapping[str, Any]
) -> str:
  """Returns the page.

  Args:
    workdir: of the run; pictures and history are read here.
    config: of the run; may lack anything.
    metrics: see `training.logging.read_metrics`.
    events: see `training.logging.read_events`.
    protocol: of the run's scores.
  """
  state = status.status(workdir, config, metrics, events)
  changes = status.changed_settings(workdir)
  scores = series.scores(metrics, protocol)
  schedules, constants = series.schedule_panels(metrics)
  settings = [(name, json.dumps(value, ensure_ascii=False)) for name, value in flatten(dict(config)).items()]
  template = Template(resources.files("r3gan_jax.reporting").joinpath("report.html").read_text("utf-8"))
  return template.substitute(
    name=html.escape(str(config.get("name") or workdir.name)),
    state=state.state,
    progress=f"{state.images_seen:,}" + (f" of {state.total_images:,}" if state.total_images else ""),
    reason=f"<p class=note>{html.escape(state.reason)}</p>" if state.reason else "",
    facts=_facts(status.facts(metrics, events, len(changes))),
    workdir=html.escape(str(workdir)),
    date=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    samples=pictures.samples(workdir / "samples", state.images_seen if events else None),
    results=_results(scores) + _panels(series.score_panels(scores)),
    training=_panels(series.training_panels(metrics, config)) or "<p class=note>Nothing has been logged yet.</p>",
    schedules=_schedules(schedules, constants),
    speed=_section("Speed and memory", _panels(series.speed_panels(metrics))),
    history=_section("Changed settings", _table(("at images seen", "setting", "before", "after"), changes)),
    starts=_section("Starts, rollbacks and ends", _events(events)),
    settings_count=len(settings),
    settings=_table(("setting", "value"), settings),
  )


def _section(title: str, content: str) -> str:
  return f"<h2>{title}</h2>\n{content}\n" if content else ""


def _facts(facts: Mapping[str, str]) -> str:
  return "".join(f"<div><dt>{name}</dt><dd>{html.escape(text)}</dd></div>\n" for name, text in facts.items() if text)


def _results(scores: Sequence[Score]) -> str:
  if not scores:
    return "<p class=note>No metrics have been computed.</p>\n"
  rows = []
  for score in scores:
    best, at = score.best or (np.nan, 0)
    row = {
      "score": f"{score.title} {_ARROWS[score.aim]}".strip(),
      "best": f"{best:,.6g}" if score.best else "",
      "best at images": f"{at:,}" if score.best else "",
      "last": f"{score.curve.values[-1]:,.6g}",
      "last at images": f"{score.curve.images_seen[-1]:,}",
      "real images": f"{score.real:,.6g}" if np.isfinite(score.real) else "",
      "protocol": score.details,
    }
    rows.append(row)
  head = [name for name in rows[0] if any(row[name] for row in rows)]
  aims = {score.aim for score in scores if score.aim}
  legend = ", ".join(f"{_ARROWS[aim]} {_AIMS[aim]}" for aim in sorted(aims))
  return _table(head, [[row[name] for name in head] for row in rows], "results") + (
    f"\n<p class=note>{legend}</p>\n" if legend else ""
  )


def _schedules(panels: Sequence[Panel], constants: Mapping[str, float]) -> str:
  line = ", ".join(f"{html.escape(name)}&nbsp;{value:g}" for name, value in constants.items())
  return _section("Schedules", (f"<p>Constant: {line}</p>\n" if line else "") + _panels(panels))


def _events(events: status.Events) -> str:
  rows = []
  for at, texts in events:
    rest = {name: text for name, text in texts.items() if name != "event"}
    rows.append((f"{at:,}", texts["event"], "; ".join(rest.values())))
  return _table(("at images seen", "event", "details"), rows)


def _panels(panels: Sequence[Panel]) -> str:
  return f"<div class=panels>\n{''.join(map(_panel, panels))}</div>\n" if panels else ""


def _panel(panel: Panel) -> str:
  """Returns one panel, with its last values and what is healthy below it."""
  last = ", ".join(
    (f"{curve.label}: " if len(panel.curves) > 1 else "") + _number(curve.values[-1]) for curve in panel.curves
  )
  lost = sum(int(np.sum(~np.isfinite(curve.values))) for curve in panel.curves)
  title, last = html.escape(panel.title), html.escape(last) + _not_finite(lost)
  return (
    f"<figure><h3>{title}</h3>\n{drawing.svg(panel, f'{title}, last {last}')}"
    f"<figcaption><b>last {last}</b> {html.escape(panel.note)}</figcaption></figure>\n"
  )


def _number(value: float) -> str:
  return f"{value:,.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:,.4g}"


def _not_finite(count: int) -> str:
  return "" if not count else "; 1 value is not finite" if count == 1 else f"; {count} values are not finite"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
  """Returns a table, or "" without rows; `kind` is its class."""
  if not rows:
    return ""
  top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
  body = "".join(
    "<tr>"
    + "".join(
      f'<td data-head="{html.escape(name)}">{html.escape(cell)}</td>' for name, cell in zip(head, row, strict=True)
    )
    + "</tr>\n"
    for row in rows
  )
  return f"<table{f' class={kind}' if kind else ''}>\n<thead><tr>{top}</tr></thead>\n<tbody>\n{body}</tbody></table>"
