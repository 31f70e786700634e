"""Save a workspace in W&B with the charts of an analysis: `python -m slm.analysis.workspace DIR [ENTITY]`.

It needs an account, network access and the package wandb-workspaces. The analysis must be in W&B: run it with
logger.mode=online, or `wandb sync` its offline runs first. docs/scaling.md says how to look at it without an account.
"""

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from slm.analysis.charts import charts
from slm.analysis.record import summary
from slm.analysis.report.directory import Directory
from slm.runtime.command_line import MISTAKES, report
from slm.tracking.wandb_run import CHART_PRESET, has_api_key

USAGE = "usage: python -m slm.analysis.workspace DIR [ENTITY], where DIR is an analysis or a sweep"


def make_workspace(analysis: Directory, entity: str, project: str) -> Any:
    """Return an unsaved workspace: charts that compare the selected analyses, bars of exponents and worth, the runs.

    Raises `ValueError` if the package wandb-workspaces is missing.
    """
    if find_spec("wandb_workspaces") is None:
        raise ValueError("a workspace needs the package wandb-workspaces: pip install 'slm[wandb-workspaces]'")
    import wandb_workspaces.reports.v2 as panels
    import wandb_workspaces.workspaces as workspaces

    keys = list(summary(analysis))
    bars: dict[str, Any] = {
        "Exponents": [key for key in keys if key.startswith("exponent/") and "ci_" not in key],
        "Worth in parameters": [key for key in keys if key.startswith("worth/") and key.endswith("/factor")],
    }
    drawn = [
        panels.CustomChart(
            query={"summaryTable": {"tableKey": f"charts/{key}_table"}},
            chart_name=CHART_PRESET,
            chart_fields=chart.fields,
            chart_strings={"title": chart.title},
        )
        for key, chart in charts(analysis).items()
    ]
    compared = [panels.BarPlot(title=title, metrics=metrics) for title, metrics in bars.items() if metrics]
    runs = [
        panels.ScatterPlot(title="Loss against N", x="params_total", y="val/loss", log_x=True, log_y=True),
        panels.LinePlot(title="Loss against tokens", x="tokens", y=["val/loss"], log_x=True, log_y=True),
    ]
    sections: dict[str, Any] = {
        "Charts of the selected analyses": drawn,
        "Compared by analysis": compared,
        "Training runs": runs,
    }
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=f"Exponents of {analysis.comparison['table'] or analysis.path.name}",
        sections=[workspaces.Section(name=name, panels=shown, is_open=True) for name, shown in sections.items()],
    )


def main(arguments: Sequence[str]) -> int:
    """Save the workspace of an analysis directory, and print its address; returns the exit code."""
    if len(arguments) not in (1, 2) or arguments[0].startswith("-"):
        raise ValueError(USAGE)
    folder = Path(arguments[0])
    try:
        analysis = Directory.read(folder)
    except FileNotFoundError:
        raise ValueError(f"{folder} is not an analysis: it lacks fits.json or comparison.json; {USAGE}") from None
    if "levels" not in analysis.comparison:
        raise ValueError(f"{folder} was written by an older slm: analyse its table again, then save the workspace")
    logger = analysis.settings.get("logger", {})
    if not has_api_key():
        raise ValueError("a workspace needs an account of W&B: run `wandb login` once (docs/scaling.md: without one)")
    import wandb

    try:
        entity = arguments[1] if len(arguments) == 2 else logger.get("entity") or wandb.Api().default_entity
        workspace = make_workspace(analysis, str(entity), logger.get("project", "slm"))
        workspace.save()
        print(workspace.url)
    except wandb.Error as error:
        raise ValueError(f"W&B did not save the workspace: {error}") from None
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except MISTAKES as error:
        sys.exit(report(error))
