"""The report says what the JSON says and nothing else, is whole in itself, and is a function of the directory."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest

from slm.analysis.report.directory import Directory
from slm.report.markdown import table
from slm.runtime.words import count, duration, escape_markdown, format_number, interval, p_value, read_number
from slm.scaling import table_from_frame
from slm.scaling.describe import notes
from tests.analysis.analysed import (
    AUDIT,
    WILD,
    analysed,
    changed,
    one_family,
    read,
    reported,
    without_numbers,
    write,
    write_report,
)
from tests.scaling.samples import power_law, runs
from tests.seeds import generator

PLAIN_DIGITS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")


def markdown(folder: Path) -> str:
    return (folder / "report.md").read_text()


def leaves(value: Any) -> Iterator[Any]:
    """The keys, texts and numbers of what a JSON file holds."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list):
        for item in value:
            yield from leaves(item)
    else:
        yield value


def test_every_number_in_tables_and_verdict_is_one_of_the_json(each: Path) -> None:
    content = [*leaves([read(each, name) for name in ("fits", "comparison", "audit", "settings")])]
    held = np.array([leaf for leaf in content if isinstance(leaf, (int, float)) and not isinstance(leaf, bool)])
    told = {leaf for leaf in content if isinstance(leaf, str) and any(map(str.isdigit, leaf))}
    said = sorted(told | {escape_markdown(text) for text in told}, key=len, reverse=True)
    verbatim = re.compile("|".join(map(re.escape, said)))
    verdict, _, rest = markdown(each).partition("## What was analysed")
    verdict = re.sub(r"<small>.*</small>", "", verdict)
    lines = [*verdict.splitlines(), *(line for line in rest.splitlines() if line.startswith("| "))]
    assert len(lines) > 20
    for line in lines:
        line = re.sub(r"\d+%? of \d+|95% interval|[\d.,:]+ (?:s|min|h|days)\b", "", verbatim.sub("", line))
        line = re.sub(r"(?<=\d),(?=\d{3})", "", line.replace("×10", "e").translate(PLAIN_DIGITS))
        for token in re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e-?\d+)?[%kMBT]?", line):
            assert shows(token, held), f"{token} in {line}"


def shows(token: str, held: np.ndarray) -> bool:
    """Whether a printed number is one of those held: as it is, in percent, or in millions."""
    scale = {"%": 100, "k": 1e-3, "M": 1e-6, "B": 1e-9, "T": 1e-12}.get(token[-1], 1)
    digits, _, power = token.rstrip("%kMBT").partition("e")
    places = len(digits.partition(".")[2])
    unit = 10.0 ** (int(power or 0) - places)
    printed = float(token.rstrip("%kMBT"))
    return bool((np.abs(printed - held * scale) <= 0.5001 * unit + 1e-9 * abs(printed)).any())


def power_fit(folder: Path, target: str) -> dict[str, Any]:
    """The fit of the power law by least squares to the first family."""
    fits = [entry for entry in read(folder, "fits") if (entry["law"], entry["loss"]) == ("power", "least_squares")]
    return next(entry for entry in fits if entry["target"] == target)


def test_the_printed_exponent_is_the_fit_and_its_interval(one: Path) -> None:
    entry = power_fit(one, "loss")
    low, high = entry["ci95"]["alpha"]
    assert f"{entry['params']['alpha']:.4f} [{low:#.4g}, {high:#.4g}]" in markdown(one)


def test_a_parameter_that_is_not_identified_is_never_a_number(one: Path) -> None:
    text = markdown(one)
    lost = [entry for entry in read(one, "fits") if entry["fitted"] and not entry["identified"]]
    assert lost
    for entry in lost:
        for name in set(entry["not_identified"]) - {"A", "B"}:  # coefficients are not in the report at all
            for digits in (3, 4):
                assert not re.search(
                    rf"(?<![\d.]){re.escape(format_number(entry['params'][name], digits))}(?!\d)", text
                ), name
    assert "**NOT IDENTIFIED**" in text
    assert "chinchilla (only): D has one value in all rows" in text


