"""Serves a page of Gradio's, and nothing else that Gradio would: no files, no proxy, nothing that others ask for."""

import ipaddress
import json
import signal
import socket
import threading
from contextlib import suppress

import uvicorn
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from r3gan_jax.exploring.explorer import LARGEST_BYTES

_PATHS = ("/", "/config", "/favicon.ico", "/manifest.json", "/theme.css")
_BELOW = (
  "/assets/",
  "/static/",
  "/svelte/",
  *(f"/gradio_api/{name}" for name in ("heartbeat/", "queue/", "run/", "startup-events")),
)
"""The paths that the page asks for."""
_LARGEST_BODY = 4 * LARGEST_BYTES // 3 + 100_000
"""The largest request, in bytes: an upload in base64, and the rest of a state."""
_POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'"
"""So the browser, too, sees to it that the page asks no other host for anything, and is in no other page's frame."""
_CLOSING_SECONDS = 1


def serve(application: ASGIApp, listener: socket.socket, host: str) -> None:
  """Serves `application` at a socket that listens at `host` until SIGINT or SIGTERM; then it may still be computing."""
  guarded = Guard(application, {"localhost", socket.gethostname().lower(), host.lower()})
  server = uvicorn.Server(uvicorn.Config(guarded, log_config=None, access_log=False, ws="none"))
  # In a thread: in the main one, it would wait until all pages are closed and all is computed.
  thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
  signal.signal(signal.SIGTERM, signal.default_int_handler)
  thread.start()
  with suppress(KeyboardInterrupt):
    thread.join()
  server.should_exit = True
  thread.join(_CLOSING_SECONDS)


class Guard:
  """Refuses all requests but those that the page itself makes.

  A page of another site can have a browser send requests here (cross-site request forgery), and can name this machine
  by a host name of its own (DNS rebinding): the headers Origin and Host, which it cannot choose, tell.

  Args:
    names: of this machine; it may also be called by an IP address, which needs no DNS.
  """

  def __init__(self, application: ASGIApp, names: set[str]):
    self._application, self._names = application, names

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
      await self._application(scope, receive, send)
      return

    async def send_with_policy(message: Message) -> None:
      if message["type"] == "http.response.start":
        MutableHeaders(scope=message)["Content-Security-Policy"] = _POLICY
      await send(message)

    refused = self._refused(scope["path"], Headers(scope=scope))
    if not refused and scope["method"] not in ("GET", "HEAD"):
      body = await _body(receive)
      refused = _refused_body(body)
      receive = _receiving(body, receive)
    await (refused or self._application)(scope, receive, send_with_policy)

  def _refused(self, path: str, headers: Headers) -> PlainTextResponse | None:
    host, origin = headers.get("host", ""), headers.get("origin")
    if not self._is_here(host):
      return PlainTextResponse("the page has another address", 403)
    if origin is not None and origin.partition("://")[2] != host:
      return PlainTextResponse("the request is from another page", 403)
    if not (path in _PATHS or path.startswith(_BELOW)):
      return PlainTextResponse("there is nothing here", 404)
    return None

  def _is_here(self, host: str) -> bool:
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    if name.lower() in self._names:
      return True
    try:
      ipaddress.ip_address(name.strip("[]"))
    except ValueError:
      return False
    return True


async def _body(receive: Receive) -> bytes:
  """Returns the body of a request, or the first part of it that is longer than `_LARGEST_BODY`."""
  body, more = b"", True
  while more and len(body) <= _LARGEST_BODY:
    message = await receive()
    body += message.get("body", b"")
    more = message.get("more_body", False)
  return body


def _receiving(body: bytes, receive: Receive) -> Receive:
  """Returns what gives `body`, which has been received before, and then goes on."""
  before: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

  async def received() -> Message:
    return before.pop() if before else await receive()

  return received


def _refused_body(body: bytes) -> PlainTextResponse | None:
  """Refuses a body that is too large, or has more than the values of widgets.

  These are numbers, texts, and lists of them. To Gradio, objects can mean files to read and addresses to load, whatever
  the widget.
  """
  if len(body) > _LARGEST_BODY:
    return PlainTextResponse("the request is too large", 413)
  try:
    values = json.loads(body)["data"]
    parts = [part for value in values for part in (value if isinstance(value, list) else [value])]
    plain = isinstance(values, list) and not any(isinstance(part, (dict, list)) for part in parts)
  except (ValueError, RecursionError, KeyError, TypeError):
    plain = False
  return None if plain else PlainTextResponse("the request is not one of the page", 400)
