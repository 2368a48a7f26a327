"""Progress off a terminal, which the tests are: lines in the log."""

import pytest

from r3gan_jax import progress_bar


@pytest.fixture
def shown(monkeypatch, caplog):
  """Work whose clock advances by a second for each of its units; returns the lines of the log."""
  now = [0.0]
  monkeypatch.setattr("tqdm.std.time", lambda: now[0])
  caplog.set_level("INFO")

  def work(units, **settings):
    with progress_bar.progress_bar(iter(range(units)), title="real", **settings) as bar:
      for _ in bar:
        now[0] += 1
    return caplog.messages

  return work


def test_long_work_is_logged_with_its_speed_and_end(shown):
  lines = shown(45, total=45)
  assert lines[0] == "real: 10 of 45 images | 1.00 images/s | ETA 00:35"
  assert len(lines) == 5 and lines[-1].startswith("real: 45 of 45 images") and lines[-1].endswith("ETA 00:00")


def test_the_end_is_logged_once(shown):
  assert len(shown(20, total=20)) == 2


def test_short_and_quiet_work_is_not_logged(shown):
  assert shown(9, total=9) == []
  assert shown(100, total=100, quiet=True) == []


def test_work_of_unknown_length_is_logged_too(shown):
  assert shown(25, total=None, unit="B")[0] == "real: 10.0 B | 1.00 B/s"
