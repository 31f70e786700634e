"""Sections on the fits: exponents, references, choice of law, predictions, gain of doubling, certificates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from slm.analysis.report.directory import Directory
from slm.report.markdown import VISIBLE_ROWS, Section, bullets, figure, folded, table
from slm.runtime.words import (
    LOSS_NAMES,
    NOTHING,
    TARGET_NAMES,
    amount,
    count,
    escape_markdown,
    interval,
    is_number,
    listed,
    p_value,
    percent,
    sig,
    size_words,
    with_interval,
)
from slm.scaling.describe import Entry, exponents, floor, is_identified, laws_of, notes, status

SIZE_WORDS_SHORT = {"params_total": "all", "params_non_embedding": "without embeddings", "N": "as the table has it"}
FIT_HEADER = ("family", "law", "exponent", "floor", "R2", "rmse", "AICc", "status")


def exponents_section(analysis: Directory) -> Section:
    """What the verdict rests on first, then other laws, other N, and perplexity in a table of its own."""
    main, target = analysis.primary, TARGET_NAMES[analysis.primary["target"]]
    section = Section("Exponents")
    section.add(
        f"Fits of {target}, N being {size_words(main['size'])}, with {analysis.level:.0%} intervals. A steeper law "
        f"has a "
        "larger exponent. An exponent above a floor and one without a floor are different quantities, and so are "
        "exponents in N, D and C: compare within one law only.",
        fit_table(analysis.own),
        bullets(notes(analysis.own)),
        *_without_smallest(analysis.own),
    )
    others = [entry for entry in analysis.entries() if entry["law"] != main["law"]]
    section.add(_long(f"{target}, other laws", others, VISIBLE_ROWS))
    for size in dict.fromkeys(e["size"] for e in analysis.fits if e["size"] and e["size"] != main["size"]):
        rows = [entry for entry in analysis.entries(size=size) if entry["size"] == size]
        section.add(_long(f"{target}, N being {size_words(size)}", rows))
    for other in dict.fromkeys(e["target"] for e in analysis.fits if e["target"] != main["target"]):
        section.add(*_other_target(analysis, other))
    section.add(
        figure(
            analysis.path,
            "exponents",
            "Exponents with their intervals. Grey and hollow: the data do not identify it. Diamonds: published laws, "
            "read as a straight line over this table's sizes.",
        )
    )
    return section


def fit_table(entries: Sequence[Entry]) -> str:
    """Fits, one a row, and what could not be fitted below."""
    rows = [
        [
            escape_markdown(entry["family"]),
            entry["law"],
            exponents(entry),
            floor(entry),
            sig(entry["r2"]),
            percent(entry["rmse_log"]),
            sig(entry["aicc"]),
            status(entry),
        ]
        for entry in entries
        if entry["fitted"]
    ]
    return "\n\n".join(part for part in (table(FIT_HEADER, rows), not_fitted(entries)) if part)


def not_fitted(entries: Sequence[Entry]) -> str:
    """Fits that were refused, by reason."""
    why: dict[str, list[str]] = {}
    for entry in entries:
        if not entry["fitted"]:
            reason = "; ".join(entry["notes"]).removeprefix("not fitted: ") or "no reason given"
            why.setdefault(reason, []).append(f"{entry['law']} ({entry['family']})")
    return "\n\n".join(
        f"Not fitted: {escape_markdown(', '.join(who))}: {escape_markdown(reason)}." for reason, who in why.items()
    )


def _long(summary: str, entries: Sequence[Entry], visible: int = VISIBLE_ROWS // 2) -> str:
    content = "\n\n".join(part for part in (fit_table(entries), bullets(notes(entries))) if part)
    if sum(entry["fitted"] for entry in entries) > visible:
        return folded(f"{summary} ({len(entries)} fits)", content)
    return f"{summary[0].upper()}{summary[1:]}:\n\n{content}" if content else ""


def _other_target(analysis: Directory, target: str) -> list[str]:
    entries = analysis.entries(target=target)
    if target != "perplexity":
        return [_long(f"{TARGET_NAMES[target]}", entries)]
    warning = (
        f"**Perplexity**: these are exponents of perplexity, the exponential of loss. They are not comparable with the "
        f"exponents of {TARGET_NAMES[analysis.primary['target']]} above, nor with published exponents of loss; "
        f"references "
        "below are converted over the same N range."
    )
    same = [entry for entry in entries if entry["law"] == analysis.primary["law"]]
    rest = [entry for entry in entries if entry["law"] != analysis.primary["law"]]
    return [warning, fit_table(same), _long("perplexity, other laws", rest)]


def _without_smallest(entries: Sequence[Entry]) -> list[str]:
    said = []
    for entry in entries:
        found, name = entry.get("without_smallest"), entry["exponents"][0]
        if found and is_identified(entry, name) and entry["floor"] is None and is_number(found.get(name)):
            said.append(
                f"{escape_markdown(entry['family'])} {sig(found[name])} (instead of {sig(entry['params'][name])})"
            )
    if not said:
        return []
    return [f"Without the smallest size {entries[0]['exponents'][0]} would be: {', '.join(said)}."]


def references_section(analysis: Directory) -> Section | None:
    """Published laws over this table's own sizes."""
    rows = analysis.comparison.get("references") or []
    if not rows:
        return None
    section = Section("Published laws over the same sizes")
    section.add(
        "A published law is evaluated at this table's sizes (and tokens), in the N it was fitted with, and read as a "
        "straight line through them: that is the exponent `power` would find if these models followed it. Only slopes "
        "compare; levels belong to another text and tokenizer."
    )
    read = [row for row in rows if not row.get("left_out")]
    for target in dict.fromkeys(row["target"] for row in read):
        mine = [row for row in read if row["target"] == target]
        content = table(
            ("reference", "family", "N", "`power` here", "reference's exponent", "ratio", "inside the interval"),
            [_reference(row) for row in mine],
        )
        label = f"{TARGET_NAMES[target]}" + (" (not comparable with loss)" if target == "perplexity" else "")
        if len(mine) <= VISIBLE_ROWS // (1 if target == analysis.primary["target"] else 2):
            section.add(f"**Exponents of {label}**", content)
        else:
            section.add(folded(f"Exponents of {label} ({len(mine)} rows)", content))
    if not all(row["same_size_definition"] for row in read):
        section.add("† Not known to be the N that the reference was fitted with.")
    section.add(_outside([row for row in read if row.get("outside_range")], "‡ Read outside of what it was fitted to"))
    section.add(_outside([row for row in rows if row.get("left_out")], "Left out, as the runs are far outside"))
    sources = dict.fromkeys(f"{row['reference']}: {row['source']}" for row in rows)
    return section.add(f"Sources: {escape_markdown('; '.join(sources))}.")


