"""The whole analysis of a table: fits, comparison, references, allocation, as plain data for report and figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from slm.scaling.allocation import compute_optimal, cost, flops_to_reach, front_rows, isoflop, isoflop_bias
from slm.scaling.compare import choose_law, compare_law, selection
from slm.scaling.entries import Entry, Fitted, fit_group, plain
from slm.scaling.fitting import fit
from slm.scaling.intervals import uncertainty
from slm.scaling.laws import LAWS, Law
from slm.scaling.published import is_published, review
from slm.scaling.ranking import TENABLE, rankings, survival
from slm.scaling.reference import REFERENCES, local_exponent
from slm.scaling.sample import missing_columns
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
) -> Analysis:
    """Fit every law that the table allows, compare the families, and say what follows.

    `controlled` is what an audit found (None: not audited); it only enters the words of the verdict. Results depend on
    the table, the settings and `seed` alone. Raises `ValueError` if no law can be fitted to any family.
    """
    settings = settings or Settings()
    target, size = _primary(table, settings)
    groups, skipped = _plan(table, settings, target, size)
    steps = len(groups) + sum(group.thorough for group in groups) + 1
    entries: list[Entry] = []
    primary: dict[str, dict[str, Fitted]] = {}
    for place, group in enumerate(groups):
        say(f"fitting {group.law.name} to {group.target}", place, steps)
        # A generator of its own for each group: a law that is left out changes no other's bootstrap.
        rng = np.random.default_rng([seed, list(LAWS).index(group.law.name), place if not group.thorough else 0])
        fitted = fit_group(
            table, group.law, group.target, group.size, settings, rng, loss=group.loss, thorough=group.thorough
        )
        entries += [one.entry for one in fitted.values()]
        if group.thorough:
            primary[group.law.name] = fitted
    if not any(entry["fitted"] for entry in entries):
        reasons = dict.fromkeys(f"{entry['law']} {note}" for entry in entries for note in entry["notes"])
        raise ValueError(f"no law can be fitted to {table.name}: " + "; ".join(list(reasons)[:4]))
    law, why = choose_law(primary, settings.law)
    compared: dict[str, Entry] = {}
    for place, name in enumerate(dict.fromkeys((law, *primary))):
        say(f"comparing families under {name}", len(groups) + place, steps)
        rng = np.random.default_rng([seed, 1000, list(LAWS).index(name)])
        found = compare_law(primary[name], settings, rng, thorough=name == law)
        if found:
            compared[name] = found
    comparison = _comparison(table, settings, entries, primary, law, target, size) | {"laws": compared}
    comparison["primary"]["why"] = why
    say("references and allocation", steps - 1, steps)
    rng = np.random.default_rng([seed, 2000])
    comparison |= {
        "skipped": skipped,
        "references": _references(table, size, entries),
        "isoflop": _isoflop(table, primary, target, size, rng),
        "allocation": _allocation(table, primary, settings, target),
        "pareto": _pareto(table, target, size),
        "published": review(table) if is_published(table) else None,
    }
    comparison["verdict"] = verdict(comparison, entries, controlled)
    return Analysis(plain(entries), plain(comparison))


def _primary(table: Table, settings: Settings) -> tuple[str, str]:
    """Target and N of the verdict."""
    tokenizers = table.frame["tokenizer_fingerprint"].nunique() if "tokenizer_fingerprint" in table.frame else 1
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
    names = list(settings.laws)
    if settings.law not in ("auto", *names):
        names.append(settings.law)
    for name in names:
        law = LAWS[name]
        missing = missing_columns(table, law, target, size)
        if missing:
            skipped.append({"law": name, "reason": f"the table has no {' and no '.join(missing)}"})
            continue
        for t in targets:
            for s in sizes if "N" in law.variables else [""]:
                main = t == target and s in ("", size)
                groups.append(_Group(law, t, s, settings.fit_loss, main))
                if main:
                    groups.append(_Group(law, t, s, settings.other_loss, False))
    return groups, skipped


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
        if (r["law"], r["target"], r["loss"]) == (law, target, settings.loss) and r["size"] in (None, size)
    )
    return {
        "table": table.name,
        "families": families,
        "tokens": _tokens(table),
        "n_rows": len(table.frame),
        "n_runs": table.frame["cluster"].nunique(),
        "n_cells": table.frame["cell"].nunique(),
        "primary": {"law": law, "target": target, "size": size, "loss": settings.loss, "level": settings.level},
        "ranking": survival(every, first, families),
        "selection": selection(primary, families),
        "notes": list(table.notes),
    }


def _tokens(table: Table) -> list[float] | None:
    """Least and most training tokens; None if any is unknown."""
    if "tokens" not in table.frame or table.frame["tokens"].isna().any():
        return None
    return [float(table.frame["tokens"].min()), float(table.frame["tokens"].max())]


def _references(table: Table, size: str, entries: list[Entry]) -> list[Entry]:
    """Published laws as local exponents over this table's sizes, each with the N it was fitted with, beside `power`.

    Only for families that `power` describes at all: where tokens vary against N, a local exponent in N means nothing.
    """
    described = _described_by_power(entries)
    if "loss" not in table.targets:
        return []
    rows: list[Entry] = []
    tokens = table.frame["tokens"].to_numpy(float) if "tokens" in table.frame else None
    for reference in REFERENCES:
        needs_tokens = "D" in reference.law.variables
        own = reference.size if reference.size in table.sizes else size
        if needs_tokens and (tokens is None or np.isnan(tokens).any()):
            continue
        for family in described:
            frame = table.of(family).frame
            N = frame[own].to_numpy(float)
            if len(np.unique(N)) < 3:
                continue
            log_loss = reference.log_loss({"N": N, "D": frame["tokens"].to_numpy(float) if needs_tokens else N})
            for target, values in (("loss", log_loss), ("perplexity", np.exp(log_loss))):
                found = fit(table.of(family), "power", target=target, size=own)
                low, high = uncertainty(found, replicates=0, rng=np.random.default_rng(0)).ci["alpha"]
                expected = local_exponent(np.log(N), values)
                rows.append(
                    {
                        "reference": reference.name,
                        "source": reference.source,
                        "family": family,
                        "target": target,
                        "size": own,
                        "same_size_definition": own == reference.size,
                        "reference_exponent": expected,
                        "exponent": found.params["alpha"],
                        "ci_low": low,
                        "ci_high": high,
                        "ratio": found.params["alpha"] / expected,
                        "inside": low is not None and high is not None and low <= expected <= high,
                        "curve": {"N": np.sort(N), "value": np.exp(values[np.argsort(N)])},
                    }
                )
    return rows


def _described_by_power(entries: list[Entry]) -> list[str]:
    """Families in which `power` misses the loss by no more than `TENABLE` times what the best law does."""
    misfit: dict[str, dict[str, float]] = {}
    for entry in entries:
        if entry["target"] == "loss" and entry["loss"] == "least_squares" and entry["fitted"]:
            of = misfit.setdefault(entry["family"], {})
            of[entry["law"]] = min(entry["rmse_log"], of.get(entry["law"], np.inf))
    return [name for name, of in misfit.items() if of.get("power", np.inf) <= TENABLE * min(of.values())]


def _isoflop(
    table: Table, primary: dict[str, dict[str, Fitted]], target: str, size: str, rng: np.random.Generator
) -> list[Entry]:
    if missing_columns(table, LAWS["power_C"], target, size) or "tokens" not in table.frame:
        return []
    rows = []
    for family in table.families:
        frame = table.of(family).frame
        found = isoflop(frame, size, target, rng)
        if found is None:
            continue
        parametric = primary.get("chinchilla", {}).get(family)
        law = parametric.entry["params"] if parametric and parametric.entry["identified"] else None
        rows.append(
            {
                "family": family,
                **vars(found),
                "bias": law and isoflop_bias(frame, size, target, law),
                "parametric": law and law["beta"] / (law["alpha"] + law["beta"]),
            }
        )
    return rows


def _allocation(table: Table, primary: dict[str, dict[str, Fitted]], settings: Settings, target: str) -> list[Entry]:
    """Compute-optimal N and D of every family whose `chinchilla` fit is identified."""
    rows = []
    for family, one in primary.get("chinchilla", {}).items():
        if not one.entry["identified"] or target != "loss":
            continue
        law = one.entry["params"]
        largest = float(table.of(family).frame["flops"].max())
        needed = settings.target_loss and flops_to_reach(law, settings.target_loss)
        rows.append(
            {
                "family": family,
                "exponent_params": law["beta"] / (law["alpha"] + law["beta"]),
                "budgets": [
                    vars(compute_optimal(law, largest * times)) | _costs(largest * times, settings)
                    for times in (1, 10, 100)
                ],
                "target_loss": settings.target_loss,
                "flops_to_target": needed,
                "target_cost": _costs(needed, settings) if needed else None,
            }
        )
    return rows


def _costs(flops: float, settings: Settings) -> Entry:
    if settings.flops_per_second is None:
        return {}
    return vars(cost(flops, flops_per_second=settings.flops_per_second, price_per_hour=settings.price_per_hour))


def _pareto(table: Table, target: str, size: str) -> list[Entry]:
    """Fronts of the target against N, FLOPs and speed, as far as the table has them."""
    fronts = []
    for column, sign in ((size, 1), ("flops", 1), ("tokens_per_second", -1)):
        frame = table.frame
        if column not in frame or frame[column].isna().any() or frame[column].nunique() < 2:
            continue
        front = front_rows(frame, [(target, 1), (column, sign)]).sort_values(column)
        names = [c for c in ("family", "name", "run_id", column, target) if c in front]
        fronts.append({"against": column, "front": list(_records(front[names].to_dict("records")))})
    return fronts


def _records(rows: list[dict[Any, Any]]) -> Iterator[Entry]:
    for row in rows:
        yield {str(key): value for key, value in row.items()}
