"""Zero padding of images, and the output sizes of padded convolutions of stride 1."""

from collections.abc import Sequence

Padding = tuple[tuple[int, int], tuple[int, int]]
"""((top, bottom), (left, right)); negative values crop."""


def same_padding(kernel_size: Sequence[int]) -> Padding:
  """Returns the padding that keeps the image size; for even kernels, the extra zeros are at the bottom and right."""
  height, width = kernel_size
  return ((height - 1) // 2, height // 2), ((width - 1) // 2, width // 2)


def transposed_padding(padding: Padding, kernel_size: Sequence[int]) -> Padding:
  """Returns the padding of the transposed convolution, which maps the output size back to the input size."""
  (top, bottom), (left, right) = padding
  height, width = kernel_size
  return (height - 1 - top, height - 1 - bottom), (width - 1 - left, width - 1 - right)


def output_shape(x: Sequence[int], kernel: Sequence[int], padding: Padding) -> tuple[int, int, int, int]:
  """Returns [N, H', W', O] for an input of shape `x` [N, H, W, I] and a kernel of shape [kh, kw, I, O]."""
  height, width = (n + sum(pad) - k + 1 for n, pad, k in zip(x[1:3], padding, kernel[:2], strict=True))
  return x[0], height, width, kernel[-1]
