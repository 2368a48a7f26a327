"""A local Google Cloud Storage: the part of its JSON API that gcsfs, google-cloud-storage and TensorStore use.

It has the properties that matter to runs: objects appear whole, each write is a new generation, writes may be
conditional on the generation that they replace, lists come in pages, and nothing can be appended to.
"""

import base64
import hashlib
import json
import re
import sys
from collections import defaultdict
from contextlib import contextmanager
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from threading import Lock, Thread
from urllib.parse import parse_qsl, unquote, urlsplit

BUCKET = "bucket"
OBJECTS_ONLY = "objects-only"
FORBIDDEN = "forbidden"
"""Buckets: one to read and write; the same with access to objects only; one without access."""

PAGE = 5
"""The most entries in one page of a list."""


@contextmanager
def gcs_server():
  """Yields the bucket's live {name: bytes}, and the environment variables that lead a process to the server."""
  server = _Server(("127.0.0.1", 0), _Handler)
  server.objects, server.uploads = {}, {}
  server.lock, server.numbers = Lock(), count(1)
  server.generations = defaultdict(lambda: next(server.numbers))  # tests may add objects themselves
  Thread(target=server.serve_forever, daemon=True).start()
  url = f"http://127.0.0.1:{server.server_port}"
  try:
    yield (
      server.objects,
      {
        "STORAGE_EMULATOR_HOST": url,  # gcsfs, google-cloud-storage
        "TENSORSTORE_GCS_HTTP_URL": url,
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # would ask for the kind of bucket by gRPC
        "NO_GCE_CHECK": "true",  # no search for credentials in the network
        "GCE_METADATA_ROOT": f"127.0.0.1:{server.server_port}",
      },
    )
  finally:
    server.shutdown()
    server.server_close()


_PATH = re.compile(
  r"(/upload|/download)?/storage/v1/b/([^/]+)"  # a bucket
  r"(?:/o(?:/([^/]+)"  # its objects, one of them
  r"(?:/(rewrite|move)To/(?:b/[^/]+/)?o/(.+))?)?)?"  # to be copied or moved
)


class _Failed(Exception):
  """An HTTP status."""


class _Server(ThreadingHTTPServer):
  def handle_error(self, request, client_address):
    if not isinstance(sys.exception(), ConnectionError):  # the client has left
      super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"
  disable_nagle_algorithm = True

  def log_message(self, *arguments):
    pass

  def _handle(self):
    url = urlsplit(self.path)
    self._query = dict(parse_qsl(url.query))
    self._body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
    found = _PATH.fullmatch(url.path)
    try:
      if not found or found[2] not in (BUCKET, OBJECTS_ONLY, FORBIDDEN):
        raise _Failed(404)
      is_bucket = "/o" not in url.path.removeprefix(f"/storage/v1/b/{found[2]}")
      if found[2] == FORBIDDEN or (found[2] == OBJECTS_ONLY and is_bucket):
        raise _Failed(403)
      with self.server.lock:
        self._answer(found[1], *(part and unquote(part) for part in found.groups()[2:]), is_bucket)
    except _Failed as failed:
      self._reply({"error": {"code": failed.args[0], "message": "so says the server"}}, failed.args[0])

  do_GET = do_POST = do_PUT = do_DELETE = _handle

  def _answer(self, kind, name, how, target, is_bucket):
    objects = self.server.objects
    if is_bucket:
      self._reply({"kind": "storage#bucket", "name": BUCKET, "id": BUCKET})
    elif kind == "/upload":
      self._upload()
    elif name is None:
      self._reply(self._list())
    elif name not in objects:
      raise _Failed(404)
    elif how:
      self._write(target, objects[name])
      if how == "move":
        del objects[name]
      resource = self._resource(target)
      self._reply(resource if how == "move" else {"done": True, "resource": resource})
    elif self.command == "DELETE":
      self._check_generation(name)
      del objects[name]
      self._reply(b"", 204)
    elif self._query.get("alt") == "media":
      if self._query.get("ifGenerationNotMatch") == str(self.server.generations[name]):
        raise _Failed(304)
      self._media(name)
    else:
      self._reply(self._resource(name))

  def _list(self):
    """Lists the names under the prefix, cut off after the next delimiter."""
    prefix, delimiter = self._query.get("prefix", ""), self._query.get("delimiter")
    entries = {}
    first, end = self._query.get("startOffset", ""), self._query.get("endOffset", chr(0x10FFFF))
    for name in sorted(self.server.objects):
      if name.startswith(prefix) and first <= name < end:
        rest, cut, _ = name[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
        entries[prefix + rest + cut if cut else name] = bool(cut)
    after = [entry for entry in entries if entry > self._query.get("pageToken", "")]
    page = after[:PAGE]
    answer = {
      "kind": "storage#objects",
      "items": [self._resource(entry) for entry in page if not entries[entry]],
      "prefixes": [entry for entry in page if entries[entry]],
    }
    return answer | ({"nextPageToken": page[-1]} if len(after) > PAGE else {})

  def _upload(self):
    kind = self._query["uploadType"]
    if kind == "multipart":
      header = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
      resource, media = message_from_bytes(header + self._body).get_payload()
      name, data = json.loads(resource.get_payload())["name"], media.get_payload(decode=True)
    elif kind == "media":
      name, data = self._query["name"], self._body
    elif self.command == "POST" and "upload_id" not in self._query:
      number = str(next(self.server.numbers))
      self.server.uploads[number] = (json.loads(self._body)["name"], b"")
      self._reply({}, 200, {"Location": f"http://{self.headers['Host']}{self.path}&upload_id={number}"})
      return
    else:
      number = self._query["upload_id"]
      name, data = self.server.uploads[number]
      data += self._body
      self.server.uploads[number] = (name, data)
      if not self.headers["Content-Range"].endswith(f"/{len(data)}"):
        self._reply(b"", 308, {"Range": f"bytes=0-{len(data) - 1}"})
        return
    self._check_generation(name)
    self._write(name, data)
    self._reply(self._resource(name))

  def _check_generation(self, name):
    expected = self._query.get("ifGenerationMatch")
    if expected is not None and int(expected) != (self.server.generations[name] if name in self.server.objects else 0):
      raise _Failed(412)

  def _write(self, name, data):
    self.server.objects[name] = data
    self.server.generations[name] = next(self.server.numbers)

  def _resource(self, name):
    generation, size = str(self.server.generations[name]), str(len(self.server.objects[name]))
    media = f"http://{self.headers['Host']}/download/storage/v1/b/{BUCKET}/o/{name}?alt=media"
    checksum = base64.b64encode(hashlib.md5(self.server.objects[name]).digest()).decode()
    return {
      "name": name,
      "bucket": BUCKET,
      "generation": generation,
      "size": size,
      "mediaLink": media,
      "md5Hash": checksum,
    }

  def _media(self, name):
    data, headers = self.server.objects[name], {"x-goog-generation": str(self.server.generations[name])}
    asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
    if not asked:
      self._reply(data, 200, headers)
      return
    start, stop = int(asked[1]), min(int(asked[2] or len(data)) + 1, len(data))
    if start >= len(data):
      raise _Failed(416)
    self._reply(data[start:stop], 206, headers | {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"})

  def _reply(self, body, status=200, headers=()):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    if status == 304:
      data = b""
    self.send_response(status)
    self.send_header("Content-Length", str(len(data)))
    self.send_header("Content-Type", "application/json" if isinstance(body, dict) else "application/octet-stream")
    for name, value in dict(headers).items():
      self.send_header(name, value)
    self.end_headers()
    self.wfile.write(data)
