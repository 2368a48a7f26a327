"""Work directories made by hand, and their reports read as a browser reads them."""

import base64
import json
from html.parser import HTMLParser
from io import BytesIO

from PIL import Image

VOID = {"meta", "img", "input"}


class Page(HTMLParser):
  """Elements as (tag, attributes), all text by the element it is in; fails where elements are not nested."""

  def __init__(self, text):
    super().__init__()
    self.elements, self.text, self.tables, self._open = [], {}, [], []
    self.feed(text)
    self.close()
    assert not self._open

  def handle_starttag(self, tag, attributes):
    self.elements.append((tag, dict(attributes)))
    if tag == "table":
      self.tables.append([])
    if tag == "tr":
      self.tables[-1].append([])
    if tag in ("td", "th"):
      self.tables[-1][-1].append("")
    if tag not in VOID:
      self._open.append(tag)

  def handle_startendtag(self, tag, attributes):
    self.elements.append((tag, dict(attributes)))

  def handle_endtag(self, tag):
    assert self._open.pop() == tag

  def handle_data(self, data):
    if not self._open or not data.strip():
      return
    self.text.setdefault(self._open[-1], []).append(data)
    if self._open[-1] in ("td", "th"):
      self.tables[-1][-1][-1] += data

  def find(self, tag):
    return [attributes for name, attributes in self.elements if name == tag]

  @property
  def facts(self):
    """The list at the top: what -> text."""
    return dict(zip(self.text["dt"], self.text["dd"], strict=True))

  @property
  def state(self):
    return self.text["b"][0]

  def table(self, column):
    """Returns the rows of the table that has this column, as dicts; [] without one."""
    for head, *rows in self.tables:
      if column in head:
        return [dict(zip(head, row, strict=True)) for row in rows]
    return []


def write_run(directory, config, lines=(), grids=()):
  """A work directory; `lines`: dicts, or bytes as they are; `grids`: (images seen, uint8 array)."""
  (directory / "samples").mkdir(parents=True)
  (directory / "config.json").write_text(json.dumps(config))
  for images_seen, grid in grids:
    Image.fromarray(grid).save(directory / "samples" / f"fakes_{images_seen:010}.png")
  if lines:
    encoded = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    (directory / "metrics.jsonl").write_bytes(b"\n".join(encoded) + b"\n")


def read_page(workdir):
  """Returns the report, which must load nothing from elsewhere."""
  return parse((workdir / "report.html").read_text("utf-8"))


def parse(text):
  page = Page(text)
  for tag, attributes in page.elements:
    for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
      value = attributes.get(name, "#")
      assert value.startswith(("#", "data:image/")), f"<{tag}> loads {value}"
  assert "@import" not in str(page.text["style"]) and "url(" not in str(page.text["style"])
  return page


def embedded(image):
  return Image.open(BytesIO(base64.b64decode(image["src"].partition(",")[2])))
