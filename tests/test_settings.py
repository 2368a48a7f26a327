import dataclasses

import pytest

from r3gan_jax import factory, settings
from r3gan_jax.errors import UserError
from r3gan_jax.settings import Pair, below_one, not_negative, one_of, positive, probability, setting


@dataclasses.dataclass(frozen=True)
class Settings:
  widths: tuple[int, ...] = setting((8, 8), positive)
  gamma: Pair = setting((1.0, 0.1), not_negative)
  loss: str = setting("a", one_of(("a", "b")))
  scale: float = setting(2.0, positive, below_one)
  augment: dict[str, float] = setting({"hue": 0.5}, probability)


def test_defaults_are_those_of_the_class():
  assert settings.read(Settings, {}) == Settings()
  assert settings.defaults(Settings) == {
    "widths": (8, 8),
    "gamma": (1.0, 0.1),
    "loss": "a",
    "scale": 2.0,
    "augment": {"hue": 0.5},
  }
  settings.defaults(Settings)["augment"]["hue"] = 1.0
  assert Settings().augment == {"hue": 0.5}


@pytest.mark.parametrize("value", [3, 3.0, (3.0,), [3], (3, 3.0)])
def test_one_number_where_a_pair_is_meant_is_a_constant(value):
  gamma = settings.read(Settings, {"gamma": value}).gamma
  assert gamma == (3.0, 3.0) and all(type(element) is float for element in gamma)


def test_values_as_json_gives_them():
  read = settings.read(Settings, {"widths": [4, 2], "gamma": [1, 2], "augment": {"hue": 1}})
  assert read == Settings(widths=(4, 2), gamma=(1.0, 2.0), augment={"hue": 1.0})


@pytest.mark.parametrize(
  "values, message",
  [
    ({"width": (8,)}, "config.gan.width is no setting of this GAN"),
    ({"widths": (8.5,)}, "config.gan.widths: 8.5 must be of type int"),
    ({"widths": (True,)}, "config.gan.widths: True must be of type int"),
    ({"widths": "88"}, "config.gan.widths: '88' must be of type int"),
    ({"widths": (8, 0)}, r"config.gan.widths = \(8, 0\): 0 must be positive"),
    ({"gamma": (1, 2, 3)}, r"config.gan.gamma = .*: give \(from, to\), or one number for a constant"),
    ({"gamma": ()}, r"config.gan.gamma = \(\): give \(from, to\)"),
    ({"gamma": (1, -2)}, "-2.0 must not be negative"),
    ({"gamma": float("nan")}, "nan must be a finite number"),
    ({"scale": float("inf")}, "config.gan.scale = inf must be a finite number"),
    ({"loss": "c"}, r"config.gan.loss = 'c' is unknown: choose from \['a', 'b'\]"),
    ({"loss": 1}, "config.gan.loss: 1 must be of type str"),
    ({"scale": 1.0}, "1.0 must lie from 0 to below 1"),
    ({"scale": "1"}, "config.gan.scale: '1' must be of type float"),
    ({"augment": {"hue": 2}}, "2.0 must lie between 0 and 1"),
    ({"augment": {"hue": "x"}}, "config.gan.augment.hue: 'x' must be of type float"),
    ({"augment": 3}, "config.gan.augment = 3 must be"),
  ],
)
def test_what_will_not_do_is_named(values, message):
  with pytest.raises(UserError, match=message):
    settings.read(Settings, values)


@pytest.mark.parametrize("algorithm", factory.ALGORITHMS)
def test_every_algorithm_has_defaults_that_will_do(algorithm):
  gan = factory.default_config(algorithm).gan
  module = factory.ALGORITHMS[algorithm]
  assert settings.read(module.Settings, gan.to_dict()) == module.Settings()
  with pytest.raises(AttributeError):
    gan.no_such_setting = 1
  gan.ema_half_life = 0.5  # a constant for a pair
  assert settings.read(module.Settings, gan.to_dict()).ema_half_life in (0.5, (0.5, 0.5))
