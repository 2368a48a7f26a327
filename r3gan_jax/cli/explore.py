"""Shows a trained run as a web page to explore, on this machine: `python -m r3gan_jax.cli.explore --workdir=runs/NAME`.

It prints the address of the page, and ends by Ctrl-C. The page has, as far as the run has them,

    two seeds               and the way from one to the other, as in interpolations of cli.sample
    class, truncation       as of cli.sample
    directions              of cli.edit, as sliders; without any in runs/NAME/directions, those of the closed form
    style mixing            a StyleGAN's layers that take their styles from another seed
    an uploaded image       inverted as by cli.invert --fine_tune, in fewer steps; its edits start there
    downloads               the image as a PNG, and the state of the page as JSON or as a link, which draw it again

It needs `pip install -e '.[explore]'`, and no network: nothing is loaded from elsewhere or sent there. With the default
--host only this machine can open it; from another one, use a tunnel: `ssh -L 7860:127.0.0.1:7860 HOST`.
"""

import importlib.util
import os
import socket
import tempfile

from absl import flags

from r3gan_jax import runs
from r3gan_jax.cli.shared.runner import run
from r3gan_jax.errors import UserError
from r3gan_jax.exploring.explorer import Explorer

_WORKDIR = flags.DEFINE_string("workdir", None, "The work directory of the run.", required=True)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "", "The checkpoint: its images seen, or 'best'; default: the newest.")
_HOST = flags.DEFINE_string("host", "127.0.0.1", "The address to serve at; 0.0.0.0 is for all who can reach it.")
_PORT = flags.DEFINE_integer("port", 7860, "The port to serve at; 0: a free one.", lower_bound=0, upper_bound=65535)


def main() -> None:
  if importlib.util.find_spec("gradio") is None:
    raise UserError("the page needs the package gradio: pip install -e '.[explore]'")
  # Gradio makes folders, although nothing comes into them: they are deleted at the end.
  with _listening() as listener, tempfile.TemporaryDirectory(prefix=f"r3gan_explore_{os.getpid()}_") as directory:
    os.environ["GRADIO_TEMP_DIR"] = directory
    explorer = Explorer(runs.open_run(_WORKDIR.value, _CHECKPOINT.value), _WORKDIR.value)
    from r3gan_jax.exploring import page, page_server  # they import Gradio

    host, port = listener.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    print(f"{explorer.trained.title}: {address} (Ctrl-C ends it)", flush=True)
    page_server.serve(page.application(explorer), listener, _HOST.value)
  print("ended", flush=True)
  os._exit(0)  # an image may still be inverted, which cannot be interrupted


def _listening() -> socket.socket:
  """Returns a socket at --host and --port; raises a UserError if there cannot be one."""
  host, port = _HOST.value, _PORT.value
  try:
    family, *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    return socket.create_server((host, port), family=family)
  except OSError as error:
    cure = "choose another --port, 0 for any that is free, or another --host"
    raise UserError(f"cannot serve at --host={host} --port={port} ({error.strerror}): {cure}") from None


if __name__ == "__main__":
  run(main)
