"""examples/tour.ipynb: it runs, and its committed outputs are what it prints."""

from __future__ import annotations

import re
import warnings

import nbformat
import pytest

from tests.pages import ROOT

NOTEBOOK = ROOT / "examples" / "tour.ipynb"


def printed(notebook) -> str:
    """The text of all outputs."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return "\n".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs)


def test_it_is_committed_with_outputs_and_small():
    notebook = nbformat.read(NOTEBOOK, 4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)]
    outputs = [output for cell in code for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
    assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs)
    assert NOTEBOOK.stat().st_size < 300_000


@pytest.mark.slow
def test_it_runs_and_prints_what_is_committed(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, 4)
    committed = [float(number) for number in re.findall(r"([\d.]+)%", printed(notebook))]
    resources = {"metadata": {"path": str(tmp_path)}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the kernel's libraries among themselves
        nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    found = [float(number) for number in re.findall(r"([\d.]+)%", printed(notebook))]
    assert found == pytest.approx(committed, abs=1) and len(found) == 2  # other machines round otherwise
