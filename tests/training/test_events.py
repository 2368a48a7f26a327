"""What metrics.jsonl says of a run besides numbers: starts, rollbacks and ends."""

import json

import pytest
from etils import epath

from r3gan_jax.training.logging import STARTED, JsonLinesWriter, append_line, read_events, read_metrics, started


def test_a_start_says_when_on_what_and_with_which_versions(tmp_path):
  path = epath.Path(tmp_path / "metrics.jsonl")
  writer = JsonLinesWriter(path)
  writer.write_texts(0, started(STARTED))
  writer.write_scalars(20, {"x": 1.5})
  writer.write_texts(24, {"event": "ended", "reason": "finished"})
  (at, start), ended = read_events(tmp_path)
  assert (at, start["event"]) == (0, "started")
  assert ended == (24, {"event": "ended", "reason": "finished"})
  assert start["devices"].startswith("8 x CPU (") and "jax 0." in start["versions"] and start["time"].endswith("+00:00")


@pytest.mark.parametrize(
  ("event", "kept"), [("started", [8, 30]), ("resumed", [8, 30]), ("rolled back", [8, 30]), ("ended", [8, 16, 30])]
)
def test_lines_of_a_lost_part_do_not_count(tmp_path, event, kept):
  path = epath.Path(tmp_path / "metrics.jsonl")
  for images_seen in (8, 16):
    append_line(path, images_seen, {"x": 1.0})
  append_line(path, 10, {"event": event})
  append_line(path, 30, {"x": 2.0})
  assert read_metrics(tmp_path)["x"][0].tolist() == kept


def test_events_are_texts_in_records(tmp_path):
  """Anything else in the file is passed over."""
  lines = [
    {"images_seen": 1, "event": 5},
    {"event": "ended"},
    {"images_seen": 2, "event": "ended", "reason": None},
    [1],
  ]
  (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"images_s')
  assert read_events(tmp_path) == [(2, {"event": "ended"})]
