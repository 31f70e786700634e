"""Sections on the verdict and on families side by side."""

from __future__ import annotations

from collections.abc import Sequence

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
    plural,
    sig,
    size_words,
    with_interval,
)
from slm.scaling.describe import Entry

MODEL_NAMES = {
    "one_law": "one law for all",
    "efficiency": "one law, N (and D) rescaled by family",
    "shared_exponents": "shared exponents, all else by family",
    "separate": "separate laws",
}


def verdict_section(analysis: Directory) -> Section:
    """The answer and its conditions."""
    verdict = analysis.comparison["verdict"]
    return Section("Verdict").add(
        f"**{escape_markdown(verdict['headline'])}**",
        bullets([escape_markdown(sentence) for sentence in verdict["sentences"]]),
        f"Matched-budget audit: **{_audit_label(analysis)}**.",
    )


def _audit_label(analysis: Directory) -> str:
    if not analysis.audit:
        return "NOT AUDITED"
    if len(analysis.families) < 2:
        return "ONE FAMILY, nothing to compare"
    return "CONTROLLED" if analysis.audit["controlled"] else "NOT CONTROLLED"


def analysed_section(analysis: Directory) -> Section:
    """The table, and how the primary law was chosen."""
    main, found = analysis.primary, analysis.comparison
    name = analysis.comparison["table"]
    counted = (
        f"{plural(found['n_rows'], 'row')} of {plural(found['n_runs'], 'run')} in {plural(found['n_cells'], 'cell')} "
        f"(a cell is a size and budget; its runs differ in seed), of "
        f"{plural(len(analysis.families), 'family', 'families')}"
    )
    why = f"It is the law of the verdict because {escape_markdown(main['why'])}." if main.get("why") else ""
    section = Section("What was analysed").add(
        (f"Table `{escape_markdown(name)}`: " if name else "") + counted + ".",
        f"The verdict is about **{analysis.equation(main['law'])}** (`{main['law']}`), L being "
        f"{TARGET_NAMES[main['target']]} and N {size_words(main['size'])}, fitted by {LOSS_NAMES[main['loss']]}"
        f"{'' if main['loss'] == 'linear' else ' of log residuals'}. {why}".strip(),
        _ranges(analysis),
        bullets([escape_markdown(note) for note in found["notes"]]),
    )
    skipped = [f"`{row['law']}`: {escape_markdown(row['reason'])}" for row in found.get("skipped") or []]
    return section.add(f"Not fitted: {'; '.join(skipped)}." if skipped else "")


def _ranges(analysis: Directory) -> str:
    rows = []
    for entry in analysis.own:
        spans = [f"{v} from {amount(v, low)} to {amount(v, high)}" for v, (low, high) in entry["range"].items()]
        rows.append([escape_markdown(entry["family"]), str(entry["n_runs"]), str(entry["n_cells"]), "; ".join(spans)])
    return table(("family", "runs", "cells", "range"), rows)


def audit_section(analysis: Directory) -> Section:
    """Whether the families differ in nothing else."""
    section = Section("Matched-budget audit")
    if not analysis.audit:
        return section.add("**NOT AUDITED**: the directory holds no audit.")
    section.add(f"**{_audit_label(analysis)}**")
    for key, heading in (("violations", "Differs"), ("varies", "Varies within the family")):
        items = analysis.audit.get(key) or []
        if items:
            section.add(f"{heading}:", bullets([escape_markdown(item["sentence"]) for item in items]))
    unknown = [escape_markdown(item["what"]) for item in analysis.audit.get("unknown") or []]
    section.add(f"Not known, because the table does not say it for every run: {listed(unknown)}." if unknown else "")
    matched = [escape_markdown(item["sentence"]) for item in analysis.audit.get("checked") or []]
    return section.add("Matched:" if matched else "", bullets(matched))


def published_section(analysis: Directory) -> Section | None:
    """The published study's claims beside what its rows say."""
    claims = analysis.comparison.get("published")
    if not claims:
        return None
    rows = [[escape_markdown(row["claim"]), escape_markdown(row["finding"])] for row in claims]
    return Section("The published study, reviewed").add(
        "What the study says, and what the same rows say when analysed. Each figure was computed from these rows.",
        table(("the study's claim", "what the rows say"), rows),
    )


