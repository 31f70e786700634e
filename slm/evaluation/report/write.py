"""results.csv, report.md and figures/ of an evaluation directory, from the entries of results.json and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from slm.evaluation.report.figures import draw_figures
from slm.evaluation.report.fits import fits
from slm.evaluation.report.methods import files_section, methods_section, notes_section
from slm.evaluation.report.quality import quality_section
from slm.evaluation.report.results import Entry, Results
from slm.evaluation.report.rows import rows, to_csv
from slm.evaluation.report.scaling import gain_section, scaling_section
from slm.evaluation.report.speed import speed_section
from slm.evaluation.report.study import published_points, study_section
from slm.evaluation.report.summary import summary_section
from slm.evaluation.report.tasks import tasks_section
from slm.report.markdown import Section, figure
from slm.runtime.files import write_whole


def write_report(folder: Path, results: list[Entry], *, command: str) -> list[Path]:
    """Write results.csv, figures/*.png and .svg, and last report.md into `folder`; returns the files written.

    `results` are entries of results.json (docs/evaluation_results.md), whose parts may be missing. `command` is what
    was typed. Every file is written whole or not at all.
    """
    of = Results(results)
    table = folder / "results.csv"
    write_whole(table, to_csv(rows(of)))
    laws = fits(of)
    drawn = draw_figures(folder, of, laws)
    there = {path.stem for path in drawn}
    sections = [
        summary_section(of, laws),
        quality_section(of),
        speed_section(of),
        tasks_section(of),
        scaling_section(of, laws, folder),
        gain_section(of, folder),
        study_section(of),
        notes_section(of),
        methods_section(of, command),
        files_section(),
    ]
    report = folder / "report.md"
    captions = {title: (name, words) for title, name, words in _captions(of, laws) if name in there}
    text = _text([section for section in sections if section], captions, folder)
    write_whole(report, text)
    return [table, *drawn, report]


def _captions(of: Results, laws: Sequence[Entry]) -> list[tuple[str, str, str]]:
    """Section, figure, caption."""
    bars = "Bars: 2 standard errors."
    law = " Grey: the power law of each family with three sizes or more, and its 95% band." if laws else ""
    published = of.fit_target == "loss" and published_points(of)
    diamonds = " Grey diamonds: the published figures, by the same protocol." if published else ""
    pale = (
        "Bars: 2 standard errors, and the spread of the speed. Only speeds measured under the same conditions. A "
        "checkpoint is pale if another is at least as good in both, and better in one."
    )
    return [
        ("Quality", "size", bars + law + diamonds),
        ("Speed and memory", "pareto", pale),
        ("Tasks", "tasks", bars),
    ]


def _text(sections: Sequence[Section], captions: Mapping[str, tuple[str, str]], folder: Path) -> str:
    for section in sections:
        if section.title in captions:
            section.add(figure(folder, *captions[section.title]))
    return "\n\n".join(["# Evaluation", *map(Section.markdown, sections)]) + "\n"