def test_perplexity_exponents_are_labelled_in_text_and_table(two: Path) -> None:
    text = markdown(two)
    assert "**Perplexity** is the exponential of loss" in text
    before, _, after = text.partition("**Perplexity**")
    alpha = format_number(power_fit(two, "perplexity")["params"]["alpha"])
    assert alpha not in before
    assert alpha in after


class Page(HTMLParser):
    """What a page has: tags, attributes, visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_html_is_self_contained_and_holds_every_figure(each: Path) -> None:
    raw = (each / "report.html").read_text()
    page = Page(raw)
    assert not {"link", "iframe", "object", "base"} & set(page.tags)
    style = raw[raw.index("<style>") : raw.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    for tag, name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("src", "srcset", "href"):
            assert value.startswith("data:image/" if tag == "img" else "#"), value[:40]
    figures = sorted((each / "figures").glob("*.svg"))
    assert page.tags.count("img") == len(figures) >= 7
    for path in figures:
        picture = " ".join(path.read_text().split()).replace('"', "'")
        assert picture in [unquote(value.partition(",")[2]) for _, name, value in page.attributes if name == "src"]
        assert f"(figures/{path.stem}.png)" in markdown(each)


def test_contents_link_to_every_heading(two: Path) -> None:
    page = Page((two / "report.html").read_text())
    links = [value[1:] for tag, name, value in page.attributes if (tag, name) == ("a", "href")]
    anchors = [value for tag, name, value in page.attributes if (tag, name) == ("section", "id")]
    assert links == anchors
    assert anchors[0] == "verdict"
    assert markdown(two).startswith("# Scaling analysis of two\n")


def test_text_of_the_table_is_shown_as_it_is_and_breaks_neither_html_nor_tables(two: Path) -> None:
    page = Page((two / "report.html").read_text())
    assert "b" not in page.tags
    assert WILD in page.text
    assert "python sweep.py runs=two.csv 'where=a < b'" in page.text
    lines = markdown(two).splitlines()
    cells = [len(re.findall(r"(?<!\\)\|", line)) if line.startswith("| ") else 0 for line in lines]
    assert all(width == next_width for width, next_width in pairwise(cells) if width and next_width)


def test_the_report_is_a_function_of_the_directory(two: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(two, tmp_path / "elsewhere", ignore=shutil.ignore_patterns("report.*"))
    code = f"from pathlib import Path; from slm.analysis.report import page; page.make_report(Path({str(folder)!r}))"
    subprocess.run([sys.executable, "-c", code], check=True)
    for name in ("report.md", "report.html"):
        assert (folder / name).read_bytes() == (two / name).read_bytes()


def test_one_family_has_no_comparison_and_no_power(one: Path) -> None:
    text = markdown(one)
    assert "There is one family, so there is nothing to compare." in text
    assert "## Power of the design" not in text


def test_compute_is_reported_with_cost_and_target(iso: Path) -> None:
    text = markdown(iso)
    row = next(row for row in read(iso, "comparison")["target"] if row["law"] == "chinchilla")
    assert f"**Least compute for a loss of {format_number(2.2)}**" in text
    assert f"| `chinchilla` | {format_number(row['flops'], 3)} | {duration(row['flops'] / 1e14)} |" in text
    assert "**IsoFLOP profiles**" in text


def test_optima_beyond_the_runs_and_laws_that_contradict_them_are_told(iso: Path, tmp_path: Path) -> None:
    comparison = read(iso, "comparison")
    (row,) = [row for row in comparison["allocation"] if row["law"] == "chinchilla"]
    beyond = row["budgets"][2]["beyond"]
    text = markdown(iso)
    assert f"({format_number(beyond['params'], 3)}x the largest)" in text
    assert "No run of iso reached this loss (the lowest is" in text
    (found,) = comparison["isoflop"]
    first = found["budgets"][0]
    assert f"| {count(first['params'])} [{count(first['low'])}, {count(first['high'])}] |" in text
    assert f"| {count(first['parametric_params'])} | {format_number(first['ratio'], 3)} |" in text
    first |= {"reason": "its lowest point lies outside its runs"}
    found["budgets"][1] |= {"parametric_params": 2 * found["budgets"][1]["high"]}
    row |= {"contradicts": ["its floor is 3, and a run has reached 2.5"], "budgets": []}
    text = markdown(changed(iso, tmp_path / "d", comparison=comparison))
    assert "dropped: its lowest point lies outside its runs" in text
    assert "the `chinchilla` fit disagree** at 1 of 2 budgets" in text
    assert "`chinchilla` contradicts the runs of iso: its floor is 3, and a run has reached 2.5. Its optima" in text
    assert format_number(beyond["params"], 3) + "x the largest)" not in text


def test_given_optima_and_designs_without_budgets_are_told(one: Path, tmp_path: Path) -> None:
    assert "No isoFLOP exponents (approach 2) for only: no 5 sizes have FLOPs within a factor of" in markdown(one)
    given = reported(analysed(tmp_path / "given", one_family(), laws=("power",), optima=True))
    (row,) = read(given, "comparison")["isoflop"]
    assert (
        f"| only | 5 of 5 | {format_number(row['exponent'], 3)} {interval([row['low'], row['high']], 3)} |"
        in markdown(given)
    )
    assert (given / "figures" / "isoflop.png").exists()


def test_a_reference_far_from_its_runs_is_left_out_with_both_ranges(one: Path, tmp_path: Path) -> None:
    comparison = read(one, "comparison")
    far = {"N": {"table": [5e4, 5e6], "fitted": [7e7, 1.6e10], "factor": 1400.0}}
    for row in comparison["references"]:
        if row["reference"] == "Hoffmann 2022":
            row |= {"outside_range": far, "left_out": True, "reference_exponent": None, "curve": None, "ratio": None}
        if row["reference"] == "Besiroglu 2024":
            row |= {"outside_range": far}
    text = markdown(reported(changed(one, tmp_path / "d", comparison=comparison)))
    assert "| Hoffmann 2022 |" not in text
    assert "| Besiroglu 2024 ‡ |" in text
    left_out = "Left out, because the runs are far outside the fitted range: "
    assert f"{left_out}Hoffmann 2022 (N from 70M to 16B): only has 50k to 5M." in text


def test_what_could_not_be_computed_is_a_dash(each: Path, tmp_path: Path) -> None:
    fits, comparison = without_numbers(read(each, "fits")), without_numbers(read(each, "comparison"))
    for entry in fits:
        entry["identified"] = False
        entry["range"] = {name: [1.0, 2.0] for name in entry["range"]}
    write(tmp_path, "fits", fits)
    write(tmp_path, "comparison", comparison)
    write_report(tmp_path)
    text = markdown(tmp_path)
    assert "–" in text
    assert not re.search(r"\b(None|nan|inf)\b", text)
    assert "**NOT AUDITED**" in text


def test_a_controlled_comparison_says_so_and_each_violation_is_named(two: Path, tmp_path: Path) -> None:
    assert "**NOT CONTROLLED**" in markdown(two)
    assert "Families differ in seeds: a 1; b 2." in markdown(two)
    audit = AUDIT | {"controlled": True, "violations": [], "unknown": []}
    text = markdown(changed(two, tmp_path / "d", audit=audit))
    assert "**CONTROLLED**" in text
    assert "NOT CONTROLLED" not in text.partition("## What was analysed")[2]


def lights(folder: Path) -> dict[str, tuple[str, str]]:
    """Question -> how sure, and what the runs say, in the table of the first screen."""
    lines = (
        markdown(folder).partition("| question | how sure | what the runs say |")[2].partition("\n\n")[0].splitlines()
    )
    return {cells[1]: (cells[2], cells[3]) for cells in (re.split(r" ?(?<!\\)\| ?", line) for line in lines[2:])}


def test_a_finding_is_solid_weak_or_unknown_by_what_the_files_say(two: Path, one: Path, tmp_path: Path) -> None:
    """The seven sizes of `two` follow one law with a floor at 1.8, and each family has its own exponent."""
    found = lights(two)
    assert found["Is the comparison controlled?"] == ("◐ weak", "no: families also differ in seeds")
    assert found["Are there enough sizes and seeds to fit a law?"] == (
        "● solid",
        "7 sizes per family, N from 4M to 400M, 2 seeds",
    )
    verdict = read(two, "comparison")["verdict"]
    sure = {True: "● solid", None: "◐ weak", False: "○ unknown"}[verdict["distinguishable"]]
    assert found["Which family scales faster?"][0] == sure
    audit = AUDIT | {"violations": []}
    unknown = lights(changed(two, tmp_path / "unknown", audit=audit))
    assert unknown["Is the comparison controlled?"] == ("○ unknown", "not recorded for every run: schedule")
    audit |= {"controlled": True, "unknown": [], "checked": [{"what": "tokens", "sentence": "Tokens are equal."}]}
    controlled = lights(changed(two, tmp_path / "controlled", audit=audit))
    assert controlled["Is the comparison controlled?"] == ("● solid", "yes, families are matched in tokens")
    assert "Is the comparison controlled?" not in lights(one)
    assert lights(one)["Are there enough sizes and seeds to fit a law?"][0] == "◐ weak"
    assert lights(one)["Do the sizes lie on the law?"][0] == "○ unknown"


def test_a_law_is_solid_only_if_the_runs_reject_the_others(two: Path, tmp_path: Path) -> None:
    comparison = read(two, "comparison")
    law, question = comparison["primary"]["law"], "Which law describes the runs?"
    (other,) = set(comparison["weighed"]) - {law}
    for tenable, sure in ((False, "● solid"), (True, "◐ weak")):
        comparison["weighed"][law]["tenable"], comparison["weighed"][other]["tenable"] = True, tenable
        folder = changed(two, tmp_path / str(tenable), comparison=comparison)
        assert lights(folder)[question][0] == sure
        equation = next(entry["equation"] for entry in read(two, "fits") if entry["law"] == other)
        assert (equation if tenable else other) in lights(folder)[question][1]
    comparison["weighed"][law]["tenable"] = False
    assert lights(changed(two, tmp_path / "rejected", comparison=comparison))[question][0] == "○ unknown"


def test_the_first_screen_says_where_and_when_the_runs_come_from_or_that_this_is_not_recorded(
    two: Path, tmp_path: Path
) -> None:
    unknown = ": not recorded"
    line = (
        f"<small>Hardware{unknown}; precision{unknown}; commit{unknown}; versions{unknown}. Analysed{unknown}.</small>"
    )
    assert line in markdown(two)
    folder = shutil.copytree(two, tmp_path / "d")
    frame = pd.read_csv(folder / "results.csv")
    recorded = {"device": "a*b GPU", "precision": "bf16", "git_commit": "abc", "versions": "torch 2.9.0, slm 0.1.0"}
    frame.assign(**recorded).to_csv(folder / "results.csv", index=False)
    written = {"date": "2026-11-29", "slm": "0.1.0", "commit": "def"}
    write(folder, "settings", read(two, "settings") | {"written": written})
    write_report(folder)
    line = "<small>Hardware: a\\*b GPU; precision: bf16; commit: abc; versions: torch 2.9.0, slm 0.1.0. Analysed:"
    assert f"{line} 2026-11-29 with slm 0.1.0, commit def.</small>" in markdown(folder)


def test_published_claims_stand_beside_their_findings(one: Path, tmp_path: Path) -> None:
    claims = [{"claim": "a | b", "figures": {}, "finding": "It is 0.1105 [0.094, 0.127]."}]
    text = markdown(changed(one, tmp_path / "d", comparison=read(one, "comparison") | {"published": claims}))
    assert "| a \\| b | It is 0.1105 [0.094, 0.127]. |" in text


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(0.110514, 4, "0.1105"), (1151.553, 4, "1,152"), (9.9996e-5, 3, "0.000100"),
     (4.87284e-6, 3, "4.87×10⁻⁶"), (1.2956e22, 3, "1.30×10²²"), (1998.0, 3, "1,998"), (-1151.553, 6, "-1,151.55"),
     (0.0, 4, "0"), (None, 4, "–"), (float("nan"), 4, "–"), (-28.3238, 4, "-28.32"),
     (9.9999, 3, "10.0")],
)  # fmt: skip
def test_numbers_have_the_digits_that_were_asked_for(value: float | None, digits: int, text: str) -> None:
    assert format_number(value, digits) == text
    if text != "–":
        assert read_number(text) == pytest.approx(value, rel=10.0 ** (1 - digits))


def test_small_things_are_worded_as_people_read_them() -> None:
    assert [count(v) for v in (124_635_456, 999_999_999, 1e12, 640, None)] == ["125M", "1B", "1T", "640", "–"]
    assert [p_value(p, 999) for p in (0.001, 0.0014, 0.706)] == ["≤ 0.001", "0.001", "0.706"]
    assert [p_value(p) for p in (1e-9, None, 0.04)] == ["< 0.001", "–", "0.040"]
    assert interval([None, 1.18], 3) == "[open, 1.18]"
    assert table(["a"], []) == ""


def test_remarks_that_differ_in_one_number_are_made_once() -> None:
    same = {"law": "power", "fitted": True, "reasons": {}, "identified": True}
    p_values = {"a": "0.02", "b": "3.8×10⁻⁹"}
    entries = [same | {"family": family, "notes": [f"lack of fit, p = {p}"]} for family, p in p_values.items()]
    assert notes(entries) == ["power (a, b): lack of fit, p = 3.8×10⁻⁹ to 0.02."]


@pytest.mark.parametrize("names", [("007", "008"), ("TRUE", "FALSE"), ("1", "1.5"), ("alpha-7b", "beta")])
def test_names_of_families_stand_as_the_table_has_them(names: tuple[str, str], tmp_path: Path) -> None:
    laws = {name: power_law(20, 0.1 + i / 100) for i, name in enumerate(names)}
    frame = runs(laws, np.geomspace(4e6, 4e8, 4), noise=0.004, seeds=2, seed=3).frame
    table = table_from_frame(frame[["family", "params_total", "tokens", "seed", "loss"]], name="names")
    folder = reported(analysed(tmp_path / "names", table, laws=["power"]))
    assert list(Directory.read(folder).results["family"].unique()) == list(names)
    page = (folder / "report.html").read_text()
    for name in names:
        assert f"<td>{name}</td>" in re.sub(r"<td [^>]*>", "<td>", page)


def test_a_design_is_described_by_its_sizes_and_by_seeds_that_all_have(tmp_path: Path) -> None:
    """Six sizes at three budgets, the families at sizes of their own, and a second seed at four of the six sizes."""
    rows = [
        {"family": family, "params_total": N * factor, "tokens": D, "seed": seed, "loss": 20 * N**-0.1 * D**-0.01}
        for family, factor in (("a", 1), ("b", 100))
        for i, N in enumerate(np.geomspace(1e6, 3.2e7, 6))
        for D in (1e8, 1e9, 1e10)
        for seed in ((1, 2) if i < 4 else (1,))
    ]
    frame = pd.DataFrame(rows)
    frame["loss"] *= np.exp(0.003 * generator(4).standard_normal(len(frame)))
    folder = reported(analysed(tmp_path / "design", table_from_frame(frame, name="design"), laws=["power"]))
    light, answer = lights(folder)["Are there enough sizes and seeds to fit a law?"]
    assert light == "◐ weak"
    assert answer == "6 sizes per family, N from 1M to 3.2B, 1 seed: a second seed at some sizes only"