def paired_section(analysis: Directory) -> Section | None:
    """Families at the same sizes: slopes and levels of their log ratios."""
    found = analysis.comparison.get("paired") or {}
    pairs = found.get("pairs") or []
    if not pairs:
        return None
    farthest = max((pair["farthest"] for pair in pairs if is_number(pair["farthest"])), default=0.0)
    moved = f", moved to one size where they differ by up to {farthest:.1%}" if farthest > 1e-3 else ""
    section = Section("Families at the same sizes").add(
        "What two families share at a size, such as its deviation from any smooth law, cancels in the ratio of their "
        f"losses. Each pair is compared at the sizes that both have{moved}. The slope of the log ratio against log N "
        "is a difference of local exponents, -dlog L / dlog N, whatever the law; its height is a difference of level. "
        "`p, any floor` is the largest p that the slope has if the families follow one law with a floor, any that the "
        "runs do not reject, and differ by a constant factor on N. p-values are adjusted over the pairs (Holm).",
        paired_table(pairs),
        above_table(pairs),
        figure(analysis.path, "ratios", "Ratios at the same sizes: means over seeds, line and its interval."),
        levels_table(pairs, TARGET_NAMES[analysis.primary["target"]]),
    )
    left = [
        f"{escape_markdown(row['a'])} and {escape_markdown(row['b'])}: {row['reason']}" for row in found["unmatched"]
    ]
    return section.add("Not paired:" if left else "", bullets(left))


def paired_table(pairs: Sequence[Entry]) -> str:
    """Slopes of log ratios with their adjusted p."""
    rows = [
        [
            f"{escape_markdown(pair['a'])} - {escape_markdown(pair['b'])}",
            str(len(pair["sizes"])),
            with_interval(pair["delta"], [pair["ci_low"], pair["ci_high"]], 3),
            p_value(pair["p_adjusted"]),
            p_value(pair["p_any_floor_adjusted"]),
            percent(pair["spread"]),
            sig(pair["detectable"], 3),
        ]
        for pair in pairs
    ]
    header = ("pair", "sizes", "difference of exponents", "p", "p, any floor", "scatter of a ratio", "would be found")
    return table(header, rows)


def above_table(pairs: Sequence[Entry]) -> str:
    """Differences of exponents above a shared floor, where the runs reject straight lines."""
    rows = [
        [
            f"{escape_markdown(pair['a'])} - {escape_markdown(pair['b'])}",
            sig(one["floor"], 4),
            with_interval(one["delta"], [one["ci_low"], one["ci_high"]], 3),
            p_value(one["p_adjusted"]),
            sig(one["detectable"], 3),
        ]
        for pair in pairs
        for one in [pair.get("above_floor")]
        if one
    ]
    header = ("pair", "floor of both", "difference of exponents above it", "p, any floor", "would be found")
    return (
        "The runs reject straight lines, so exponents are compared above a floor that both families of a pair share. "
        "Interval and p hold for every floor that they do not reject.\n\n" + table(header, rows)
        if rows
        else ""
    )


def levels_table(pairs: Sequence[Entry], target: str) -> str:
    """Ratios at the middle size, and what they are worth in parameters."""
    rows = []
    for pair in pairs:
        worth = [pair["worth"], pair["worth_by_size"][0], pair["worth_by_size"][-1]]
        rows.append(
            [
                f"{escape_markdown(pair['a'])} / {escape_markdown(pair['b'])}",
                percent(pair["level_above"], sign=True),
                p_value(pair["level_p_adjusted"]),
                *(with_interval(one["factor"], [one["low"], one["high"]], 3) for one in worth),
            ]
        )
    header = (
        "pair",
        f"{target} above",
        "p",
        "worth, times the parameters",
        "at the smallest size",
        "at the largest size",
    )
    return table(header, rows)


def comparison_section(analysis: Directory) -> Section:
    """Exponents under the law of the verdict, nested models, efficiency, pooling and ranking."""
    section = Section("Comparison of families by a law")
    law = analysis.compared
    if law is None:
        why = "There is one family" if len(analysis.families) == 1 else "Fewer than two families could be fitted"
        return section.add(f"{why}, so there is nothing to compare.")
    left = law.get("left_out") or []
    section.add(
        f"Under {law_name(analysis, law['law'])}."
        + (f" Left out, not fitted or not identified: {escape_markdown(listed(left))}." if left else ""),
        _joint(law),
        pairs_table(law),
        figure(analysis.path, "differences", "Differences of exponents between families, each by its own fit."),
        models_table(law),
        _explained(law),
        bullets(efficiency(law, analysis.level)),
        _pooled(analysis, law),
    )
    others = [one for name, one in analysis.comparison["laws"].items() if name != law["law"]]
    section.add(folded(f"The same test under {plural(len(others), 'other law')}", _other_laws(others)))
    return section.add(*_ranking(analysis))


