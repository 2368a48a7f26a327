"""The page: the real command, driven in a real browser, and asked by hand for what it must refuse."""

import base64
import http.client
import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from io import BytesIO
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from helpers import commands, official_pickles, zoo
from PIL import Image

from configs.zoo import stylegan
from r3gan_jax import factory
from r3gan_jax.conversion import write_state, write_workdir
from r3gan_jax.exploring.explorer import LARGEST_BYTES, State
from r3gan_jax.interop.official import read_snapshot

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
in_a_browser = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no Chromium: apt-get install chromium-driver")
QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync")
OFFLINE = ("--disable-background-networking", "--disable-component-update")


class Served:
  """A page that is served: `address`, host and port."""

  def __init__(self, environment, workdir):
    self.process = commands.Command(environment, "explore", f"--workdir={workdir}", "--port=0")

  @property
  def address(self):
    while not (found := re.search(r"http://([\d.:]+)", self.process.printed())):
      assert self.process.poll() is None, self.process.finish().stderr
      time.sleep(0.05)
    return found[1]

  def ask(self, method, path, body=None, **headers):
    """Returns the status and the text that a request is answered by; in headers, _ is for -."""
    connection = http.client.HTTPConnection(self.address, timeout=60)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    answer = response.status, response.read().decode()
    connection.close()
    return answer


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
  """`classes` is R3GAN on 8x8 in 5 classes, `styles` a StyleGAN on 8x8."""
  directory = tmp_path_factory.mktemp("explore")
  write_workdir(read_snapshot(official_pickles.path("cond_8px")), directory / "classes")
  config = stylegan.get_config("smoke")
  config.data.resolution, config.gan.widths = 8, (8, 8)
  write_state(config.to_dict(), zoo.first_state(factory.build_algorithm(config)), directory / "styles")
  return directory


@pytest.fixture(scope="module")
def served(environment, directory):
  """The pages of the runs; each ends by Ctrl-C, with nothing left, even if a browser still shows it."""
  pages = {name: Served(environment, directory / name) for name in ("classes", "styles")}
  yield pages
  shown = [http.client.HTTPConnection(page.address) for page in pages.values()]
  for connection, page in zip(shown, pages.values(), strict=True):
    connection.request("GET", "/gradio_api/heartbeat/tab")
    assert connection.getresponse().status == 200
    page.process.send_signal(signal.SIGINT)
  for connection, page in zip(shown, pages.values(), strict=True):
    done = page.process.finish()
    connection.close()
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "ended"), done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert not list(Path(tempfile.gettempdir()).glob(f"r3gan_explore_{page.process.pid}_*"))


class Browser:
  """Chromium with a page in it."""

  def __init__(self, address, profile):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*QUIET, *OFFLINE, f"--user-data-dir={profile}", "--window-size=1400,1000"):
      options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    self.driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    self.address = address
    self.open(f"http://{address}/")

  def open(self, link):
    self.driver.get(link)
    self.wait(lambda: self.find("#picture img") and self.state is not None)

  def find(self, selector):
    """Returns the element, or None."""
    return next(iter(self.driver.find_elements("css selector", selector)), None)

  def wait(self, condition):
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.support.wait import WebDriverWait

    return WebDriverWait(self.driver, 120, 0.05, [StaleElementReferenceException]).until(lambda _: condition())

  @property
  def state(self):
    """The state that the downloads say."""
    return json.loads(self.download("state.json"))

  def download(self, name):
    href = self.wait(lambda: self.find(f"#downloads a[download='{name}']")).get_attribute("href")
    return base64.b64decode(href.partition("base64,")[2])

  @property
  def image(self):
    return np.asarray(Image.open(BytesIO(self.download("image.png"))))

  def becomes(self, **parts):
    """Waits until the state, and the address, have these parts, or lack those that are None."""

    def has():
      link = State.from_json(self.driver.execute_script("return new URLSearchParams(location.search).get('state')"))
      state = self.state
      return link == State(**state) and all(state.get(name) == value for name, value in parts.items())

    self.wait(has)

  def press(self, widget, *keys):
    self.find(f"#{widget} input").send_keys(*keys)

  def slide(self, widget, *keys):
    self.find(f"#{widget} input[type=range]").send_keys(*keys)

  def click(self, button):
    self.find(f"#{button}").click()

  def paste(self, text):
    from selenium.webdriver.common.keys import Keys

    self.find("#state textarea").send_keys(Keys.CONTROL, "a")
    self.find("#state textarea").send_keys(text)
    self.click("load")

  def says(self, message):
    """Waits for a message, or for none."""
    self.wait(lambda: message in self.find("#message").text if message else not self.find("#message").text)

  def upload(self, path):
    self.driver.find_element("css selector", "input[type=file]").send_keys(str(path))

  def end(self):
    """Ends it; nothing was asked of another host, and nothing went wrong in the page."""
    sent = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
    urls = [event["params"]["request"]["url"] for event in sent if event["method"] == "Network.requestWillBeSent"]
    hosts = {urlsplit(url).netloc for url in urls if url.startswith(("http", "ws"))}
    errors = [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]
    self.driver.quit()
    assert hosts == {self.address}
    assert not [error for error in errors if "favicon" not in error]


