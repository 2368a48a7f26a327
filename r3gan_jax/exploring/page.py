"""The page of cli.explore, by Gradio: a widget for each part of a state, the image, and its downloads.

A page in a browser holds its own state, in its widgets: two of them do not know of each other. Images, downloads and
uploads are data in the page itself, which the server neither writes to files nor reads from them: Gradio's own widgets
for uploads tell it the path of a file, and whoever asks by hand could name any.
"""

import base64
import html
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import fastapi
import gradio as gr

from r3gan_jax.errors import UserError
from r3gan_jax.exploring.explorer import LARGEST_BYTES, SEEDS, STRONGEST, Explorer, State
from r3gan_jax.sampling import beside_its_channels, encoded_png, over_checkerboard

_SMALL = 256
"""Images of fewer pixels on a side are enlarged without smoothing."""
_WAITING = 8
"""How many uploads may wait to be inverted, one at a time."""
_CSS = """
#shown {position: sticky; top: 0; z-index: 100; align-self: flex-start; background: var(--body-background-fill)}
#picture img {width: 100%; max-height: min(512px, 45vh); object-fit: contain; margin: 0}
#picture img.small {image-rendering: pixelated}
#message {color: #c00; font-weight: 600}
#upload input {width: 100%}
.gradio-container {overflow: clip !important}
"""
_UPLOAD = """
<label>Start from an image of yours: PNG, JPEG or WebP <input type="file" accept="image/png,image/jpeg,image/webp">
</label>
"""
# One byte more than may be, so that the server says what is wrong.
_READ_UPLOAD = f"""
element.addEventListener('change', (event) => {{
  const [file] = event.target.files
  if (!file) return
  const reader = new FileReader()
  reader.onload = () => {{
    props.value = reader.result
    trigger('upload')
  }}
  reader.readAsDataURL(file.slice(0, {LARGEST_BYTES + 1}))
  event.target.value = ''
}})
"""
# Nothing has been drawn if the first state is refused.
_KEEP_LINK = "(state) => {if (state) history.replaceState(null, '', '?state=' + encodeURIComponent(state)); return []}"
_READ_LINK = "(state, ...others) => [new URLSearchParams(location.search).get('state') ?? state, ...others]"


def application(explorer: Explorer) -> fastapi.FastAPI:
  """Returns the page of `explorer`, to be served."""
  with gr.Blocks(title="r3gan explore", analytics_enabled=False) as page:
    _Widgets(explorer, page)
  page.queue(max_size=_WAITING, default_concurrency_limit=1, api_open=False)
  return gr.mount_gradio_app(
    fastapi.FastAPI(openapi_url=None),
    page,
    path="/",
    footer_links=[],
    run_history=False,
    ssr_mode=False,
    enable_monitoring=False,
    pwa=False,
    mcp_server=False,
    css=_CSS,
  )


