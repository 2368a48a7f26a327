"""StyleGAN2's iteration: penalties against finite differences, lazy regularisation, mixing, and the training step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import golden_cases
from helpers.meshes import mesh_of
from helpers.states import arrays_of

from r3gan_jax import schedules
from r3gan_jax.algorithms import stylegan2
from r3gan_jax.algorithms.images import Images
from r3gan_jax.algorithms.stylegan2 import StyleGAN2, path_lengths
from r3gan_jax.networks.karras import Mapping
from r3gan_jax.networks.stylegan2 import Discriminator, Synthesis
from r3gan_jax.training.mesh import batch_sharding, replicated
from r3gan_jax.training.state import init_state
from r3gan_jax.training.step import global_gradients, make_train_step

BATCH = 64
RAMPS = {
  "learning_rate": schedules.cosine(2.5e-3, 2.5e-3, 1),
  "beta2": schedules.cosine(0.99, 0.99, 1),
  "gamma": schedules.cosine(3.0, 3.0, 1),
  "ema_half_life": schedules.cosine(100.0, 100.0, 1),
}
ALGORITHM = StyleGAN2(
  Mapping(6, layers=2),
  Synthesis((8, 8)),
  Discriminator((8, 8)),
  noise_dim=5,
  images=Images(8, 8, 3, 0),
  schedules=RAMPS,
)
GENERATOR, PATH_LENGTH, DISCRIMINATOR, R1 = range(4)


def images(seed, size=BATCH):
  return np.random.default_rng(seed).integers(0, 256, (size, 8, 8, 3), dtype=np.uint8)


def noisy(params):
  """Perturbs parameters, so that biases and noise strengths are not zero."""
  leaves, structure = jax.tree.flatten(params)
  random = np.random.default_rng(0)
  return structure.unflatten([leaf + 0.3 * random.standard_normal(leaf.shape).astype(leaf.dtype) for leaf in leaves])


@pytest.mark.parametrize(
  "index, network, metric, weight",
  [
    (PATH_LENGTH, "generator", "path_length_penalty", 4 * 2),
    (R1, "discriminator", "r1", 16 * 3.0 / 2),
  ],
)
def test_lazy_gradients_against_finite_differences(index, network, metric, weight):
  """They are k times the weighted penalty's, in a random direction, in float64."""
  with jax.enable_x64(True):
    params, carry = jax.jit(lambda: ALGORITHM.init(jax.random.key(0)))()
    params, carry = noisy(params), carry | {"path_length": jnp.float64(0.7)}
    direction = jax.tree.map(lambda p: np.random.default_rng(p.size).standard_normal(p.shape), params[network])
    phase = ALGORITHM.phases[index]
    batch, keys = {"image": jnp.asarray(images(0, 8) / 127.5 - 1)}, jax.random.split(jax.random.key(1), 8)
    gradients_of = jax.jit(global_gradients(phase, mesh_of(1), None))

    def at(step):
      moved = jax.tree.map(lambda p, d: p + step * d, params[network], direction)
      return gradients_of(params | {network: moved}, carry, batch, keys, {"gamma": jnp.float64(3.0)})

    gradients, new_carry, metrics = at(0.0)
    slope = (at(1e-6)[2][metric] - at(-1e-6)[2][metric]) / 2e-6
    along = sum(jnp.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (gradients[network], direction)), strict=True))
    np.testing.assert_allclose(along, weight * slope, rtol=1e-4)
    assert abs(slope) > 1e-3
    moved = 0.7 + 0.01 * (metrics["path_length"] - 0.7) if index == PATH_LENGTH else 0.7
    np.testing.assert_allclose(new_carry["path_length"], moved, rtol=1e-12)


def test_path_length_by_finite_differences_of_the_images():
  """J^T y by perturbing each entry of each layer's w; y is normal with deviation 1 / sqrt(H W)."""
  with jax.enable_x64(True):
    params = noisy(jax.jit(lambda: ALGORITHM.init(jax.random.key(0)))()[0])["generator"]["synthesis"]
    w = jnp.asarray(np.random.default_rng(1).standard_normal((2, 4, 6)))
    keys = jax.random.split(jax.random.key(1), 2)
    synthesise = jax.jit(lambda w: ALGORITHM.synthesis.apply({"params": params}, w))
    y = np.stack([jax.random.normal(key, (8, 8, 3)) for key in keys]) / 8
    gradient = np.zeros(w.shape)
    for layer, entry in np.ndindex(4, 6):
      step = jnp.zeros(w.shape).at[:, layer, entry].set(1e-6)
      moved = (synthesise(w + step) - synthesise(w - step)) / 2e-6
      gradient[:, layer, entry] = np.sum(moved * y, axis=(1, 2, 3))
    expected = np.sqrt(np.mean(np.sum(gradient**2, axis=2), axis=1))
    np.testing.assert_allclose(path_lengths(synthesise, w, keys), expected, rtol=1e-6)


def test_truncation():
  """0 gives the image of the mean w for any noise; values up to 1 interpolate between w and its mean."""
  params, carry = jax.jit(lambda: ALGORITHM.init(jax.random.key(0)))()
  carry = carry | {"w": jnp.arange(6.0)}
  noise = ALGORITHM.noise(jax.random.split(jax.random.key(1), 3))
  generate = jax.jit(lambda carry, noise, psi: ALGORITHM.generate(params, carry, noise, None, psi), static_argnums=2)
  (one, half, none) = (generate(carry, noise, psi) for psi in (1.0, 0.5, 0.0))
  np.testing.assert_array_equal(one, generate(carry | {"w": jnp.zeros(6)}, noise, 1.0))
  assert (one[0] != one[1]).any()
  np.testing.assert_allclose(
    none, np.broadcast_to(none[:1], none.shape), atol=1e-5
  )  # rounding in convolutions depends on the position in the batch
  w = ALGORITHM.mapping.apply({"params": params["generator"]["mapping"]}, noise)
  for psi, image in ((0.5, half), (0.0, none)):
    layers = jnp.repeat((carry["w"][None] + psi * (w - carry["w"][None]))[:, None], 4, axis=1)
    expected = ALGORITHM.synthesis.apply({"params": params["generator"]["synthesis"]}, layers)
    np.testing.assert_allclose(image, expected, atol=1e-5)