def _joint(law: Entry) -> str:
    said = [f"{name}: p = {p_value(test['p'])}".replace("= <", "<") for name, test in law["joint"].items()]
    if not said:
        return "No exponent is identified in two families, so none is compared."
    common = law.get("common_range")
    over = (
        f" Fits are over the sizes that all families span, {count(common['range'][0])} to {count(common['range'][1])}."
        if common and common["range"]
        else ""
    )
    return (
        f"All families have one exponent (Welch's test, each with its own scatter): {'; '.join(said)}.{over} Intervals "
        "and p of the pairs are Welch's too."
    )


def law_name(analysis: Directory, law: str) -> str:
    """A law as people write it, with its key."""
    return f"{analysis.equation(law)} (`{law}`)"


def models_table(law: Entry) -> str:
    """Nested models with their likelihood ratios against separate laws."""
    tests = {test["restricted"]: test for test in law["tests"] if test["wider"] == "separate"}
    rows = []
    for model in law["models"]:
        test = tests.get(model["model"], {})
        replicates = test.get("replicates")
        rows.append(
            [
                MODEL_NAMES.get(model["model"], model["model"]) + ("" if model["converged"] else " (did not converge)"),
                str(model["parameters"]),
                sig(model["aicc"]),
                sig(model["aicc_above_best"], 3),
                sig(test.get("statistic"), 3),
                str(test["df"]) if test else NOTHING,
                p_value(test.get("p"), replicates),
                str(replicates) if replicates else NOTHING,
                p_value(test.get("p_chi2")),
            ]
        )
    header = ("model", "parameters", "AICc", "AICc above best", "LR", "df", "p calibrated", "simulations", "p chi2")
    return table(header, rows)


def _explained(law: Entry) -> str:
    if not law["independent"]:
        return "Rows share runs or shapes, so no likelihood ratio is shown: it would take them for independent."
    words = (
        "LR is the likelihood ratio against separate laws. `p calibrated` comes from data simulated under the "
        "restricted model with every family's own scatter, because `p chi2` is too small with few runs."
    )
    levels = next((t for t in law["tests"] if t["restricted"] == "one_law" and t["wider"] != "separate"), None)
    if levels is None:
        return words
    p = _is(p_value(levels["p"], levels["replicates"]))
    return (
        f"{words} One law for all against a constant factor on size by family: LR {sig(levels['statistic'], 3)}, p {p}."
    )


def _is(p: str) -> str:
    return p if p[0] in "<≤–" else f"= {p}"


def pairs_table(law: Entry) -> str:
    """Differences of exponents with their adjusted p."""
    rows = []
    for row in law["pairs"]:
        known = row["identified"] and is_number(row["delta"])
        rows.append(
            [
                f"{escape_markdown(row['a'])} - {escape_markdown(row['b'])}",
                row["exponent"],
                with_interval(row["delta"], [row["ci_low"], row["ci_high"]], 3) if known else "not identified",
                p_value(row["p"]) if known else NOTHING,
                p_value(row["p_adjusted"]) if known else NOTHING,
                p_value(row["p_any_floor_adjusted"]) if known else NOTHING,
            ]
        )
    return table(("pair", "exponent", "difference", "p", "Holm-adjusted p", "the same, any floor"), rows)


def efficiency(law: Entry, level: float) -> list[str]:
    """rho_N and rho_D in words, with whether the model they belong to holds."""
    rows = law.get("efficiency") or []
    models = {t["restricted"]: t for t in law["tests"] if t["wider"] == "separate"}
    test = models.get("efficiency") or models.get("shared_exponents")
    said = []
    for row in rows:
        thing = {"N": "parameter", "D": "training token", "C": "FLOP"}.get(row["variable"], row["variable"])
        ends = [row["low"], row["high"]]
        wide = not all(map(is_number, ends)) or ends[0] <= 0 or ends[1] / ends[0] > 100
        told = "an unknown number of" if wide else f"{with_interval(row['factor'], ends, 3)}"
        said.append(
            f"One {thing} of {escape_markdown(row['family'])} is worth {told} {thing}s of "
            f"{escape_markdown(row['reference'])}."
        )
    if said and test and is_number(test["p"]):
        p = p_value(test["p"], test.get("replicates"))
        holds = "is rejected, so take these as a summary only" if test["p"] < 1 - level else "is not rejected"
        said.append(
            f"The model behind these factors (families differ by a factor on size and data only) {holds} (p {_is(p)})."
        )
    return said


def _pooled(analysis: Directory, law: Entry) -> str:
    rows = [
        [
            name,
            with_interval(one["mean"], [one["low"], one["high"]]),
            with_interval(one["tau"], [0, one["tau_high"]], 3),
            interval([one["next_low"], one["next_high"]]),
            p_value(one["q_p"]),
        ]
        for name, one in (law.get("pooled") or {}).items()
        if one
    ]
    if not rows:
        return ""
    words = "Mixed-effects summary: families as draws from a population of families"
    few = "" if len(analysis.families) > 4 else f", of which {len(analysis.families)} is a small sample"
    header = (
        "exponent",
        "mean over families",
        "spread between families (tau)",
        "a family not trained",
        "p of no spread",
    )
    return f"{words}{few}.\n\n{table(header, rows)}"


