"""States, and what is drawn from them, on recorded networks of R3GAN and on small ones of the GANs before it."""

import struct
import zlib
from io import BytesIO

import jax
import numpy as np
import pytest
from helpers import official_pickles, zoo
from PIL import Image

from configs import roadmap
from configs.zoo import gan as zoo_gan
from r3gan_jax import factory, library, runs
from r3gan_jax.conversion import write_state, write_workdir
from r3gan_jax.editing import Direction, Editor, write_direction
from r3gan_jax.errors import UserError
from r3gan_jax.exploring import explorer as exploring
from r3gan_jax.exploring.explorer import Explorer, State
from r3gan_jax.interop.official import read_snapshot
from r3gan_jax.sampling import slerp
from r3gan_jax.storage import as_path

FULL = State(3, 4, 0.25, 1, 0.5, {"closed_form_0": -1.5}, 5, (0, 2), "ab")
NO_STATES = [
  ("", "not the JSON of a state"),
  ("[3]", "not the JSON of a state"),
  ("{" * 5000, "not the JSON of a state"),
  ('{"seed": 1' + "0" * 5000 + "}", "not the JSON of a state"),
  ('{"image": "' + "a" * 20_000 + '"}', "not the JSON of a state"),
  ('{"sede": 3}', "a state has no 'sede': it has seed, other_seed"),
  ('{"seed": -1}', "seed = -1: give a number from 0 to 4294967295"),
  ('{"seed": 4294967296}', "seed = 4.29497e+09: give"),
  ('{"seed": 1' + "0" * 400 + "}", "seed: give a number"),
  ('{"seed": 1.5}', "seed = 1.5: give a whole number"),
  ('{"seed": true}', "seed: give a number"),
  ('{"seed": null}', "seed: give a number"),
  ('{"mix": NaN}', "mix: give a number from 0 to 1"),
  ('{"truncation": Infinity}', "truncation: give a number from 0 to 1"),
  ('{"label": "3"}', "label: give a number"),
  ('{"strengths": [1]}', "strengths: give numbers by the names of directions"),
  ('{"strengths": {"a": 4.5}}', "a = 4.5: give a number from -4 to 4"),
  ('{"style_layers": "01"}', "style_layers: give a list"),
  ('{"style_layers": [-1]}', "style_layers = -1: give a number"),
  ('{"image": ["x"]}', "image: give the identifier"),
]
NOT_THERE = [
  (State(label=5), "label = 5: choose from 0 to 4"),
  (State(strengths={"closed_form_9": 1.0}), "there is no direction 'closed_form_9': choose from closed_form_0, "),
  (State(style_layers=(0,)), "there is no layer 0: only a StyleGAN has some"),
  (State(image="../../etc/passwd"), "the uploaded image is not kept any more"),
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
  directory = tmp_path_factory.mktemp("exploring")
  write_workdir(read_snapshot(official_pickles.path("cond_8px")), directory / "cond_8px")  # 5 classes, 8x8
  stylegan2 = roadmap.get_config("a_smoke")
  stylegan2.data.resolution, stylegan2.gan.widths = 8, (8, 8)
  for name, config in (("gan", zoo_gan.get_config("smoke")), ("stylegan2", stylegan2)):
    write_state(config.to_dict(), zoo.first_state(factory.build_algorithm(config)), directory / name)
  return directory


@pytest.fixture(scope="module")
def explorer(directory):
  return Explorer(runs.open_run(directory / "cond_8px"), directory / "cond_8px")


def noise_of(algorithm, *seeds):
  return np.asarray(algorithm.noise(jax.vmap(jax.random.key)(np.array(seeds, np.uint32))))


def as_file(image, kind):
  buffer = BytesIO()
  Image.fromarray(image).save(buffer, kind)
  return buffer.getvalue()


def assert_drawn(image, expected):
  """`expected` is float [1, H, W, C]; a level of difference is rounding."""
  assert np.abs(image - (np.asarray(expected)[0].clip(-1, 1) * 127.5 + 127.5)).max() < 1.01


def test_json_and_links_say_all_of_a_state():
  assert State.from_json(FULL.to_json()) == FULL and State.from_json("{}") == State()
  assert State().to_json() == "{}" and State(seed=3).to_json() == '{"seed": 3}'
  assert State(seed=3, image="&?#").to_query() == "?state=%7B%22seed%22%3A%203%2C%20%22image%22%3A%20%22%26%3F%23%22%7D"
  same = State(seed=3.0, strengths={"a": 0.0}, style_layers=[2, 1, 2.0])
  assert same == State(seed=3, style_layers=(1, 2)) and same.to_json() == '{"seed": 3, "style_layers": [1, 2]}'


@pytest.mark.parametrize("text, message", NO_STATES, ids=range(len(NO_STATES)))
def test_what_is_no_state(text, message):
  with pytest.raises(UserError) as error:
    State.from_json(text)
  assert message in str(error.value) and len(str(error.value)) < 250


def test_what_a_run_does_not_have(explorer):
  for state, message in NOT_THERE:
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
      explorer.draw(state)


def test_a_seed_draws_its_sample(directory, explorer):
  samples = library.load(directory / "cond_8px").sample(seeds=[7], label=3, truncation=0.6)
  assert np.abs(explorer.draw(State(seed=7, label=3, truncation=0.6)).astype(int) - samples[0]).max() <= 1


def test_an_image_by_hand(explorer):
  """On the way between two seeds, moved along two directions of the closed form, and truncated, in this order."""
  state = State(3, 4, 0.25, 1, 0.5, {"closed_form_0": -1.5, "closed_form_2": 1.0})
  run = explorer.trained
  z, other = noise_of(run.algorithm, 3, 4)
  z = slerp(z, other, np.array([0.25]))
  for name, strength in state.strengths.items():
    z = z + np.float32(strength) * explorer.directions[name].vector
  generate = jax.jit(run.algorithm.generate)
  assert_drawn(explorer.draw(state), generate(run.params, run.carry, np.float32(0.5) * z, np.array([1], np.int32)))
  assert len({explorer.draw(at).tobytes() for at in (state, State(), State(mix=1.0), State(seed=1))}) == 3


def test_nothing_is_compiled_when_sliders_move(explorer):
  explorer.draw(State())
  compiled = []

  def note(event, *_, **__):
    compiled.append(event)

  jax.monitoring.register_event_duration_secs_listener(note)
  for state in (State(9, 8, 0.3, 2, 0.7, {"closed_form_1": 2.0}), State(truncation=0.0), State(label=4, mix=1.0)):
    explorer.draw(state)
  jax.monitoring.unregister_event_duration_listener(note)
  assert not [event for event in compiled if "compile" in event or "trace" in event]


def test_layers_take_their_styles_from_another_seed(directory):
  """StyleGAN2's w by hand: truncated, then that of the other seed in two layers, then moved."""
  explorer = Explorer(runs.open_run(directory / "stylegan2"), directory / "stylegan2")
  run, psi = explorer.trained, np.float32(0.7)
  carry = {**run.carry, "w": np.linspace(-1, 1, len(run.carry["w"]), dtype=np.float32)}  # it is 0 at the start
  explorer._networks = explorer._networks[0], carry
  styles = jax.jit(run.algorithm.styles)(run.params, noise_of(run.algorithm, 6, 5))
  own, others = psi * np.asarray(styles) + (1 - psi) * carry["w"]
  layers = explorer.layers
  assert layers == 2 * len(run.config.gan.widths)
  w = np.where(np.isin(np.arange(layers), (1, 2))[:, None], others, own)
  w = w + np.float32(-2) * explorer.directions["closed_form_0"].vector.reshape(layers, -1)
  draw = jax.jit(run.algorithm.synthesis.apply)
  state = State(6, truncation=0.7, strengths={"closed_form_0": -2.0}, style_seed=5, style_layers=(1, 2))
  assert_drawn(explorer.draw(state), draw({"params": run.params["generator"]["synthesis"]}, w[None].astype(np.float32)))
  with pytest.raises(UserError, match=f"there is no layer {layers}: choose from 0 to {layers - 1}"):
    explorer.draw(State(style_layers=(layers,)))


def test_directions_of_the_run_go_before_those_of_the_closed_form(directory, tmp_path):
  run = runs.open_run(directory / "cond_8px")
  vector = np.arange(Editor(run.algorithm, run.params, run.carry).noise_dim, dtype=np.float32)
  write_direction(as_path(tmp_path) / "directions" / "mine.npz", Direction("noise", vector, {}))
  explorer = Explorer(run, tmp_path)
  assert list(explorer.directions) == ["mine"]
  write_direction(as_path(tmp_path) / "directions" / "short.npz", Direction("noise", vector[1:], {}))
  with pytest.raises(UserError, match=r"short.npz is a direction of .* numbers in noise"):
    Explorer(run, tmp_path)


def test_a_gan_without_features(directory):
  explorer = Explorer(runs.open_run(directory / "gan"), directory / "gan")
  assert (explorer.directions, explorer.layers, explorer.num_classes) == ({}, 0, 0)
  run, (z,) = explorer.trained, noise_of(explorer.trained.algorithm, 3)
  assert_drawn(explorer.draw(State(3)), jax.jit(run.algorithm.generate)(run.params, run.carry, z[None], None))
  with pytest.raises(UserError, match="label = 1: this run has no classes"):
    explorer.draw(State(label=1))


@pytest.fixture
def type_promotion():
  """Optax's Adam needs it."""
  with jax.numpy_dtype_promotion("standard"):
    yield


def test_edits_start_from_an_upload(explorer, type_promotion):
  """The reconstruction is near, for which noise alone is not enough; the way to the other seed ends there."""
  target = explorer.draw(State(seed=11, label=2, strengths={"closed_form_0": 3.0}))
  uploaded = as_file(target, "PNG")
  identifier = explorer.invert(uploaded, 2)
  there = State(label=2, image=identifier)
  errors = [np.abs(explorer.draw(state).astype(int) - target).mean() for state in (there, State(label=2))]
  assert errors[0] < errors[1] / 4
  moved = State(label=2, image=identifier, strengths={"closed_form_1": 2.0})
  assert (explorer.draw(moved) != explorer.draw(there)).any()
  end = State(label=2, mix=1.0)
  np.testing.assert_array_equal(explorer.draw(State(label=2, image=identifier, mix=1.0)), explorer.draw(end))
  assert explorer.invert(uploaded, 2) == identifier
  with pytest.raises(UserError, match="label = 5: choose from 0 to 4"):
    explorer.invert(uploaded, 5)


def test_the_oldest_upload_is_forgotten(explorer, monkeypatch, type_promotion):
  monkeypatch.setattr(exploring, "_KEPT", 2)
  size = explorer.trained.algorithm.image_shape
  files = [as_file(np.full(size, level, np.uint8), "WEBP") for level in (0, 100, 200)]
  first, *others = [explorer.invert(data, 0) for data in files]
  for identifier in others:
    explorer.draw(State(image=identifier))
  with pytest.raises(UserError, match="upload it again"):
    explorer.draw(State(image=first))


def png_of_size(width, height):
  """A PNG whose header claims a size, with hardly any data."""

  def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

  header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
  return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def test_hostile_uploads_are_refused(explorer):
  picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
  whole = as_file(picture, "PNG")
  for data, message in (
    (bytes(exploring.LARGEST_BYTES + 1), "has 10,000,001 bytes: make it smaller than 10,000,000"),
    (b"", "is not an image that can be read: give a PNG, JPEG or WebP"),
    (b"<svg onload='alert(1)'/>", "is not an image"),
    (as_file(picture, "TIFF"), "is not an image"),
    (as_file(picture, "GIF"), "is not an image"),
    (png_of_size(8000, 8000), "more than 32 megapixels"),
    (png_of_size(50_000, 50_000), "more than 32 megapixels"),
    (png_of_size(64, 64), "is damaged or cut short"),
    (whole[: len(whole) // 2], "is damaged or cut short"),
  ):
    with pytest.raises(UserError, match=message):
      explorer.invert(data, 0)