@pytest.fixture
def browse(tmp_path):
  opened = []

  def browse(page):
    opened.append(Browser(page.address, tmp_path / "profile"))
    return opened[-1]

  yield browse
  for browser in opened:
    browser.driver.quit()


@in_a_browser
def test_every_control_of_a_run_with_classes(served, browse, tmp_path):
  from selenium.webdriver.common.keys import Keys

  browser = browse(served["classes"])
  assert not browser.find("#style_seed") and not browser.find("#layers")  # it has no styles
  browser.press("seed", Keys.CONTROL, "a")
  browser.press("seed", "5")
  browser.becomes(seed=5)
  browser.slide("label", Keys.END)
  browser.becomes(label=4)
  browser.press("other_seed", Keys.CONTROL, "a")
  browser.press("other_seed", "7")
  browser.becomes(seed=5, other_seed=7)
  browser.slide("mix", Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
  browser.becomes(mix=0.02)
  browser.slide("truncation", Keys.HOME)
  browser.becomes(truncation=0.0)
  browser.slide("truncation", Keys.END, Keys.ARROW_LEFT)
  browser.becomes(truncation=0.99)
  browser.slide("direction_1", Keys.END)
  browser.becomes(strengths={"closed_form_1": 4.0})

  # The link and the address say it all, for another tab, too, which has a state of its own.
  state, image, here = browser.state, browser.download("image.png"), browser.driver.current_window_handle
  link = browser.find("#downloads a:not([download])").get_attribute("href")
  browser.driver.switch_to.new_window("tab")
  browser.open(link)
  browser.becomes(**state)
  assert browser.download("image.png") == image
  browser.click("straight")
  browser.becomes(seed=5, strengths=None)
  browser.driver.switch_to.window(here)
  browser.slide("mix", Keys.ARROW_RIGHT)
  browser.becomes(**state | {"mix": 0.03})
  browser.driver.refresh()
  browser.becomes(**state | {"mix": 0.03})

  browser.click("another")
  browser.wait(lambda: browser.state["seed"] != 5)
  browser.paste('{"seed": -3}')
  browser.says("seed = -3: give a number from 0 to 4294967295")
  browser.paste('{"seed": 3, "<b>": 1}')
  browser.says("a state has no '<b>'")
  assert "<b>" not in unquote(browser.driver.current_url)
  browser.paste('{"seed": 3, "label": 1}')
  browser.says("")
  browser.becomes(seed=3, label=1, mix=None)

  name = tmp_path / "..%2f..%2fetc%2fpasswd <img src=x onerror=alert(1)>.png"
  Image.fromarray(browser.image).resize((20, 30)).save(name)
  browser.upload(name)
  browser.wait(lambda: browser.state.get("image"))
  browser.becomes(seed=3, label=1)
  browser.slide("direction_0", Keys.HOME)
  browser.becomes(strengths={"closed_form_0": -4.0})
  browser.click("leave")
  browser.becomes(image=None)
  (tmp_path / "text.png").write_text("no image <b>")
  browser.upload(tmp_path / "text.png")
  browser.says("the upload is not an image that can be read: give a PNG, JPEG or WebP")
  (tmp_path / "large.png").write_bytes(bytes(LARGEST_BYTES + 1))
  browser.upload(tmp_path / "large.png")
  browser.says("the upload has 10,000,001 bytes: make it smaller than 10,000,000")
  browser.becomes(seed=3, label=1, image=None)

  browser.driver.set_window_size(500, 1000)
  width = browser.driver.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
  assert width[0] <= width[1]
  browser.end()


@in_a_browser
def test_style_mixing(served, browse):
  from selenium.webdriver.common.keys import Keys

  browser = browse(served["styles"])
  assert not browser.find("#label")  # it has no classes
  before = browser.image
  browser.press("style_seed", Keys.CONTROL, "a")
  browser.press("style_seed", "9")
  browser.becomes(style_seed=9)
  np.testing.assert_array_equal(browser.image, before)
  browser.driver.find_elements("css selector", "#layers input")[1].click()
  browser.becomes(style_layers=[1])
  assert (browser.image != before).any()
  browser.end()


def test_only_the_page_is_served_and_only_to_itself(served):
  page = served["classes"]
  own = {"Host": page.address, "Origin": f"http://{page.address}"}
  assert page.ask("GET", "/", **own)[0] == page.ask("GET", "/theme.css", Host="localhost")[0] == 200
  for path in (
    "/gradio_api/file=/etc/passwd",
    "/gradio_api/file/etc/passwd",
    f"/gradio_api/proxy=http://{page.address}/config",
    "/gradio_api/info",
    "/gradio_api/upload",
    "/gradio_api/vibe-code",
    "/monitoring/summary",
    "/assets/../../../../../../../../etc/passwd",
    "/static/..%2f..%2f..%2f..%2f..%2f..%2f..%2fetc%2fpasswd",
  ):
    status, text = page.ask("GET", path)
    assert status in (403, 404) and "root:" not in text, path
  for headers in (
    {"Host": "evil.example"},
    {"Host": f"127.0.0.1.evil.example:{page.address.partition(':')[2]}"},
    {"Host": ""},
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Host": "localhost", "Origin": f"http://{page.address}"},
  ):
    assert page.ask("GET", "/config", **headers)[0] == 403, headers


def test_requests_by_hand(served):
  """The values of widgets are answered; objects, by which Gradio means files and addresses, are not, anywhere."""
  page = served["classes"]
  config = json.loads(page.ask("GET", "/config")[1])
  values = {part["id"]: part["props"].get("value") for part in config["components"]}
  (upload,) = (part["id"] for part in config["components"] if part["props"].get("elem_id") == "upload")
  (event,) = (event for event in config["dependencies"] if upload in event["inputs"])
  others = [values[part] for part in event["inputs"][1:]]

  def ask(data, session, path="/gradio_api/queue/join"):
    body = json.dumps({"data": data, "fn_index": event["id"], "session_hash": session})
    return page.ask("POST", path, body, Content_Type="application/json")

  for index, text in enumerate(("", "/etc/passwd", "data:image/png;base64,%%%", "file:///etc/passwd", None, 3)):
    assert ask([text, *others], f"text{index}")[0] == 200
    _, answer = page.ask("GET", f"/gradio_api/queue/data?session_hash=text{index}")
    (end,) = (line for line in answer.splitlines() if '"process_completed"' in line)
    assert "is not an image" in end and "root:" not in end
  file = {"path": "/etc/passwd", "url": "http://example.com", "meta": {"_type": "gradio.FileData"}}
  for data in ([file, *others], [[file], *others], ["", *others[:-1], file], file, {"a": file}, [[[file]]], None):
    status, answer = ask(data, "file")
    assert (status, answer) == (400, "the request is not one of the page")
  assert ask(["", *others], "direct", "/gradio_api/run/predict")[0] == 404  # not past the queue
  for body in (b"", b"[" * 10**6, b"\xff", b"{}"):
    assert page.ask("POST", "/gradio_api/queue/join", body)[0] == 400
  assert page.ask("POST", "/gradio_api/queue/join", bytes(2 * LARGEST_BYTES))[0] == 413
  assert page.ask("POST", "/gradio_api/queue/join", iter([bytes(LARGEST_BYTES)] * 2))[0] == 413


def test_what_cannot_be_served(served, directory, refused):
  page = served["classes"]
  message = refused("explore", f"--workdir={directory}/classes", f"--port={page.address.partition(':')[2]}")
  assert "choose another --port, 0 for any that is free" in message
  assert "cannot serve at --host=nowhere.invalid" in refused("explore", "--workdir=x", "--host=nowhere.invalid")
  assert "--port" in refused("explore", "--workdir=x", "--port=70000")
  without = (
    "import runpy, sys; sys.modules['gradio'] = None; runpy.run_module('r3gan_jax.cli.explore', None, '__main__')"
  )
  done = subprocess.run(
    [sys.executable, "-c", without, "--workdir=x"], cwd=commands.ROOT, capture_output=True, text=True
  )
  assert done.returncode == 2 and done.stderr.endswith("gradio: pip install -e '.[explore]'\n")
