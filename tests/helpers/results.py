"""Results of a comparison, written by hand."""

from r3gan_jax.reporting.results import Result


def result(entry, seed, fid=None, rate=1.0, curve=(9, 8, 7), diverged_at=None, **scores):
  return Result(
    entry=entry,
    seed=seed,
    rate=rate,
    recipe="recipe",
    settings={"seed": seed},
    multiply_adds=2e13,
    images=100_000,
    multiply_adds_per_image=2e8,
    seconds_per_1000_images=6.5 + seed,
    parameters={"discriminator": 1000, "generator": 2000},
    diverged_at=diverged_at,
    protocol={"num_samples": 10_000},
    curves={"fid": {"images_seen": [1, 2, 3], "values": list(curve)}},
    scores={} if fid is None else {"fid": fid, **scores},
  )