def _outside(rows: Sequence[Entry], heading: str) -> str:
    """For each reference the ranges of its fit and of the families that leave them."""
    said: dict[str, list[str]] = {}
    for row in rows:
        for variable, one in row["outside_range"].items():
            fitted, here = (
                " to ".join(dict.fromkeys(amount(variable, end) for end in one[name])) for name in ("fitted", "table")
            )
            said.setdefault(f"{row['reference']} ({variable} from {fitted})", []).append(
                f"{escape_markdown(row['family'])} has {here}"
            )
    parts = [f"{reference}: {listed(list(dict.fromkeys(who)))}" for reference, who in said.items()]
    return f"{heading}: {'; '.join(parts)}." if parts else ""


def _reference(row: Entry) -> list[str]:
    counted = SIZE_WORDS_SHORT.get(row["size"], "") + ("" if row["same_size_definition"] else " †")
    return [
        escape_markdown(row["reference"]) + (" ‡" if row.get("outside_range") else ""),
        escape_markdown(row["family"]),
        counted,
        with_interval(row["exponent"], [row["ci_low"], row["ci_high"]]),
        sig(row["reference_exponent"]),
        sig(row["ratio"], 3),
        {True: "yes", False: "no"}.get(row["inside"], NOTHING),
    ]


def curves_section(analysis: Directory) -> Section:
    """The picture of the fits."""
    return Section("Curves and residuals").add(
        figure(
            analysis.path,
            "curves",
            "Marks: runs. Line: the law, dashed beyond the data. Dark band: where the law is; light band: where one "
            "more run would fall. Dotted: the floor, where it is identified. Grey dashes: published laws with the "
            "same target and the same N.",
        ),
        figure(analysis.path, "residuals", "A pattern here that families share is something the law leaves out."),
        figure(
            analysis.path,
            "profiles",
            "How much worse the best fit gets when the exponent is held elsewhere: the interval is where |t| stays "
            "under the dotted line.",
        ),
    )


