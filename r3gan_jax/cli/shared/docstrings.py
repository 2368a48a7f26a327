"""Reads what a Python file says of itself, without importing it."""

import ast
from pathlib import Path


def first_line(path: Path) -> str:
  """Returns the first line of a file's docstring, up to a colon or its full stop."""
  line = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
  return line.partition(": ")[0].removesuffix(":").removesuffix(".")
