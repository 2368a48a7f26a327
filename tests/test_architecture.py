"""The floors of the house: a module imports only from floors below its own, or from its own package."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "r3gan_jax"
FLOORS = (
  ("errors", "memory"),
  ("ops", "optimizers", "progress_bar", "schedules", "settings", "storage"),
  ("locks",),
  ("augment", "data", "losses", "networks"),
  ("interop", "metrics", "recipe"),
  ("pretrained",),
  ("algorithms",),
  ("inversion", "sampling", "sources", "training"),
  (
    "automatic",
    "comparison",
    "conversion",
    "editing",
    "factory",
    "perceptual_path_length",
    "planning",
    "sample_sets",
  ),
  ("reporting", "scoring"),
  ("runs",),
  ("published",),
  ("exploring", "library", "trials"),
  ("cli",),
)
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
TAKE_A_RECIPE = (
  "automatic",
  "factory",
  "runs",
  "scoring",
  "sources",
  "trials",
  "cli/sweep.py",
  "cli/shared/recipes.py",
  "cli/shared/trial_jobs.py",
)
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


def imports(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: relative import"
      names = [f"{node.module}.{alias.name}" for alias in node.names]
      yield from names if node.module == "r3gan_jax" else [node.module]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_from_below(path):
  own = path.relative_to(PACKAGE).with_suffix("").parts[0]
  for name in imports(path):
    first, *rest = name.split(".")
    assert first != "configs", "nothing in r3gan_jax imports configs"
    if first == "r3gan_jax":
      assert rest[0] == own or FLOOR[rest[0]] < FLOOR[own], f"{own} imports {name}"
    if first == "ml_collections":
      at = path.relative_to(PACKAGE).as_posix()
      assert own in TAKE_A_RECIPE or at in TAKE_A_RECIPE, f"{at} touches a ConfigDict"
    if first in ("tensorflow", "tensorflow_datasets", "grain"):
      assert own == "data", "data/ is the only place for TensorFlow and its data sets"
    if first == "torch":
      raise AssertionError("PyTorch is not a dependency")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_private_names_stay_in_their_module(path):
  tree = ast.parse(path.read_text())
  imported = [
    node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module.startswith("r3gan_jax")
  ]
  names = {alias.asname or alias.name for node in imported for alias in node.names}
  taken = [alias.name for node in imported for alias in node.names] + [
    node.attr
    for node in ast.walk(tree)
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in names
  ]
  assert not [name for name in taken if name.startswith("_") and not name.startswith("__")]


def test_every_package_has_a_floor():
  assert {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in MODULES} <= FLOOR.keys()