def selection_section(analysis: Directory) -> Section:
    """AICc, BIC, extrapolation and lack of fit of each law."""
    section = Section("Which law")
    rows = analysis.comparison.get("selection") or []
    laws = [law for law in laws_of(analysis.fits) if any(row["law"] == law for row in rows)]
    section.add(
        "Lower AICc and BIC are better, between laws of the same target; less than about 2 apart is no difference. The "
        "extrapolation column predicts the largest size from the smaller ones, which is the harder test. The last "
        f"columns count rows of held-out sizes in the {analysis.level:.0%} interval that the smaller sizes gave for "
        f"them: "
        "the next size, the one after it, and the third.",
        table(_LAW_HEADER, [_law_row(analysis, law, [row for row in rows if row["law"] == law]) for law in laws]),
        _fold_if_long(_criteria(rows), len(rows), "AICc, BIC and errors of every law and family"),
        figure(
            analysis.path,
            "extrapolation",
            "Each of the largest sizes predicted from all smaller ones, by law and family: the error, and the "
            "prediction interval less what was measured. An interval that leaves out zero missed (hollow).",
        ),
    )
    return section


_LAW_HEADER = ("law", "identified in", "rmse, worst family", "extrapolation error, worst family",
               "lack of fit, least p", "inside, next size", "second next", "third next")  # fmt: skip


def _law_row(analysis: Directory, law: str, rows: Sequence[Entry]) -> list[str]:
    ahead = [row["extrapolation_error_log"] for row in rows if is_number(row["extrapolation_error_log"])]
    scatter = [row["rmse_log"] for row in rows if is_number(row["rmse_log"])]
    tests = [entry.get("lack_of_fit") or {} for entry in analysis.entries(law=law)]
    misfit = [test["p"] for test in tests if is_number(test.get("p"))]
    return [
        f"**{law}** (the verdict's)" if law == analysis.primary["law"] else law,
        f"{sum(bool(row['identified']) for row in rows)} of {len(rows)}",
        percent(max(scatter, default=None)),
        percent(max(ahead, key=abs, default=None), sign=True),
        p_value(min(misfit, default=None)),
        *(_inside(analysis, law, sizes_ahead) for sizes_ahead in (1, 2, 3)),
    ]


def _inside(analysis: Directory, law: str, sizes_ahead: int) -> str:
    """Held-out rows of all families that lie in their interval, that many sizes beyond the largest fitted."""
    every = [
        step for entry in analysis.entries(law=law) for step in (entry.get("extrapolation") or {}).get("steps") or []
    ]
    steps = [step for step in every if step["sizes_ahead"] == sizes_ahead]
    return f"{sum(step['n_inside'] for step in steps)} of {sum(step['n_rows'] for step in steps)}" if steps else NOTHING


def _criteria(rows: Sequence[Entry]) -> str:
    header = ("law", "family", "AICc", "BIC", "rmse", "extrapolation error", "inside its interval", "identified")
    return table(
        header,
        [
            [
                row["law"],
                escape_markdown(row["family"]),
                sig(row["aicc"], 5),
                sig(row["bic"], 5),
                percent(row["rmse_log"]),
                percent(row["extrapolation_error_log"], sign=True),
                {True: "yes", False: "no"}.get(row["extrapolation_inside"], NOTHING),
                "yes" if row["identified"] else "no",
            ]
            for row in rows
            if is_number(row["rmse_log"])
        ],
    )