class _Widgets:
  """The widgets of a page, and what they do.

  `_parts` are those of a state, by the names of its attributes; `_directions` those of `State.strengths`.
  """

  def __init__(self, explorer: Explorer, page: gr.Blocks):
    self._explorer = explorer
    self._parts: dict[str, Any] = {}
    with gr.Row():
      with gr.Column(elem_id="shown", min_width=300):
        shows = [gr.HTML(elem_id=name) for name in ("picture", "downloads", "message")]
      with gr.Column(min_width=300):
        another = self._make_parts()
        self._directions = {
          name: gr.Slider(-STRONGEST, STRONGEST, 0, step=0.1, label=name, elem_id=f"direction_{index}")
          for index, name in enumerate(explorer.directions)
        }
        straight = gr.Button("All directions to 0", elem_id="straight", size="sm", visible=bool(self._directions))
        upload = gr.HTML("", html_template=_UPLOAD, js_on_load=_READ_UPLOAD, elem_id="upload")
        leave = gr.Button("Start from the seed again", elem_id="leave", size="sm")
        text = gr.Textbox("{}", label="This state as JSON", lines=2, elem_id="state")
        load = gr.Button("Draw this state", elem_id="load", size="sm")
        drawn = gr.Textbox(visible=False)  # the text may be one that was refused
    self._outputs = [*shows, text, drawn, leave]
    self._inputs = [*self._parts.values(), *self._directions.values()]

    def keep_link(event: Any) -> None:
      event.then(None, drawn, None, js=_KEEP_LINK, queue=False)

    sliding = [widget.input for name, widget in self._parts.items() if name != "image"]
    sliding += [slider.input for slider in self._directions.values()]
    at_once: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    keep_link(gr.on(sliding, self._slide, self._inputs, self._outputs, trigger_mode="always_last", **at_once))

    def on(trigger: Callable[..., Any], change: Callable[..., State], *first: Any, **how: Any) -> None:
      inputs, outputs = [*first, *self._inputs], [*self._inputs, *self._outputs]
      keep_link(trigger(self._changing(change, len(first)), inputs, outputs, **how))

    on(another.click, lambda state: replace(state, seed=secrets.randbelow(SEEDS), image=""), **at_once)
    on(straight.click, lambda state: replace(state, strengths={}), **at_once)
    on(leave.click, lambda state: replace(state, image=""), **at_once)
    on(load.click, lambda text, _: State.from_json(text), text, **at_once)
    on(upload.upload, self._from_upload, upload, show_progress_on=shows[:1], api_visibility="private")
    on(page.load, lambda text, _: State.from_json(text), text, js=_READ_LINK, **at_once)

  def _make_parts(self) -> gr.Button:
    """Makes the widgets of `_parts`, of what the run has; returns the button for another seed."""
    start, explorer, parts = State(), self._explorer, self._parts

    def seed(name: str, label: str) -> None:
      parts[name] = gr.Number(getattr(start, name), label=label, elem_id=name, min_width=120)

    def share(name: str, label: str) -> None:
      parts[name] = gr.Slider(0, 1, getattr(start, name), step=0.01, label=label, elem_id=name)

    with gr.Row():
      seed("seed", "Seed")
      seed("other_seed", "Other seed")
      another = gr.Button("Another seed", elem_id="another", size="sm", min_width=120)
    share("mix", "On the way from the seed to the other")
    if explorer.num_classes:
      parts["label"] = gr.Slider(0, explorer.num_classes - 1, start.label, step=1, label="Class", elem_id="label")
    share("truncation", "Truncation: 1 is as trained, less is less varied")
    if explorer.layers:
      seed("style_seed", "Seed of other styles")
      layers = [(str(layer), layer) for layer in range(explorer.layers)]
      parts["style_layers"] = gr.CheckboxGroup(layers, label="Layers that take them, coarse first", elem_id="layers")
    parts["image"] = gr.Textbox(start.image, visible=False)
    return another

  def _state(self, values: Sequence[Any]) -> State:
    """Returns the state that the values of `_inputs` say."""
    count = len(self._parts)
    strengths = dict(zip(self._directions, values[count:], strict=True))
    return State(**dict(zip(self._parts, values[:count], strict=True)), strengths=strengths)

  def _values(self, state: State) -> list[Any]:
    """Returns the values of `_inputs` that say a state."""
    parts = [getattr(state, name) for name in self._parts]
    strengths = [state.strengths.get(name, 0.0) for name in self._directions]
    return [list(part) if isinstance(part, tuple) else part for part in parts] + strengths

  def _slide(self, *values: Any) -> list[Any]:
    """Returns the values of `_outputs` for those of `_inputs`."""
    try:
      return self._shown(self._state(values))
    except UserError as error:
      return self._refused(error)

  def _changing(self, change: Callable[..., State], extra: int) -> Callable[..., list[Any]]:
    """Returns (extra values, values of `_inputs`) -> those of `_inputs` and `_outputs` after a change of the state.

    Args:
      change: (extra values, state) -> state.
      extra: how many extra values there are.
    """

    def changed(*values: Any) -> list[Any]:
      try:
        state = change(*values[:extra], self._state(values[extra:]))
        return self._values(state) + self._shown(state)
      except UserError as error:
        return [gr.skip()] * len(self._inputs) + self._refused(error)

    return changed

  def _from_upload(self, address: Any, state: State) -> State:
    """`address` should be a data address of base64, which a browser makes of a file."""
    try:
      data = base64.b64decode(str(address).partition(";base64,")[2], validate=True)
    except ValueError:
      data = b""
    return replace(state, image=self._explorer.invert(data, state.label), mix=0.0)

  def _shown(self, state: State) -> list[Any]:
    """Draws a state; returns the values of `_outputs`."""
    before = time.perf_counter()
    image = self._explorer.draw(state)
    milliseconds = 1000 * (time.perf_counter() - before)
    shown = over_checkerboard(image[None])
    if self._explorer.trained.config.run.grid_channels:
      shown = beside_its_channels(shown)
    small = ' class="small"' * (max(image.shape[:2]) < _SMALL)
    picture = f'<img alt="what the state draws"{small} src="{_as_data("image/png", encoded_png(shown[0]))}">'
    files = (
      ("image.png", "image/png", encoded_png(image)),
      ("state.json", "application/json", state.to_json().encode()),
    )
    links = [f'<a download="{name}" href="{_as_data(kind, data)}">{name}</a>' for name, kind, data in files]
    links.append(f'<a href="{state.to_query()}">link</a>')
    height, width = image.shape[:2]
    links.append(f"{width}x{height}, drawn in {milliseconds:.0f} ms")
    downloads = " &middot; ".join(links)
    return [picture, downloads, "", state.to_json(), state.to_json(), gr.update(visible=bool(state.image))]

  def _refused(self, error: UserError) -> list[Any]:
    """Returns the values of `_outputs` that keep all but the message."""
    return [gr.skip(), gr.skip(), html.escape(str(error)), gr.skip(), gr.skip(), gr.skip()]


def _as_data(kind: str, data: bytes) -> str:
  """Returns the address that is the data itself."""
  return f"data:{kind};base64,{base64.b64encode(data).decode()}"
