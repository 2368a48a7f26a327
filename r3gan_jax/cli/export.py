"""Exports the averaged generator of a run, with its parameters, as one file of StableHLO:

    python -m r3gan_jax.cli.export --workdir=runs/NAME --out=generator.stablehlo

The file runs on CPUs, NVIDIA GPUs and TPUs, at any batch size, without this package: it needs jax, flatbuffers and
JAX's package for the device. In Python:

    generator = jax.export.deserialize(bytearray(open("generator.stablehlo", "rb").read()))
    noise = numpy.random.default_rng(0).standard_normal(generator.in_avals[0].shape[1:], numpy.float32)[None]
    images = generator.call(noise)            # with classes: generator.call(noise, labels)

    noise   float32 [b, noise_dim], N(0, I), for seed s jax.random.normal(jax.random.key(s), (noise_dim,)); of the zoo
            what `noise` in r3gan_jax/algorithms/NAME.py draws, such as U(-1, 1)
    labels  int32 [b]
    images  float32 [b, H, W, C] in about [-1, 1]; as uint8, numpy.clip(images * 127.5 + 128, 0, 255).astype("uint8")

A run on an autoencoder's latents is exported with the decoder, or without it by --latents: then `images` are latents
as they are trained on, and config.data.latents in config.json has their scale.

It computes in float32, with the device's default precision of products and without custom kernels. For how long newer
releases of JAX can read it, see https://docs.jax.dev/en/latest/export/export.html#compatibility-guarantees
"""

import jax
import jax.numpy as jnp
from absl import flags
from jax import export

from r3gan_jax import factory, runs
from r3gan_jax.cli.shared.outputs import output_path
from r3gan_jax.cli.shared.runner import run
from r3gan_jax.errors import UserError
from r3gan_jax.runs import TrainedRun
from r3gan_jax.storage import failing_as, write_whole

_WORKDIR = flags.DEFINE_string("workdir", None, "The work directory of the run.", required=True)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "", "The checkpoint: its images seen, or 'best'; default: the newest.")
_LATENTS = flags.DEFINE_bool("latents", False, "Of a run on an autoencoder's latents: export without the decoder.")
_OUT = flags.DEFINE_string("out", None, "The .stablehlo to write.", required=True)

PLATFORMS = ("cpu", "cuda", "tpu")


def main() -> None:
  out, _ = output_path("out", _OUT.value, (".stablehlo",))
  trained = runs.averaged_run(_WORKDIR.value, *runs.open_state(_WORKDIR.value, _CHECKPOINT.value))
  if _LATENTS.value and factory.numbers(trained.config) is None:
    raise UserError(f"--latents: the run in {_WORKDIR.value} was trained on images: leave it out")
  serialized = exported_generator(trained, decode=not _LATENTS.value).serialize()
  with failing_as(f"cannot write --out={out}", out):
    write_whole(out, bytes(serialized))
  print(
    f"the generator at {trained.images_seen:,} images seen, {len(serialized) / 2**20:.1f} MiB, for "
    f"{', '.join(PLATFORMS)}: {out}"
  )


def exported_generator(trained: TrainedRun, decode: bool = True) -> export.Exported:
  """Returns (noise float32 [b, noise_dim][, labels int32 [b]]) -> images float32 [b, H, W, C], for any b.

  Without `decode`, a run on latents gives these.
  """
  algorithm, params = factory.portable_algorithm(trained.config), trained.params
  if decode:
    algorithm, besides = factory.drawing(trained.config, algorithm, at_once=0)
    params = {**params, **besides}

  def generate(noise: jax.Array, labels: jax.Array | None = None) -> jax.Array:
    return algorithm.generate(params, trained.carry, noise, labels)

  (batch,) = export.symbolic_shape("b")
  one_noise = jax.eval_shape(algorithm.noise, jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1)))
  arguments = [jax.ShapeDtypeStruct((batch, *one_noise.shape[1:]), one_noise.dtype)]
  if algorithm.num_classes:
    arguments.append(jax.ShapeDtypeStruct((batch,), jnp.int32))
  return export.export(jax.jit(generate), platforms=PLATFORMS)(*arguments)


if __name__ == "__main__":
  run(main)
