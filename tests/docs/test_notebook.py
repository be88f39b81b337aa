"""examples/getting_started.ipynb: whole, stored as it ran, naming only what exists; and it still runs from its first cell to its last."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from merasteer import demo


@pytest.fixture
def notebook(root: Path) -> Any:
    return nbformat.read(root / "examples" / "getting_started.ipynb", as_version=4)


def texts(notebook: Any) -> list[str]:
    """What every cell printed, in order."""
    return [
        "".join(output.get("text", "") for output in cell.outputs)
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def test_it_is_valid_short_and_stored_as_it_ran(notebook: Any) -> None:
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(notebook.cells) <= 10
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert {output.output_type for output in outputs} == {"stream", "display_data"}
    assert {output.name for output in outputs if output.output_type == "stream"} == {"stdout"}
    assert len(nbformat.writes(notebook)) < 100_000


def test_it_names_only_paths_of_the_repository(root: Path, notebook: Any) -> None:
    for cell in notebook.cells:
        links = re.findall(r"\]\(([^)]+)\)", cell.source) if cell.cell_type == "markdown" else []
        for link in links:
            assert (root / "examples" / link).resolve().is_relative_to(root)
            assert (root / "examples" / link).is_file(), link
        for text in (cell.source, *(str(output.get("text", "")) for output in cell.get("outputs", []))):
            assert not re.search(r"(?<![\w.…)/:])(?:/\w[\w.-]*){2,}|[A-Z]:\\", text), text  # an absolute path
    assert any("](../docs/adding-a-task.md)" in cell.source for cell in notebook.cells)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the notebook packages
def test_it_runs(notebook: Any, tmp_path: Path) -> None:
    if not (demo.model_dir() / "config.json").is_file():
        pytest.skip("the built-in demo is not built; run `mera demo build`")
    stored = texts(notebook)
    ran = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = texts(ran)
    assert "decision: certified" in printed[2]
    assert "image/png" in next(output.data for output in ran.cells[6].outputs if "data" in output)
    assert (
        printed[-1].splitlines()[-1]
        == stored[-1].splitlines()[-1]
        == "answered with the new artifact: True | certified: True"
    )
    assert not any(tmp_path.iterdir())  # it leaves nothing where it was started
