"""A local Hugging Face Hub: the part of its HTTP API by which huggingface_hub creates, commits and fetches.

All files are in the commit itself: the large ones' own store is huggingface_hub's business.
"""

import base64
import hashlib
import json
import re
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_test"


@contextmanager
def hub_server(home):
  """Yields the live {name: Repository}, and the environment variables that lead a process to the server."""
  server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
  server.repositories = {}
  Thread(target=server.serve_forever, daemon=True).start()
  url = f"http://127.0.0.1:{server.server_port}"
  try:
    yield server.repositories, {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
  finally:
    server.shutdown()
    server.server_close()


class Repository:
  def __init__(self, private):
    self.private = private
    self.commits = {}  # revision -> {file name: content}

  @property
  def newest(self):
    return [*self.commits, ""][len(self.commits) - 1]

  def files(self, revision):
    if revision not in self.commits:
      raise _Failed(404, "RevisionNotFound")
    return self.commits[revision]

  def commit(self, files):
    revision = hashlib.sha1(str(len(self.commits)).encode()).hexdigest()
    self.commits[revision] = self.commits.get(self.newest, {}) | files


class _Failed(Exception):
  """An HTTP status, the Hub's own code for it, and what is sent besides."""


class _Handler(BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"
  disable_nagle_algorithm = True

  def log_message(self, *arguments):
    pass

  def do_POST(self):
    length = self.headers["Content-Length"]
    body = self.rfile.read(int(length)) if length else b"".join(iter(self._chunk, b""))
    self._reply(lambda path: self._posted(path, body))

  def do_GET(self):
    self._reply(self._asked)

  do_HEAD = do_GET

  def _chunk(self):
    chunk = self.rfile.read(int(self.rfile.readline(), 16))
    self.rfile.readline()
    return chunk

  def _reply(self, answer):
    headers = {}
    try:
      status, found = 200, answer(unquote(urlsplit(self.path).path))
    except _Failed as failed:
      status, headers["X-Error-Code"], *found = failed.args
      found = {"error": "refused", **dict(found)}
    if isinstance(found, bytes):
      # As real ones: of a revision, and with a tag that changes with the content.
      headers |= {"X-Repo-Commit": self.path.split("/")[4], "ETag": f'"{hashlib.sha1(found).hexdigest()}"'}
    else:
      found = json.dumps(found).encode()
    self.send_response(status)
    for name, value in (headers | {"Content-Length": str(len(found))}).items():
      self.send_header(name, value)
    self.end_headers()
    if self.command != "HEAD":
      self.wfile.write(found)

  def _is_owner(self):
    return self.headers["Authorization"] == f"Bearer {TOKEN}"

  def _repository(self, name):
    repository = self.server.repositories.get(name)
    if repository is None or (repository.private and not self._is_owner()):
      raise _Failed(404, "RepoNotFound")
    return repository

  def _posted(self, path, body):
    if path == "/api/validate-yaml":
      return {"errors": [], "warnings": []}
    if not self._is_owner():
      raise _Failed(401, "")
    if path == "/api/repos/create":
      asked = json.loads(body)
      name = f"{asked['organization']}/{asked['name']}"
      page = f"http://{self.headers['Host']}/{name}"
      if name in self.server.repositories:
        raise _Failed(409, "", ("url", page))
      self.server.repositories[name] = Repository(asked.get("visibility") == "private")
      return {"url": page}
    name, action = re.fullmatch("/api/models/([^/]+/[^/]+)/(preupload|commit)/main", path).groups()
    repository = self._repository(name)
    if action == "preupload":
      files = json.loads(body)["files"]
      return {"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]}
    lines = [json.loads(line) for line in body.splitlines()]
    added = [line["value"] for line in lines if line["key"] == "file"]
    repository.commit({file["path"]: base64.b64decode(file["content"]) for file in added})
    return {"commitUrl": f"http://{self.headers['Host']}/{name}/commit/x", "commitOid": repository.newest}

  def _asked(self, path):
    if found := re.fullmatch("/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
      repository = self._repository(found[1])
      revision = repository.newest if found[2] in (None, "main") else found[2]
      return {"id": found[1], "sha": revision, "private": repository.private}
    if found := re.fullmatch("/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
      files = self._repository(found[1]).files(found[2])
      return [
        {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        for name, content in files.items()
      ]
    name, revision, file = re.fullmatch("/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path).groups()
    return self._repository(name).files(revision)[file]
