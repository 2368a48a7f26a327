"""An SVM that classifies scikit-learn's small digits, for the mode coverage of the quickstart."""

import numpy as np


class DigitsSVM:
  """A support vector machine with an RBF kernel, trained on 4/5 of the digits and tested on the rest.

  Args:
    digits: uint8 [n, h, w].
    labels: int [n].

  Attributes:
    accuracy: held-out accuracy.
  """

  def __init__(self, digits: np.ndarray, labels: np.ndarray):
    from sklearn import svm  # takes most of a second, and few runs need it
    from sklearn.model_selection import train_test_split

    features = self._features(digits)
    train, test, train_labels, test_labels = train_test_split(
      features, labels, test_size=0.2, random_state=0, stratify=labels
    )
    self._machine = svm.SVC(C=10.0, gamma="scale").fit(train, train_labels)
    self.accuracy = float(self._machine.score(test, test_labels))

  def __call__(self, digits: np.ndarray) -> np.ndarray:
    """Classifies digits: uint8 [n, h, w] -> int [n]."""
    return self._machine.predict(self._features(digits))

  @staticmethod
  def _features(digits: np.ndarray) -> np.ndarray:
    return digits.reshape(len(digits), -1) / 255.0
