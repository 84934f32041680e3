"""The notebook goes from somebody's state_dict to a table, as it stands."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "examples" / "from_a_state_dict.ipynb"


@pytest.mark.slow
def test_the_notebook_runs_and_ends_in_a_table(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "kept without outputs"
    NotebookClient(notebook, timeout=250, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    said = "".join(output.get("text", "") for output in outputs)
    assert "MoCo v1/v2" in said and "module.encoder_q.conv1.weight" in said
    (table, records) = [output["data"]["text/plain"] for output in outputs if "data" in output]
    assert {"random", "MoCo", "knn", "linear_cached", "mean", "std"} <= set(table.replace("\n", " ").split())
    assert "NaN" not in table, table
    assert "checkpoint_sha256" in records
