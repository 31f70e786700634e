"""A saved workspace in W&B, as far as it goes without an account."""

from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from slm.analysis import workspace
from slm.analysis.report.directory import Directory


def test_the_workspace_has_a_panel_for_every_chart_of_the_analysis(two: Path) -> None:
    pytest.importorskip("wandb_workspaces")
    made = workspace.make_workspace(Directory.read(two), "me", "slm")
    charts, bars, runs = made.sections
    tables = {panel.query["summaryTable"]["tableKey"] for panel in charts.panels}
    assert {f"charts/{name}_table" for name in ("loss_against_N", "exponents", "worth")} <= tables
    assert "exponent/deep_thin/power_floor/alpha" in bars.panels[0].metrics
    assert len(runs.panels) == 2
    assert made.name == "Exponents of two"


def test_a_workspace_that_cannot_be_saved_is_one_sentence(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    monkeypatch.setattr(workspace, "has_api_key", lambda: True)
    refused = SimpleNamespace(save=Mock(side_effect=wandb.Error("not reachable")))
    monkeypatch.setattr(workspace, "make_workspace", lambda *_: refused)
    with pytest.raises(ValueError, match="W&B did not save the workspace: not reachable"):
        workspace.main([str(two), "me"])


def test_what_a_workspace_needs_is_said(two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "has_api_key", lambda: False)
    with pytest.raises(ValueError, match="needs an account of W&B: run `wandb login` once"):
        workspace.main([str(two)])
    with pytest.raises(ValueError, match=r"is not an analysis: it lacks fits\.json or comparison\.json"):
        workspace.main([str(tmp_path)])
    for arguments in ([], ["--help"], ["a", "b", "c"]):
        with pytest.raises(ValueError, match=r"^usage: python -m slm\.analysis\.workspace DIR"):
            workspace.main(arguments)
    monkeypatch.setattr(workspace, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'slm\[wandb-workspaces\]'"):
        workspace.make_workspace(Directory.read(two), "me", "slm")
