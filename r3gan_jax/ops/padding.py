"""Zero padding of images, and the sizes that convolutions of stride 1 have with it."""

from collections.abc import Sequence

Padding = tuple[tuple[int, int], tuple[int, int]]
"""((above, below), (left of, right of)) the image; negative values crop."""


def same_padding(kernel_size: Sequence[int]) -> Padding:
  """Returns the padding by which the output has the input's size; even kernels get the extra zeros behind."""
  height, width = kernel_size
  return ((height - 1) // 2, height // 2), ((width - 1) // 2, width // 2)


def transposed_padding(padding: Padding, kernel_size: Sequence[int]) -> Padding:
  """Returns the padding of the transposed convolution, which maps outputs back to the size of inputs."""
  (top, bottom), (left, right) = padding
  height, width = kernel_size
  return (height - 1 - top, height - 1 - bottom), (width - 1 - left, width - 1 - right)


def output_shape(x: Sequence[int], kernel: Sequence[int], padding: Padding) -> tuple[int, int, int, int]:
  """Returns [N, H', W', O] for an input of shape `x` [N, H, W, I] and a kernel of shape [kh, kw, I, O]."""
  height, width = (n + sum(pad) - k + 1 for n, pad, k in zip(x[1:3], padding, kernel[:2], strict=True))
  return x[0], height, width, kernel[-1]
