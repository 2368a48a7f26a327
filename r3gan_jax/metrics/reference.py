"""Reference statistics of the FID in files: the `mu` and `sigma` of pytorch-fid's, EDM's and ADM's .npz, and ours.

Ours also have `num_images` and, as text, what they depend on: `network`, `weights` and `resize`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from etils import epath

from r3gan_jax.errors import UserError, one_line
from r3gan_jax.storage import failing_as, write_npz

_SETTINGS = ("network", "weights", "resize")


@dataclass(frozen=True)
class Reference:
  """The mean and covariance of the features of real images, instead of the images.

  Attributes:
    name: for messages, e.g. its file.
    mean: float64 [d].
    covariance: float64 [d, d], divided by count - 1.
    count: the number of images, if it is known.
    settings: name -> value of 'network', 'weights' and 'resize', as far as they are known.
  """

  name: str
  mean: np.ndarray
  covariance: np.ndarray
  count: int | None = None
  settings: Mapping[str, str] = field(default_factory=dict)

  def check(self, dimension: int, settings: Mapping[str, str]) -> None:
    """Raises a UserError unless the features have this dimension and these settings, as far as they are known."""
    for name, value in self.settings.items():
      if value != settings[name]:
        raise UserError(
          f"{self.name} has statistics computed with {name} = {value}, but now it is {settings[name]}: use the same, "
          "or give the images"
        )
    if len(self.mean) != dimension:
      raise UserError(
        f"{self.name} has statistics of {len(self.mean)} features, but {settings['network']} has {dimension}: give "
        "those of the same network"
      )


def read_npz(path: epath.Path) -> dict[str, np.ndarray]:
  """Reads all arrays of an .npz; raises a UserError if it cannot be read, or has Python objects."""
  with failing_as(f"cannot read {path}", path):
    try:
      with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)
    except OSError:
      raise
    except Exception as error:  # a broken file can raise anything
      raise UserError(f"{path} is no .npz of arrays ({one_line(error)[:200]}): write it again") from None


def has_statistics(arrays: Mapping[str, np.ndarray]) -> bool:
  """Returns whether an .npz has reference statistics."""
  return "mu" in arrays and "sigma" in arrays


def read_reference(name: str, arrays: Mapping[str, np.ndarray]) -> Reference:
  """Returns the statistics in the arrays of an .npz; raises a UserError if they have other shapes or are not finite."""
  mean, covariance = arrays["mu"], arrays["sigma"]
  if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
    raise UserError(f"{name}: mu has the shape {mean.shape} and sigma {covariance.shape}: give [d] and [d, d]")
  if not all(np.issubdtype(array.dtype, np.floating) and np.isfinite(array).all() for array in (mean, covariance)):
    raise UserError(f"{name}: mu and sigma have to be finite floating-point numbers: compute them again")
  count = arrays.get("num_images")
  known = int(count) if count is not None and count.shape == () and np.issubdtype(count.dtype, np.integer) else None
  settings = {key: str(arrays[key]) for key in _SETTINGS if key in arrays}
  double = np.float64
  return Reference(name, mean.astype(double), covariance.astype(double), known, settings)


def write_reference(path: epath.Path, reference: Reference) -> None:
  """Writes statistics as an .npz that pytorch-fid and `read_reference` read; raises a UserError if it cannot."""
  described = dict(reference.settings) | ({"num_images": reference.count} if reference.count else {})
  with failing_as(f"cannot write the statistics to {path}", path):
    arrays = {name: np.array(value) for name, value in described.items()}
    write_npz(path, {"mu": reference.mean, "sigma": reference.covariance} | arrays)
