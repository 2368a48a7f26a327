"""Losses by a pretrained network that is not trained any more, per sample; shapes [N, ...] -> float [N].

Alignment pulls features of D towards those of a pretrained network, of the same image: representation alignment, REPA
(Yu et al. 2024, arXiv 2410.06940), which aligns a diffusion model; here it is D, and on reals only. Guidance adds the
cross-entropy of a pretrained classifier to G's loss, as StyleGAN-XL does (Sauer et al. 2022, arXiv 2202.00273).
"""

import jax
import jax.numpy as jnp

_EPSILON = 1e-8
"""Keeps the gradient finite at features of length 0."""


def cosine_similarity(a: jax.Array, b: jax.Array) -> jax.Array:
  """Returns the cosine of the angle between a and b: [N, D], [N, D] -> [N] in [-1, 1]; 0 if one of them is 0."""
  squares = jnp.sum(jnp.square(a), axis=-1) * jnp.sum(jnp.square(b), axis=-1)
  return jnp.sum(a * b, axis=-1) * jax.lax.rsqrt(squares + _EPSILON**2)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Returns -log softmax(logits)[label]: logits [N, K], labels [N] int32 -> [N]."""
  return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=-1)[:, 0]
