"""notebooks/tour.ipynb runs from its first cell to its last at a small size, and shows what its prose says."""

import json
import math
import re
from pathlib import Path

import matplotlib
import nbformat
import pytest
from nbclient import NotebookClient
from scipy import stats

from slm.scaling import read_table
from tests.running import ROOT

TOUR = ROOT / "notebooks" / "tour.ipynb"


def texts(notebook: nbformat.NotebookNode) -> dict[str, str]:
    """What each cell printed or displayed, by the cell's id."""
    printed: dict[str, str] = {}
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            text = output.get("text", "") + data.get("text/plain", "") + data.get("text/markdown", "")
            printed[cell.id] = printed.get(cell.id, "") + text
    return printed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tour")


@pytest.fixture(scope="module")
def executed(folder: Path) -> nbformat.NotebookNode:
    """The notebook after all cells, with its files, caches and home in `folder`."""
    notebook = nbformat.read(TOUR, as_version=4)
    for cell in notebook.cells:
        cell |= {"outputs": []} if cell.cell_type == "code" else {}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HOME", "SLM_CACHE", "SLM_TOUR_FOLDER"):
            (folder / name.lower()).mkdir()
            patch.setenv(name, str(folder / name.lower()))
        patch.setenv("MPLCONFIGDIR", matplotlib.get_cachedir())  # a new home would list the fonts again
        patch.setenv("SLM_TOUR", "small")
        patch.setenv("OMP_NUM_THREADS", "1")
        place = {"metadata": {"path": str(TOUR.parent)}}
        NotebookClient(notebook, timeout=240, kernel_name="python3", resources=place).execute()
    return notebook


def test_the_tour_trains_evaluates_and_compares(executed: nbformat.NotebookNode, folder: Path) -> None:
    tour, shown = folder / "slm_tour_folder", texts(executed)
    result = json.loads((tour / "run" / "result.json").read_text())
    assert result["status"] == "completed"
    assert f"validation loss {result['val']['loss']:.3f} nats per token" in shown["look-plot"]
    verdict = json.loads((tour / "sweep" / "comparison.json").read_text())["verdict"]
    assert verdict["pairs"]
    assert all(sentence in shown["verdict-show"] for sentence in (verdict["headline"], *verdict["sentences"]))
    pictures = [output for cell in executed.cells for output in cell.get("outputs", []) if "image/png" in str(output)]
    assert len(pictures) == 3


def test_the_tours_correction_is_that_of_the_textbooks_regression(executed: nbformat.NotebookNode) -> None:
    frame = read_table("mobilellm_published").frame
    for target, name in (("perplexity", "perplexity"), ("loss", "loss      ")):
        line = stats.linregress(frame["params_total"].map(math.log), frame[target].map(math.log))
        reach = stats.t.ppf(0.975, len(frame) - 2) * line.stderr
        low, high = -line.slope - reach, -line.slope + reach
        expected = f"{name}  alpha {-line.slope:.4f}, 95% interval [{low:.3f}, {high:.3f}]"
        assert expected in texts(executed)["api-fit"]


def test_the_stored_outputs_are_of_a_whole_run_and_name_no_folder_of_its_machine() -> None:
    notebook = nbformat.read(TOUR, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not re.findall(r"/(?:root|home|tmp|work|Users)/", " ".join(texts(notebook).values()))
