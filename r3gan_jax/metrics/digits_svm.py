"""A support vector machine that classifies scikit-learn's small digits, for the mode coverage of the quickstart."""

from typing import Any

import numpy as np


def train(digits: np.ndarray, labels: np.ndarray) -> tuple[Any, float]:
  """Trains with an RBF kernel on 4/5 of the digits; returns (machine for `classify`, accuracy on the rest).

  Args:
    digits: uint8 [n, h, w].
    labels: int [n].
  """
  from sklearn import svm  # takes most of a second, and few runs need it
  from sklearn.model_selection import train_test_split

  training, test, training_labels, test_labels = train_test_split(
    _features(digits), labels, test_size=0.2, random_state=0, stratify=labels
  )
  machine = svm.SVC(C=10.0, gamma="scale").fit(training, training_labels)
  return machine, float(machine.score(test, test_labels))


def classify(machine: Any, digits: np.ndarray) -> np.ndarray:
  """Classifies digits: uint8 [n, h, w] -> int [n]."""
  return machine.predict(_features(digits))


def _features(digits: np.ndarray) -> np.ndarray:
  return digits.reshape(len(digits), -1) / 255.0
