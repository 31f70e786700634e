"""The whole analysis of a table: fits, comparison, references, allocation, as plain data for report and figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from slm.scaling.compare import compare_law
from slm.scaling.context import (
    allocation_entries,
    isoflop_entries,
    pareto_entries,
    references_entries,
    target_entries,
)
from slm.scaling.entries import Entry, Fitted, fit_group, plain
from slm.scaling.envelope import envelopes
from slm.scaling.laws import VARIABLES, Law, get_law, number_of
from slm.scaling.paired import compare_pairs
from slm.scaling.published import is_published, published_claims
from slm.scaling.ranking import rankings, survival
from slm.scaling.sample import missing_columns
from slm.scaling.selection import choose_law, curved, selection, weigh
from slm.scaling.settings import Settings
from slm.scaling.solver import Loss
from slm.scaling.tables import Table
from slm.scaling.verdict import verdict

Say = Callable[[str, int, int], None]
"""Told what is being done, and how much of how much is done."""


@dataclass(frozen=True)
class Analysis:
    """What goes into fits.json and comparison.json."""

    fits: list[Entry]
    comparison: Entry


@dataclass(frozen=True)
class _Group:
    law: Law
    target: str
    size: str
    loss: Loss
    thorough: bool


def analyse(
    table: Table,
    settings: Settings | None = None,
    *,
    controlled: bool | None = None,
    seed: int = 1,
    say: Say = lambda what, done, total: None,
    verdict_only: bool = False,
) -> Analysis:
    """Fit every law that the table allows, compare the families, and say what follows.

    `controlled` is what an audit found (None: not audited); it only enters the words of the verdict. Results depend on
    the table, the settings and `seed` alone. `verdict_only` leaves out what the verdict does not rest on: bands,
    predictions, other targets, a second loss, references, allocation. Raises `ValueError` if no law can be fitted to
    any family.
    """
    settings = settings or Settings()
    target, size = _primary(table, settings)
    groups, skipped = _plan(table, settings, target, size)
    if verdict_only:
        groups = [group for group in groups if group.thorough]
    steps = len(groups) + sum(group.thorough for group in groups) + 1
    entries: list[Entry] = []
    primary: dict[str, dict[str, Fitted]] = {}
    for place, group in enumerate(groups):
        say(f"fitting {group.law.name} to {group.target}", place, steps)
        # A generator of its own for each group: a law that is left out changes no other's bootstrap.
        rng = np.random.default_rng([seed, number_of(group.law.name), place if not group.thorough else 0])
        fitted = fit_group(
            table,
            group.law,
            group.target,
            group.size,
            settings,
            rng,
            loss=group.loss,
            thorough=group.thorough and not verdict_only,
        )
        entries += [one.entry for one in fitted.values()]
        if group.thorough:
            primary[group.law.name] = fitted
    if not any(entry["fitted"] for entry in entries):
        reasons = dict.fromkeys(f"{entry['law']} {note}" for entry in entries for note in entry["notes"])
        raise ValueError(f"no law can be fitted to {table.name}: " + "; ".join(list(reasons)[:4]))
    weighed = weigh(primary)
    law, why = choose_law(primary, weighed, settings.law)
    compared: dict[str, Entry] = {}
    for place, name in enumerate(dict.fromkeys((law, *primary))):
        say(f"comparing families under {name}", len(groups) + place, steps)
        rng = np.random.default_rng([seed, 1000, number_of(name)])
        found = compare_law(primary[name], settings, rng, thorough=name == law)
        if found:
            compared[name] = found
    comparison = _comparison(table, settings, entries, primary, law, target, size)
    comparison |= {"laws": compared, "weighed": weighed}
    comparison["envelopes"] = envelopes(primary, weighed, law)
    variables = {v for of in primary.values() for one in of.values() if one.fit is not None for v in one.entry["range"]}
    covariates = sorted(variables - set(VARIABLES))
    comparison["paired"] = compare_pairs(
        table,
        target,
        size,
        covariates,
        curved=curved(primary, weighed, law),
        level=settings.level,
        power=settings.power,
    )
    comparison["primary"]["why"] = why
    comparison["notes"] += _asked_in_vain(settings, entries)
    say("references and allocation", steps - 1, steps)
    comparison["skipped"] = skipped
    comparison |= (
        {}
        if verdict_only
        else {
            "references": references_entries(table, size, entries),
            "isoflop": isoflop_entries(table, primary, settings, target, size),
            "allocation": allocation_entries(table, primary, settings, target, size),
            "target": target_entries(table, primary, settings, target, size),
            "pareto": pareto_entries(table, target, size),
            "published": published_claims() if is_published(table.frame) else None,
        }
    )
    comparison["verdict"] = verdict(comparison, entries, controlled)
    return Analysis(plain(entries), plain(comparison))


def _primary(table: Table, settings: Settings) -> tuple[str, str]:
    """Target and N of the verdict."""
    marks = [c for c in ("tokenizer_fingerprint", "tokenizer", "vocab_size") if c in table.frame]
    tokenizers = max((table.frame[c].nunique() for c in marks), default=1)
    auto = "bits_per_byte" if tokenizers > 1 and "bits_per_byte" in table.targets else table.targets[0]
    target = auto if settings.target == "auto" else settings.target
    size = table.sizes[0] if settings.size == "auto" else settings.size
    for name, value, there in (("target", target, table.targets), ("size", size, table.sizes)):
        if value not in there:
            raise ValueError(f"analysis.{name}={value}: the table has {', '.join(there)}")
    return target, size


def _plan(table: Table, settings: Settings, target: str, size: str) -> tuple[list[_Group], list[Entry]]:
    """What to fit: everything asked for that the table has columns for; and what is skipped, with the reason."""
    groups, skipped = [], []
    targets = [target, *(t for t in settings.targets if t in table.targets and t != target)]
    sizes = [size, *(s for s in settings.sizes if s in table.sizes and s != size)]
    for name in settings.every_law:
        law = get_law(name, settings.formulas, table.frame.columns)
        missing = missing_columns(table, law, target, size)
        if missing:
            reason = f"the table has no {' and no '.join(_described(missing, table))}"
            if name == settings.law:
                raise ValueError(f"analysis.law={name}: {reason}")
            skipped.append({"law": name, "reason": reason})
            continue
        for t in targets:
            for s in sizes if "N" in law.variables else [""]:
                main = t == target and s in ("", size)
                groups.append(_Group(law, t, s, settings.fit_loss, main))
                if main:
                    groups.append(_Group(law, t, s, settings.other_loss, False))
    _check_names(settings, table, [group.law for group in groups])
    return groups, skipped


def _check_names(settings: Settings, table: Table, laws: Sequence[Law]) -> None:
    """Raise `ValueError` for a point to predict or a parameter to test that no law could take."""
    for point in (one for one in settings.predict if isinstance(one, Mapping)):
        unknown = [name for name in point if name not in VARIABLES and name not in table.frame]
        if unknown:
            raise ValueError(
                f"analysis.predict has {unknown[0]}, which is none of {', '.join(VARIABLES)} and no column of the table"
            )
    if settings.test and not any(set(settings.test) <= set(law.parameters) for law in laws):
        raise ValueError(
            f"analysis.test has {', '.join(settings.test)}, and no law that is fitted has all of these parameters: "
            + "; ".join(dict.fromkeys(f"{law.name} has {', '.join(law.parameters)}" for law in laws))
        )


def _described(missing: Sequence[str], table: Table) -> list[str]:
    return [f"{name} above 0 in every row" if name in table.frame else name for name in missing]


def _asked_in_vain(settings: Settings, entries: list[Entry]) -> list[str]:
    """A sentence on each formula that no family could be fitted with, and on given parameters that no law has."""
    said = []
    for name in settings.formulas or ():
        own = [entry for entry in entries if entry["law"] == name]
        if own and not any(entry["fitted"] for entry in own):
            said.append(f"The formula {name} was {own[0]['notes'][0]}.")
    if settings.test and not any(entry.get("test") for entry in entries):
        said.append(f"analysis.test was not made: no law that was fitted has all of {', '.join(settings.test)}.")
    return said


def _comparison(
    table: Table,
    settings: Settings,
    entries: list[Entry],
    primary: dict[str, dict[str, Fitted]],
    law: str,
    target: str,
    size: str,
) -> Entry:
    families = table.families
    every = rankings(entries, families)
    first = next(
        r
        for r in every
        if (r["law"], r["target"], r["loss"]) == (law, target, settings.fit_loss.name) and r["size"] in (None, size)
    )
    return {
        "table": table.name,
        "families": families,
        "tokens": _tokens(table),
        "n_rows": len(table.frame),
        "n_runs": table.frame["cluster"].nunique(),
        "n_cells": table.frame["cell"].nunique(),
        "primary": {
            "law": law,
            "in_N": next(iter(next(iter(primary[law].values())).entry["range"])) == "N",
            "target": target,
            "size": size,
            "loss": settings.fit_loss.name,
            "level": settings.level,
        },
        "ranking": survival(every, first, families),
        "selection": selection(primary, families),
        "notes": list(table.notes),
    }


def _tokens(table: Table) -> list[float] | None:
    """Least and most training tokens; None if any is unknown."""
    if "tokens" not in table.frame or table.frame["tokens"].isna().any():
        return None
    return [float(table.frame["tokens"].min()), float(table.frame["tokens"].max())]