def test_lazy_phases_run_when_they_are_due():
  """Path length runs at iterations 0 and 4, R1 at 0; the network's optimiser counts their steps.

  Nothing compiles after the first iteration; the state is donated.
  """
  mesh = mesh_of(1)
  state = jax.jit(lambda: init_state(ALGORITHM, 0), out_shardings=replicated(mesh))()
  step = make_train_step(ALGORITHM, mesh)
  states, metrics, compilations = [], [], []

  def count(event, *_, **__):
    compilations.append(event)

  for i in range(5):
    given = jax.device_put(({"image": images(i)},), batch_sharding(mesh))
    jax.block_until_ready((state, given))
    if i == 1:
      jax.monitoring.register_event_duration_secs_listener(count)
    before = jax.tree.leaves(state)
    state, numbers = step(state, given)
    assert i or all(leaf.is_deleted() for leaf in before), "the state is not donated"
    states.append(arrays_of(state))
    metrics.append(jax.device_get(numbers))
  jax.monitoring.unregister_event_duration_listener(count)
  assert not [event for event in compilations if "backend_compile" in event], "recompiled after the first iteration"
  assert not any(step.not_finite() for step in metrics)
  for name, due in (
    ("generator/path_length", [0, 4]),
    ("generator/path_length_penalty", [0, 4]),
    ("generator/gradient_norm_every_4", [0, 4]),
    ("discriminator/r1", [0]),
    ("discriminator/gradient_norm_every_16", [0]),
    ("generator/loss", [0, 1, 2, 3, 4]),
    ("discriminator/gradient_norm", [0, 1, 2, 3, 4]),
  ):
    assert [i for i in range(5) if metrics[i].ran.get(name, True)] == due, name
  assert [int(state.optimizer["generator"].updates) for state in states] == [2, 3, 4, 5, 7]
  assert [int(state.optimizer["discriminator"].updates) for state in states] == [2, 3, 4, 5, 6]
  path_length = [state.carry["path_length"] for state in states]
  assert path_length[0] == path_length[3] != path_length[4]
  np.testing.assert_allclose(path_length[0], 0.01 * metrics[0].values["generator/path_length"], rtol=1e-5)
  assert states[4].images_seen == 5 * BATCH


def all_phases(devices, micro_batch):
  """Returns gradients, carries and metrics of the four phases at one state, in float64, without Adam."""
  mesh = mesh_of(devices)
  with jax.enable_x64(True):
    params, carry = jax.jit(lambda: ALGORITHM.init(jax.random.key(0)))()
    keys = jax.random.split(jax.random.key(1), BATCH)
    given = (noisy(params), carry, {"image": jnp.asarray(images(0) / 127.5 - 1)}, keys, {"gamma": jnp.float64(3.0)})
    phases = [global_gradients(phase, mesh, micro_batch) for phase in ALGORITHM.phases]
    return jax.device_get(jax.jit(lambda *given: [gradients_of(*given) for gradients_of in phases])(*given))


@pytest.fixture(scope="module")
def whole():
  return all_phases(1, None)


def test_how_the_batch_is_split_does_not_matter(whole):
  """Over 8 devices, with two micro-batches each."""
  golden_cases.assert_trees_close(all_phases(8, 4), whole, 1e-10)


def test_running_mean_of_w(whole):
  """It moves by 0.005 towards the mean of the w that are not mixed in; other phases do not change it."""
  with jax.enable_x64(True):
    mapping = noisy(jax.jit(lambda: ALGORITHM.init(jax.random.key(0)))()[0])["generator"]["mapping"]
    keys = jax.random.split(jax.random.key(1), BATCH)
    z = ALGORITHM.noise(jax.vmap(lambda key: jax.random.split(key, 4)[0])(keys))
    w = np.asarray(ALGORITHM.mapping.apply({"params": mapping}, z))
  carries = [carry for _, carry, _ in whole]
  np.testing.assert_allclose(carries[GENERATOR]["w"], 0.005 * w.mean(axis=0), rtol=1e-10)
  assert not any(carries[phase]["w"].any() for phase in (PATH_LENGTH, DISCRIMINATOR, R1))


def test_optimisers_make_up_for_lazy_steps():
  """Appendix B by hand: c = 4/5 and 16/17; the first update is learning rate times sign, v = (1 - beta2^c) g^2."""
  hyperparameters = {"learning_rate": jnp.float32(2.5e-3), "beta2": jnp.float32(0.99)}
  for network, share in (("generator", 0.8), ("discriminator", 16 / 17)):
    optimizer = ALGORITHM.optimizers[network]
    updates, state = optimizer.update(
      {"w": jnp.array([3.0])}, optimizer.init({"w": jnp.zeros(1)}), hyperparameters=hyperparameters
    )
    np.testing.assert_allclose(updates["w"], -2.5e-3 * share, rtol=1e-4)
    np.testing.assert_allclose(state.second_moment["w"], 9 * (1 - 0.99**share), rtol=1e-4)
  assert (stylegan2.PATH_LENGTH_EVERY, stylegan2.R1_EVERY) == (4, 16)
