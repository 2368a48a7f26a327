"""Downloads from a local server."""

import hashlib
import http.server
import threading

import pytest

from r3gan_jax.errors import UserError
from r3gan_jax.interop.download import check_sum, fetch

CONTENT = bytes(range(256)) * 10_000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class _Handler(http.server.BaseHTTPRequestHandler):
  def do_GET(self):
    self.send_response(404 if self.path == "/none" else 200)
    self.send_header("Content-Length", str(len(CONTENT)))
    self.end_headers()
    self.wfile.write(CONTENT[:-1] if self.path == "/short" else CONTENT)

  def log_message(self, *arguments):
    pass


@pytest.fixture(scope="module")
def server():
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as running:
    threading.Thread(target=running.serve_forever).start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()


@pytest.mark.parametrize("sha256", ["", DIGEST[:8], DIGEST])
def test_a_download(tmp_path, server, sha256):
  fetch(f"{server}/file", tmp_path / "new" / "file", sha256, otherwise="")
  assert (tmp_path / "new" / "file").read_bytes() == CONTENT
  assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]


@pytest.mark.parametrize(
  "name, sha256, message",
  [
    ("none", "", r"/none could not be downloaded \(HTTP Error 404.*\): .* name it$"),
    ("short", "", r"/short could not be downloaded \(it ended after 2,559,999 of 2,560,000 bytes\)"),
    ("file", "0123abcd", rf"file is damaged: its SHA-256 begins with {DIGEST[:8]}, not 0123abcd"),
  ],
)
def test_a_failed_download_leaves_nothing(tmp_path, server, name, sha256, message):
  with pytest.raises(UserError, match=message):
    fetch(f"{server}/{name}", tmp_path / "file", sha256, otherwise="name it")
  assert not list(tmp_path.iterdir())


def test_check_sum(tmp_path):
  (tmp_path / "file").write_bytes(CONTENT)
  check_sum(tmp_path / "file", DIGEST)
  with pytest.raises(UserError, match=r"file is damaged: .* download it again"):
    check_sum(tmp_path / "file", DIGEST[:-1] + "x")
