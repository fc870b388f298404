"""The notebook `service/api/tour.ipynb` runs from a folder to a heatmap, in a real kernel."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.e2e
TOUR = Path(__file__).resolve().parents[3] / "service/api/tour.ipynb"
SOURCE = '"synthetic:evidence,size=64"'
SMALL_SOURCE = '"synthetic:evidence,train=120,validation=40,size=64"'


@pytest.mark.slow
def test_the_tour_runs_and_shows_its_pictures(tmp_path: Path) -> None:
    notebook = nbformat.read(TOUR, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # stored without outputs
    replaced = [cell for cell in notebook.cells if SOURCE in cell.source]
    assert len(replaced) == 1
    replaced[0].source = replaced[0].source.replace(SOURCE, SMALL_SOURCE)  # fewer images, to be quick
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    pages = [
        output.data["text/html"]
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "text/html" in output.get("data", {})
    ]
    assert any("<b>Shard set</b>" in page for page in pages)
    assert any("<b>run</b> (finished)" in page for page in pages)
    assert any("gradcam of" in page and page.count("<img ") == 4 for page in pages)
    assert any("conv1: 32 x 32 x 16" in page for page in pages)
    assert (tmp_path / "tour/run/report/index.html").is_file()
