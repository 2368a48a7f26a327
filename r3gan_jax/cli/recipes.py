"""Lists the recipes that come along, for --config and --comparison: `python -m r3gan_jax.cli.recipes`.

    python -m r3gan_jax.cli.recipes --show=configs/cifar10.py > mine.py

prints one, as a start for your own: `--config=mine.py`.
"""

from absl import flags

from r3gan_jax.cli.shared.docstrings import first_line
from r3gan_jax.cli.shared.recipes import find_recipe, recipes
from r3gan_jax.cli.shared.runner import run

_SHOW = flags.DEFINE_string("show", None, "Print this recipe instead.")


def main() -> None:
  if _SHOW.value:
    print(find_recipe("show", _SHOW.value).read_text(), end="")
    return
  for name in recipes():
    print(f"{name:<36} {first_line(find_recipe('show', name))}")


if __name__ == "__main__":
  run(main)
