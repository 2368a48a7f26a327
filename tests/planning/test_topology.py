"""Names of topologies, their memory, and the time of their all-reduces."""

import pytest

from r3gan_jax.errors import UserError
from r3gan_jax.planning import topology
from r3gan_jax.planning.topology import DEVICES, open_mesh, parse_topology

GB = 10**9


@pytest.mark.parametrize(
  "name, size, hosts", [("v5e:4x4", 16, 1), ("v4:4x4x4", 64, 1), ("h100:1x8", 8, 1), ("l40:3x8", 24, 3)]
)
def test_names(name, size, hosts):
  parsed = parse_topology(name)
  assert (parsed.size, parsed.hosts) == (size, hosts)
  assert parsed.device is DEVICES[name.partition(":")[0]]


@pytest.mark.parametrize("name", ["v9:2x2", "h100", "h100:8", "h100:1x2x4", "h100:0x8", "v5e:2x", "v5e:2xb", ""])
def test_an_unknown_name_is_refused(name):
  with pytest.raises(UserError, match="unknown topology"):
    parse_topology(name)


@pytest.mark.parametrize(
  "name, milliseconds",
  [
    ("v5e:1x1", 0),
    ("v5e:1x2", 5),  # 1 GB at 200 GB/s: n - 1 of n parts are sent twice, for the reduce-scatter and the all-gather
    ("v5e:2x2", 7.5),
    ("v5e:16x16", 9.9609375),
    ("h100:1x1", 0),
    ("h100:1x8", 2 * 7 / 8 / 450e-3),
    ("h100:2x8", 2 * 7 / 8 / 450e-3),  # sending an eighth between two hosts at 50 GB/s takes 2.5 ms
    ("h100:8x8", 2 * 7 / 8 / 8 / 50e-3),
    ("h100:2x1", 2 / 2 / 50e-3),
  ],
)
def test_seconds_of_an_all_reduce(name, milliseconds):
  assert 1e3 * parse_topology(name).all_reduce_seconds(GB) == pytest.approx(milliseconds)


def test_the_network_of_some_cards_is_unknown():
  assert parse_topology("l40:1x8").all_reduce_seconds(GB) == pytest.approx(1.75 / 32)
  assert parse_topology("l40:2x8").all_reduce_seconds(GB) is None


def test_usable_memory_is_what_jax_takes(monkeypatch):
  assert parse_topology("v5e:2x2").usable_memory == 16 * 2**30
  monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
  card = parse_topology("h100:1x1")
  assert card.usable_memory == 0.75 * 84942979072
  monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", ".9")
  assert card.usable_memory == 0.9 * 84942979072


@pytest.mark.parametrize("name, extra", [("v5e:2x2", r"\.\[tpu\]"), ("h100:1x1", r"\.\[gpu-compiler\]")])
def test_a_missing_compiler_is_named(monkeypatch, name, extra):
  monkeypatch.setattr(topology, "find_spec", lambda name: None)
  with pytest.raises(UserError, match=extra):
    open_mesh(parse_topology(name))
