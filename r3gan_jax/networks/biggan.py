"""The generator of BigGAN (Brock et al. 2019, arXiv 1809.11096, appendix B); D is that of networks/resnet_sn.py."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from r3gan_jax.networks import resnet_sn


class Generator(resnet_sn.Generator):
  """Maps noise in chunks, and classes if there are any, to images.

  The first chunk of z enters the first layer. Each other one, beside an embedding of the class that all blocks share,
  is the condition of a block's two batch norms, through kernels. Only the embedding has no spectral norm.

  Attributes:
    embed_dim: length of the embedding.
  """

  embed_dim: int = 128

  @property
  def condition_init(self) -> nn.initializers.Initializer:  # type: ignore[override]
    return self.kernel_init

  def conditions(self, z: jax.Array, labels: jax.Array | None) -> tuple[jax.Array, list[jax.Array | None]]:
    first, *chunks = jnp.split(z, len(self.widths), axis=1)
    if not self.num_classes:
      return first, [*chunks]
    rows = self.param("embedding", self.kernel_init, (self.num_classes, self.embed_dim))
    embedding = resnet_sn.one_hot(labels, self.num_classes, z.dtype) @ rows
    return first, [jnp.concatenate([embedding, chunk], axis=1) for chunk in chunks]
