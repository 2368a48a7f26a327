"""How often a classifier of the data finds the class that a conditional generator was asked for."""

import numpy as np

from r3gan_jax.errors import UserError


def class_accuracy(logits: np.ndarray, asked: np.ndarray) -> dict[str, float]:
  """Computes the fraction of samples whose likeliest class is the one that was asked for.

  Test images, with their own classes, have the classifier's accuracy. A high one does not mean that samples vary: one
  good image a class is enough. See `fid.intra_fid`.

  Args:
    logits: float [n, classes], of the classifier.
    asked: int [n].

  Returns:
    'class_accuracy' and 'class_accuracy_num_fake'.

  Raises:
    UserError: a class was asked for that the classifier does not have.

  References:
    Odena et al., Conditional Image Synthesis with Auxiliary Classifier GANs, 2017, section 4.1.
  """
  if asked.max() >= logits.shape[1]:
    raise UserError(
      f"class_accuracy: class {asked.max()} is asked for, but the feature network classifies {logits.shape[1]}: choose "
      "a network that was trained on these data"
    )
  return {"class_accuracy": float(np.mean(logits.argmax(axis=1) == asked)), "class_accuracy_num_fake": len(asked)}