def _fold_if_long(content: str, rows: int, summary: str) -> str:
    return content if rows <= VISIBLE_ROWS else folded(summary, content)


def predictions_section(analysis: Directory) -> Section | None:
    """Results of runs that were not made: the range that all tenable laws allow, then what each law says."""
    rows = [row for entry in analysis.entries() for row in _predicted(analysis, entry)]
    ranges = analysis.comparison.get("envelopes") or []
    if not rows:
        return None
    lacking = dict.fromkeys(
        f"Nothing is predicted at {_point(one['point'])} by {entry['law']}, which needs {listed(one['lacks'])} too."
        for entry in analysis.entries()
        for one in entry.get("not_predicted") or []
    )
    target = TARGET_NAMES[analysis.primary["target"]]
    section = Section("Predictions").add(
        "These lie beyond the data, and no run here has tested whether a law goes on to hold there. The range to quote "
        f"is that of all laws that the data do not reject: from the lowest to the highest end of their "
        f"{analysis.level:.0%} "
        "intervals of one more run. `open` is an end that one of them leaves open.",
        " ".join(lacking),
    )
    if any(row["laws"] for row in ranges):
        range_header = ("family", "at", f"{target} of one run, range", "laws not rejected")
        section.add(table(range_header, [_range(row) for row in ranges]))
    else:
        section.add("The data reject every law here that says anything of these sizes, so there is no range to quote.")
    interval_name = f"{analysis.level:.0%} interval of one run, under this law"
    header = ("family", "law", "at", "beyond the data by", f"predicted {target}", interval_name)
    return section.add(folded("What each law says by itself", table(header, rows)))


def _range(row: Entry) -> list[str]:
    return [
        escape_markdown(row["family"]),
        _point(row["at"]),
        interval([row["low"], row["high"]]) if row["laws"] else "none: every law is rejected",
        ", ".join(row["laws"]) or NOTHING,
    ]


def _predicted(analysis: Directory, entry: Entry) -> list[list[str]]:
    weighed = (analysis.comparison.get("weighed") or {}).get(entry["law"]) or {}
    marks = [] if entry["identified"] else ["not identified"]
    marks += ["**rejected by the data**"] if weighed.get("tenable") is False else []
    return [
        [
            escape_markdown(entry["family"]),
            entry["law"] + (f" ({', '.join(marks)})" if marks else ""),
            _point({v: row[v] for v in entry["range"] if v in row})
            + (f" ({listed(row['ignored'])} is not in this law)" if row.get("ignored") else ""),
            beyond(row),
            sig(row["value"]),
            interval([row["low"], row["high"]]),
        ]
        for row in entry.get("predictions") or []
    ]


