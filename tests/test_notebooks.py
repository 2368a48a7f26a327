"""The notebooks run from top to bottom, here with tiny settings, and are committed without outputs."""

import os
import sys
from pathlib import Path

import nbformat
import pytest
from helpers import official_pickles
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


TINY = "'--config.gan.widths=(8,8)' '--config.gan.cardinalities=(2,2)' --config.run.metric_samples=260"


def executed(name, environment, settings="", **parameters):
  """Runs a notebook with other parameters, and `settings` for main.py; returns it with its outputs."""
  notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
  (cell,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
  names = [line.partition(" = ")[0] for line in cell.source.splitlines()]
  assert names == list(parameters)
  cell.source = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
  for cell in notebook.cells:
    if cell.source.startswith("!python main.py"):
      cell.source = f"{cell.source.rstrip()} {settings}"
  with pytest.MonkeyPatch.context() as patch:
    for variable in environment.keys() - os.environ.keys():
      patch.setenv(variable, environment[variable])
    patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")  # for !python
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": NOTEBOOKS}}).execute()
  return notebook


def pictures(notebook, kind="image/png"):
  outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
  return sum(kind in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_outputs_are_cleared(path):
  notebook = nbformat.read(path, as_version=4)
  nbformat.validate(notebook)
  for cell in notebook.cells:
    assert not cell.get("outputs") and not cell.get("execution_count")


@pytest.fixture(scope="module")
def quickstart(environment, tmp_path_factory):
  """Returns (the notebook, its work directory, which both notebooks train in)."""
  workdir = tmp_path_factory.mktemp("quickstart") / "run"
  return executed("quickstart.ipynb", environment, TINY, images=128, workdir=str(workdir)), workdir


def test_quickstart(quickstart):
  notebook, _ = quickstart
  assert pictures(notebook) == 4
  assert "(4, 8, 8, 3)" in notebook.cells[-1].outputs[0].data["text/plain"]


def test_edit(quickstart, environment):
  parameters = {"images": 128, "workdir": str(quickstart[1]), "epochs": 1, "samples": 100, "steps": 2}
  notebook = executed("edit.ipynb", environment, TINY, **parameters)
  assert pictures(notebook) == 3
  printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()))
  assert "closed_form_3.npz" in printed and "class 0 of channel 0" in printed
  assert "2 images of the checkpoint at 128 images" in printed


def test_official_checkpoints(environment, tmp_path):
  notebook = executed(
    "official_checkpoints.ipynb",
    environment,
    snapshot=str(official_pickles.path("cond_8px")),
    workdir=str(tmp_path / "run"),
    label=3,
    images=[],
    steps=5,
    real_images="",
    num_samples=4,
  )
  assert (pictures(notebook), pictures(notebook, "image/gif")) == (3, 1)
  printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()))
  assert "(8, 8, 3)" in printed and "5 classes" in printed and "'targets': (2, " in printed