def _other_laws(laws: Sequence[Entry]) -> str:
    rows = []
    for law in laws:
        for name, test in law["joint"].items():
            rows.append([f"`{law['law']}`", name, escape_markdown(listed(test["families"])), p_value(test["p"])])
    return table(("law", "exponent", "families that identify it", "p of one exponent for all"), rows)


def _ranking(analysis: Directory) -> list[str]:
    ranking = analysis.comparison["ranking"]
    usable = [row for row in ranking["rankings"] if row["usable"]]
    order = " > ".join(ranking["primary_order"])
    if not order:
        return [f"**Ranking**: none, because {escape_markdown(ranking['unknown'])}."]
    blocks = [f"**Ranking** (steepest first): {escape_markdown(order)}."]
    if ranking["survives"] is None:
        return [*blocks, f"Whether the order survives cannot be said: {escape_markdown(ranking['unknown'])}."]
    blocks.append(
        f"The same order in {ranking['same_order']} of {ranking['compared_with']} other fits in the same variable. "
        + _survival(ranking["survives_change_of"])
    )
    pairs = [
        [escape_markdown(p["steeper"]), escape_markdown(p["flatter"]), f"{p['same']} of {p['of']}"]
        for p in ranking["pairs"]
    ]
    blocks.append(table(("steeper", "flatter", "also in"), pairs))
    rows = [
        [
            f"`{row['law']}`",
            TARGET_NAMES[row["target"]],
            size_words(row["size"]) if row["size"] else NOTHING,
            LOSS_NAMES[row["loss"]],
            escape_markdown(" > ".join(row["order"])),
        ]
        for row in usable
    ]
    why = _unused([row for row in ranking["rankings"] if not row["usable"]])
    listing = table(("law", "target", "N", "fitted by", "order"), rows)
    content = f"{listing}\n\n{why}"
    blocks.append(content if len(rows) <= VISIBLE_ROWS // 2 else folded(f"All {len(rows)} rankings", content))
    return blocks


def _survival(changes: dict[str, bool]) -> str:
    kept = [_CHANGES[what] for what, same in changes.items() if same]
    lost = [_CHANGES[what] for what, same in changes.items() if not same]
    said = [f"It survives a change of {listed(kept)}."] if kept else []
    return " ".join([*said, f"It does **not** survive a change of {listed(lost)}."] if lost else said)


def _unused(rows: Sequence[Entry]) -> str:
    """How many fits rank nothing, and why."""
    poor = sum(not row.get("tenable", True) for row in rows)
    reasons = [
        f"{number} {reason}"
        for number, reason in (
            (len(rows) - poor, "with an exponent that is not identified"),
            (poor, "under a law that misses the data by much more than the best one"),
        )
        if number
    ]
    return f"Fits that rank nothing: {', '.join(reasons)}." if rows else ""


_CHANGES = {"law": "law", "target": "target", "size": "N", "loss": "what the fit minimises"}


def power_section(analysis: Directory) -> Section | None:
    """What this design could have seen."""
    paired = (analysis.comparison.get("paired") or {}).get("pairs") or []
    law = analysis.compared
    if law is None and not paired:
        return None
    section = Section("Power of the design")
    power = (law or {}).get("power") or {}
    chance = (
        f"{analysis.comparison['paired']['power']:.0%}"
        if is_number(analysis.comparison["paired"]["power"])
        else NOTHING
    )
    rows = [
        [f"{escape_markdown(row['a'])} - {escape_markdown(row['b'])}", how, sig(row["detectable"], 3)]
        for how, found in (
            ("at the same sizes", paired),
            ("above a shared floor", [{**row, **row["above_floor"]} for row in paired if row.get("above_floor")]),
            ("by the law", power.get("by_pair") or []),
        )
        for row in found
    ]
    if not any(is_number(row["detectable"]) for row in (*paired, *(power.get("by_pair") or []))):
        return section.add(
            "This design could not have detected any difference of exponents with confidence: an exponent is not "
            "identified."
        )
    section.add(
        f"The difference of exponents that each comparison finds in {chance} of cases, at the scatter of that pair, "
        f"adjusted over the pairs. No difference found means no more than that.",
        table(("pair", "compared", "would be found"), rows),
    )
    advice = analysis.comparison["paired"]["advice"] if paired else power.get("advice")
    if advice:
        section.add(f"To find {sig(advice['difference'], 3)} takes {advice['text']}.")
    return section
