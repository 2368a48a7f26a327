"""What a flag for an output may name: files of some types, directories, or both."""

import os

import pytest

from r3gan_jax.cli.shared.outputs import output_path
from r3gan_jax.errors import UserError

FILES = (".png", ".npz")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "file").write_text("")
  for name in ("directory", "directory.png", "directory.jpg"):
    (tmp_path / name).mkdir()


@pytest.mark.parametrize(
  "value, suffixes, directory, kind",
  [
    ("grid.png", FILES, True, ".png"),
    ("grid.PNG", FILES, True, ".png"),
    ("new/a.Npz", FILES, False, ".npz"),
    ("new", FILES, True, ""),
    ("new.png/", FILES, True, ""),
    ("directory.png", FILES, True, ""),
    ("directory.jpg", (), True, ""),
    ("run_1.5", FILES, True, ""),
    ("run.v2", (), True, ""),
    ("/dev/stdout", (".json",), False, ""),
    ("scores", (".json",), False, ""),
  ],
)
def test_files_and_directories(value, suffixes, directory, kind):
  path, found = output_path("out", value, suffixes, directory)
  assert found == kind and str(path) == value.rstrip("/")


@pytest.mark.parametrize(
  "value, suffixes, directory, message",
  [
    ("grid.jpg", FILES, True, "choose .png or .npz or a directory"),
    ("grid.JPEG", FILES, True, "choose .png"),
    ("grid.mp4", FILES, False, "choose .png or .npz$"),
    ("grid/", FILES, False, "is a directory"),
    ("found.png", (), True, "choose a directory"),
    ("directory", FILES, False, "is a directory: give a file in it, such as directory/NAME.png"),
    ("directory.png", FILES, False, "is a directory"),
    ("file", FILES, True, "is a file, not a directory"),
    ("file/grid.png", FILES, True, "file is a file, not a directory"),
    ("", FILES, True, "is empty"),
  ],
)
def test_what_is_refused(value, suffixes, directory, message):
  with pytest.raises(UserError, match=message):
    output_path("out", value, suffixes, directory)
  assert len(os.listdir()) == 4
