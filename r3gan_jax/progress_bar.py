"""Progress of long work: a bar on a terminal, elsewhere a line in the log every ten seconds; nothing of short work."""

import sys
from collections.abc import Iterable
from io import StringIO
from typing import Any

from absl import logging
from tqdm import tqdm

TERMINAL_DELAY_SECONDS = 2.0
LOG_SECONDS = 10.0


class _LoggedProgress(tqdm):
  """Logs a line where tqdm would draw its bar, unless nothing has been done since the last one."""

  _logged = -1

  def display(self, msg: str | None = None, pos: int | None = None) -> None:
    state = self.format_dict
    if state["n"] == self._logged:
      return
    self._logged = state["n"]
    done, total, rate = state["n"], state["total"], state["rate"] or state["n"] / max(state["elapsed"], 1e-9)
    show = tqdm.format_sizeof if state["unit_scale"] else "{:,.0f}".format
    line = f"{state['prefix']}: {show(done)}" + (f" of {show(total)}" if total else "") + f" {state['unit']}"
    eta = f" | ETA {tqdm.format_interval((total - done) / rate)}" if total and rate else ""
    logging.info("%s | %s %s/s%s", line, show(rate) if rate >= 10 else f"{rate:.2f}", state["unit"], eta)


def progress_bar(
  iterable: Iterable[Any] | None = None,
  *,
  total: int | None,
  title: str,
  unit: str = "images",
  initial: int = 0,
  quiet: bool = False,
) -> tqdm:
  """Returns tqdm's progress bar, a context manager, of `total` units, or one around `iterable`.

  Args:
    title: what is done, for the bar or the line.
    unit: in the plural; "B" is scaled.
    initial: units done before.
    quiet: shows nothing, as on all processes but one.
  """
  settings: dict[str, Any] = {"total": total, "desc": title, "unit": unit, "unit_scale": unit == "B"}
  settings |= {"initial": initial, "disable": quiet}
  if sys.stderr.isatty():
    return tqdm(iterable, delay=TERMINAL_DELAY_SECONDS, **settings)
  # What tqdm itself writes, such as a last newline, is dropped.
  return _LoggedProgress(iterable, delay=LOG_SECONDS, mininterval=LOG_SECONDS, file=StringIO(), **settings)