def _point(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{v} = {amount(v, value)}" for v, value in values.items())


def beyond(row: Entry) -> str:
    """By how much a prediction lies beyond the rows that its law was fitted to, in each variable."""
    out = [
        f"{v} {sig(factor, 3)}x"
        for v, factor in (row.get("beyond") or {}).items()
        if is_number(factor) and factor > 1 + 1e-7
    ]
    return ", ".join(out) or "within"


def given_section(analysis: Directory) -> Section | None:
    """Published parameters against these rows."""
    tested = [(entry, entry["test"]) for entry in analysis.entries() if entry.get("test")]
    if not tested:
        return None
    held = ", ".join(f"{name} = {sig(value)}" for name, value in tested[0][1]["given"].items())
    rows = [
        [
            escape_markdown(entry["family"]),
            entry["law"],
            *(
                [sig(one["statistic"]), str(one["df"]), p_value(one["p"]), one["method"]]
                if one["refused"] is None
                else [NOTHING, NOTHING, NOTHING, one["refused"]]
            ),
        ]
        for entry, one in tested
    ]
    shared = any(one.get("independent") is False for _, one in tested)
    return Section("Given parameters").add(
        f"The best fit with {held} against the free one: twice the difference of their log likelihoods. Residuals are "
        "taken for normal under least squares, and under Huber's loss to have the density proportional to "
        "exp(-loss/s), each with its own best scale.",
        table(("family", "law", "likelihood ratio", "degrees of freedom", "p", "by"), rows),
        "Rows share runs or shapes and are not independent: p is too small." if shared else "",
    )


def doubling_section(analysis: Directory) -> Section | None:
    """What doubling N is worth."""
    ends, every, without = [], [], []
    for entry in analysis.own:
        rows = _doublings(entry)
        ends += [rows[0], rows[-1]] if len(rows) > 1 else rows
        every += rows
        without += [] if rows else [escape_markdown(entry["family"])]
    if not every:
        return None
    target = TARGET_NAMES[analysis.primary["target"]]
    header = ("family", "from N", f"{target} gained by doubling N", "measured between sizes", "twice N is")
    return Section("Gain of doubling").add(
        f"The {target} at N less that at 2N along the law, with its {analysis.level:.0%} interval. The gain falls "
        f"with size "
        "by the same rule everywhere, so no size is a knee or a sweet spot; where to stop depends on what a parameter "
        "costs.",
        table(header, ends),
        folded("From every size", table(header, every)) if len(every) > len(ends) else "",
        f"None is given for {listed(without)}, where the fit has no band." if without else "",
        figure(
            analysis.path,
            "doubling",
            "Gain of doubling N from each size that was run, with its band. Hollow: twice the size lies beyond the "
            "data. Crosses: measured, where two sizes are about a factor of two apart.",
        ),
    )


def _doublings(entry: Entry) -> list[list[str]]:
    found = entry.get("doubling") or {}
    columns = [found.get(name) or [] for name in ("x", "gain", "low", "high", "measured", "beyond")]
    return [
        [
            escape_markdown(entry["family"]),
            count(x),
            with_interval(gain, [low, high], 3),
            sig(measured, 3),
            "beyond the data" if beyond else "within the data",
        ]
        for x, gain, low, high, measured, beyond in zip(*columns, strict=True)
        if is_number(gain)
    ]


def certificates_section(analysis: Directory) -> Section:
    """How far each optimum can be trusted, for every fit."""
    section = Section("Appendix: certificates of all fits")
    section.add(
        "Each fit is started from many places. `starts` is the share that reached the best objective; the gradient "
        "norm is relative and near 0 at an optimum; a large condition number means that parameters trade off against "
        "each other. `unit` is what counts as independent: a run, or the mean over the seeds of a cell."
    )
    groups: dict[tuple[str, str, str], list[Entry]] = {}
    for entry in analysis.fits:
        groups.setdefault((entry["target"], entry["size"] or "", entry["loss"]), []).append(entry)
    section.add(not_fitted([entry for entry in analysis.entries() if not entry["fitted"]]))
    for (target, size, loss), entries in groups.items():
        what = f"{TARGET_NAMES[target]}, {size_words(size) if size else 'laws without N'}, {LOSS_NAMES[loss]}"
        rows = [_certificate(entry) for entry in entries if entry["fitted"]]
        section.add(folded(f"{what} ({len(rows)} fits)", table(_CERTIFICATE, rows)))
    return section


_CERTIFICATE = ("family", "law", "objective", "starts", "gradient norm", "condition number", "at bound", "converged",
                "identified", "intervals by", "unit", "runs")  # fmt: skip


def _certificate(entry: Entry) -> list[str]:
    agreeing = (
        f"{entry['starts_agreeing']:.0%} of {entry['starts']}" if is_number(entry["starts_agreeing"]) else NOTHING
    )
    return [
        escape_markdown(entry["family"]),
        entry["law"],
        sig(entry["objective"], 6),
        agreeing,
        sig(entry["gradient_norm"], 2),
        sig(entry["condition_number"], 3),
        ", ".join(entry["at_bound"]) or "none",
        "yes" if entry["converged"] else "**NO**" if entry["fitted"] else NOTHING,
        "yes" if entry["identified"] else f"no: {', '.join(entry['not_identified'])}",
        entry["covariance_method"].replace("_", " "),
        entry.get("unit", NOTHING),
        str(entry["n_runs"]),
    ]
