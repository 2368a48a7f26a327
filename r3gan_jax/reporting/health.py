"""Sentences on what is healthy in the panels of a report; "" where there is nothing to say."""

from collections.abc import Collection, Mapping
from typing import Any

SCORES = {
  "fid": (
    "Lower is better. It falls fast, then ever more slowly; a rise that lasts means that training drifts, or that D "
    "memorises the data. FIDs compare only by the same protocol."
  ),
  "fd_dinov2": "Lower is better, and closer to what people see than FID. Its values are larger.",
  "mind": "Lower is better. It compares only at the same number of images.",
  "intra_fid": "Lower is better: FID of each class by itself, their mean. A rise while FID is level: variety is lost.",
  "kid": "Lower is better. It is unbiased, so close to 0 it may be negative by chance.",
  "inception_score": "Higher is better, up to that of real images. It compares only within one data set.",
  "precision": "The fraction of generated images that look real. A fall while recall is level: images get worse.",
  "recall": "The fraction of real images that G can draw. A fall while precision rises: variety is lost.",
  "density": "Around 1 for samples of the real distribution. Above it, samples crowd where real images are dense.",
  "coverage": "Higher is better, up to 0.97: the fraction of real images with a sample near. A fall: variety is lost.",
  "authenticity": "A fall means that samples come closer to single training images: compare with that of test images.",
  "class_accuracy": "Higher is better, up to that of real images. One good image a class is enough for it.",
  "cas": "Higher is better, up to that of real images: a classifier learns from samples what test images need.",
  "classification_error": "Lower is better: the fraction of test images whose class the GAN's networks do not tell.",
  "ppl": "Lower is smoother, but not better by itself: a G that ignores z has 0.",
  "modes": "1000 is all. A fall after a rise means that G drops modes.",
  "modes_kl": "0 is a uniform cover of the modes. Random draws alone leave about 500 / samples: 0.02 of 26,000.",
  "psnr": "Higher is better, but a sharp sample that is not quite the true image scores less than a blurred guess.",
  "ssim": "Higher is better; see PSNR.",
  "feature_distance": "Lower is better. It should end below that without a network.",
  "diversity": "Healthy: above 0, level. Near 0, G ignores its noise.",
  "consistency": "Higher is better: how well samples agree with what they are drawn from.",
}

SPEED = {
  "progress/images_per_second": "Level after the first value, which includes compiling. Dips: data, or other programs.",
  "progress/peak_memory_bytes": "Level after the first snapshot. Steady growth means a leak.",
}

_RELATIVISTIC_LOSS = (
  "Both are ln 2 = 0.69 where D cannot tell. Healthy: D's below and G's above, both level. D's near 0 means that D "
  "wins and G learns little: raise gamma."
)
_NON_SATURATING_LOSS = (
  "D's is 2 ln 2 = 1.39 and G's ln 2 = 0.69 where D cannot tell. Healthy: D's below and G's above, both level. D's "
  "near 0 means that D wins and G learns little."
)
_PAIRS_LOSS = (
  "Both are ln 2 = 0.69 where D cannot tell. Healthy: D's below and the other above, both level. D's near 0 means that "
  "D wins and the others learn little."
)
_WITH_OTHER_TERMS = ("acgan", "ebgan", "infogan", "sgan")
"""The algorithms whose logged losses have terms for classes, codes or energies, so that no ln 2 is their level."""
_CRITIC_LOSS = "By itself it means nothing, as the critic's outputs have no zero: see the Wasserstein estimate."

_RELATIVISTIC_LOGITS = (
  "Only their difference counts, as the loss is relativistic: both may drift together. Healthy: a level gap. A growing "
  "one means that D wins."
)
_LOGITS = (
  "Healthy: reals above 0, fakes below, at a level gap. A growing one means that D wins; none, that D cannot tell."
)

_TRAINING = {
  "Wasserstein estimate": (
    "Healthy: positive, and slowly falling as samples improve. Changes of sign or growth: training is unstable."
  ),
  "gradient penalties": (
    "The squared norms of D's gradient at images, before gamma / 2. Healthy: alike, and level or slowly changing. "
    "Growth by orders of magnitude comes before divergence: raise gamma. Near 0, D is flat: lower it."
  ),
  "norm of the critic's gradient at mixed images": "The penalty pulls it to 1. Healthy: close to it.",
  "relativistic logits: mean sign": (
    "D ranks a real image above a generated one by chance at 0, and always at 1; G's is the opposite. Healthy: level. "
    "Near 1 while scores get worse, D memorises the data: augment more."
  ),
  "gradient norms": "Healthy: level within an order of magnitude. Peaks far above it announce divergence.",
  "path length": "Healthy: it settles at a level of its own.",
  "D's loss with its penalties": "What D minimises: its adversarial loss, and gamma / 2 times the penalties.",
}


def of_training(title: str, names: Collection[str], config: Mapping[str, Any]) -> str:
  """Returns the sentences for a panel of training.

  Args:
    title: of the panel; see `series`.
    names: all series of the run.
    config: of the run; may lack anything.
  """
  gan = config.get("gan")
  loss = gan.get("loss") if isinstance(gan, dict) else None
  is_relativistic = "discriminator/relativistic_sign" in names and loss != "non_saturating"
  if title == "D's mean logits":
    return _RELATIVISTIC_LOGITS if is_relativistic else _LOGITS
  if title == "adversarial losses":
    if "discriminator/wasserstein_estimate" in names:
      return _CRITIC_LOSS
    if "pairs/loss" in names or "both/loss" in names:
      return _PAIRS_LOSS
    if config.get("algorithm") in _WITH_OTHER_TERMS:
      return ""
    return _RELATIVISTIC_LOSS if is_relativistic else _NON_SATURATING_LOSS
  return _TRAINING.get(title, "")
