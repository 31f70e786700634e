"""Analyse a results table: fits, comparison of families, references and allocation, as the contents of JSON files."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np

from slm.runtime.pool import map_in_processes
from slm.runtime.words import shortlist
from slm.scaling import selection
from slm.scaling.bounded import LINKS, Bounded, unbounded_name
from slm.scaling.compare import compare_law
from slm.scaling.context import context
from slm.scaling.entries import Entry, Fitted, Task, fit_family, to_json_types
from slm.scaling.forms import VARIABLES
from slm.scaling.laws import Law, get_law, seed_of_law
from slm.scaling.levels import compare_levels, is_too_small, verdict_without_law
from slm.scaling.overlay import FALLBACK_LAW, LAWS_OF_SIZE
from slm.scaling.paired import compare_pairs
from slm.scaling.sample import missing_columns
from slm.scaling.settings import Settings
from slm.scaling.ship import Shipping, decisions
from slm.scaling.tables import Table
from slm.scaling.targets import fitted_column, with_target
from slm.scaling.two_step import two_step
from slm.scaling.verdict import verdict

ShowStep = Callable[[str, int], None]  # called before a step with its name and the number of steps done


@dataclass(frozen=True)
class Analysis:
    """The contents of fits.json, comparison.json and decisions.json (None without measurements on a device)."""

    fits: list[Entry]
    comparison: Entry
    decisions: Entry | None = None


def analyse(
    table: Table,
    settings: Settings | None = None,
    *,
    controlled: bool | None = None,
    tokenizers_differ: bool = False,
    seed: int = 1,
    progress: Callable[[str, int, int], None] = lambda step, done, total: None,
    verdict_only: bool = False,
    shipping: Shipping | None = None,
) -> Analysis:
    """Fit every law that the table allows, compare the families, and state the verdict: which families differ.

    `controlled` says whether an audit found that the families differ in nothing else (None: not audited). It changes
    only the wording of the verdict; all numbers follow from the table, the settings and `seed`. If `tokenizers_differ`
    between families, the verdict ranks none by a loss per token. `verdict_only` leaves
    out what the verdict does not use: bands, predictions, other targets, a second loss, references, allocation.
    A table too small for any law has a verdict on losses at equal sizes (`levels`). With `shipping`, the measurements
    on its device are joined to the results and the laws. `progress` is called before each
    step. Raises `ValueError` if no law can be fitted for another reason.
    """
    settings = settings or Settings()
    table = with_target(table, settings)
    target, size = _target_and_size(table, settings)
    tasks, skipped = _plan(table, settings, target, size)
    tasks = [task for task in tasks if task.is_primary or not verdict_only]
    num_steps = len(tasks) + sum(task.is_primary for task in tasks) + 1  # fits, comparisons under each law, the rest

    def show(step: str, done: int) -> None:
        progress(step, done, num_steps)

    entries, fitted = _fit(table, tasks, settings, seed, show, thorough=not verdict_only)
    of_verdict = [entry for entry in entries if settings.law in ("auto", entry["law"])]  # one of these must be fitted
    has_law = any(entry["fitted"] for entry in of_verdict) or _refuse_unless_too_small(table, size, of_verdict, skipped)
    assessed = selection.assess_laws(fitted)
    law, why = selection.choose_law(fitted, assessed, settings.law)
    comparison = _overview(table, settings, entries, fitted, law, target, size)
    comparison |= {"weighed": assessed, "laws": {}, "skipped": skipped}
    comparison["primary"]["why"] = why
    for index, name in enumerate(dict.fromkeys((law, *fitted)), start=len(tasks)):  # the chosen law first
        show(f"comparing families under {name}", index)
        rng = np.random.default_rng([seed, 1000, seed_of_law(name)])  # 1000: not the random numbers of `_fit`
        if compared := compare_law(fitted[name], settings, rng, thorough=name == law):
            comparison["laws"][name] = compared
    comparison["envelopes"] = selection.envelopes(fitted, assessed, law)
    fits = [result.fit for families in fitted.values() for result in families.values() if result.fit is not None]
    covariates = sorted({name for fit in fits for name in fit.law.variables} - set(VARIABLES))  # columns of the table
    curved = selection.is_curved(fitted, assessed, law)
    comparison["paired"] = compare_pairs(table, target, size, settings, covariates, curved=curved)
    show("references and allocation", num_steps - 1)
    if not verdict_only:
        comparison |= context(table, fitted, settings, target, size, entries)
        comparison["two_step"] = two_step(table, settings, size, np.random.default_rng([seed, 2000]))
    comparison["incomparable"] = tokenizers_differ and target in ("loss", "perplexity")
    stated = verdict(comparison, entries, controlled) if has_law else verdict_without_law(comparison, controlled)
    comparison["verdict"] = stated
    shipped = None
    if shipping:
        variables = next((one.fit.law.variables for one in fitted.get(law, {}).values() if one.fit), ())
        in_size = fitted.get(law if variables in LAWS_OF_SIZE else FALLBACK_LAW, {})
        shipped = decisions(table, in_size, shipping, settings, target=target, size=size, seed=seed)
    return Analysis(to_json_types(entries), to_json_types(comparison), to_json_types(shipped))


def _fit(
    table: Table, tasks: Sequence[Task], settings: Settings, seed: int, show: ShowStep, *, thorough: bool
) -> tuple[list[Entry], dict[str, dict[str, Fitted]]]:
    """Return the entries of all fits, and law -> family -> primary fit."""
    entries: list[Entry] = []
    fitted: dict[str, dict[str, Fitted]] = {}
    jobs = []
    for index, task in enumerate(tasks):
        # Each task has its own generator, so that leaving out a law does not change the bootstraps of other laws.
        rng = np.random.default_rng([seed, seed_of_law(task.law.name), 0 if task.is_primary else index])
        jobs += [(task, *family) for family in zip(table.families, rng.spawn(len(table.families)), strict=True)]
    fits = map_in_processes(partial(_fit_job, table, settings, thorough=thorough), jobs)
    for index, task in enumerate(tasks):
        show(f"fitting {task.law.name} to {task.target}", index)
        families = {family: next(fits) for family in table.families}
        for result in families.values():
            result.entry.update(kind=settings.target_kind or task.target, chance=settings.chance)
        entries += [result.entry for result in families.values()]
        if task.is_primary:
            fitted[task.law.name] = families
    return entries, fitted


def _refuse_unless_too_small(table: Table, size: str, entries: Sequence[Entry], skipped: Sequence[Entry]) -> bool:
    """Return False for a table too small for any law; raise `ValueError` if no law was fitted for another reason."""
    if entries and is_too_small(table, size):
        return False
    reasons = [(f" {note}", entry["law"]) for entry in entries for note in entry["notes"]]
    reasons += [(f": {row['reason']}", row["law"]) for row in skipped]
    laws = {reason: dict.fromkeys(law for other, law in reasons if other == reason) for reason, _ in reasons}
    texts = [shortlist(names) + reason for reason, names in laws.items()][:4]
    raise ValueError(f"no law can be fitted to {table.name}: {'; '.join(texts)}")


def _fit_job(table: Table, settings: Settings, job: tuple[Task, str, np.random.Generator], *, thorough: bool) -> Fitted:
    task, family, rng = job
    return fit_family(table, family, task, settings, rng, thorough=task.is_primary and thorough)


def _target_and_size(table: Table, settings: Settings) -> tuple[str, str]:
    """Return the target and the size (the column that is N) of the primary fits, on which the verdict rests."""
    targets = [fitted_column(settings)] if settings.target_kind else table.targets
    columns = [name for name in ("tokenizer_fingerprint", "tokenizer", "vocab_size") if name in table.frame]
    num_tokenizers = max((table.frame[name].nunique() for name in columns), default=1)
    default = "bits_per_byte" if num_tokenizers > 1 and "bits_per_byte" in targets else targets[0]
    target = default if settings.target == "auto" or settings.target_kind else settings.target
    size = table.sizes[0] if settings.size == "auto" else settings.size
    for name, value, allowed in (("target", target, targets), ("size", size, table.sizes)):
        if value not in allowed:
            raise ValueError(f"analysis.{name}={value}: the table has {', '.join(allowed)}")
    return target, size


def _plan(table: Table, settings: Settings, target: str, size: str) -> tuple[list[Task], list[Entry]]:
    """Return the tasks whose columns the table has, and the laws skipped for lack of a column, with reasons."""
    tasks: list[Task] = []
    skipped: list[Entry] = []
    other_targets = [] if settings.target_kind else settings.targets  # whose exponents are not comparable
    targets = [target, *(t for t in other_targets if t in table.targets and t != target)]
    sizes = [size, *(s for s in settings.sizes if s in table.sizes and s != size)]
    requested = () if settings.law == "auto" else (unbounded_name(settings.law),)
    for name in dict.fromkeys((*settings.laws, *settings.formulas, *requested)):
        law = get_law(name, settings.formulas, table.frame.columns)
        missing = missing_columns(table, law, target, size)
        if missing:
            columns = [f"{column} above 0 in every row" if column in table.frame else column for column in missing]
            reason = f"the table has no {' and no '.join(columns)}"
            if name in requested:
                raise ValueError(f"analysis.law={name}: {reason}")
            skipped.append({"law": name, "reason": reason})
            continue
        sizes_of_law = sizes if "N" in law.variables else [""]
        links = LINKS if settings.target_kind == "accuracy" else ()
        laws: list[Law] = [Bounded(law, link, settings.chance or 0.0) for link in links] or [law]
        for law, t, s in product(laws, targets, sizes_of_law):
            is_primary = t == target and s in ("", size)  # "": the law has no N
            tasks.append(Task(law, t, s, settings.fit_loss, is_primary=is_primary))
            if is_primary:
                tasks.append(Task(law, t, s, settings.other_loss))
    _check_names(settings, table, [task.law for task in tasks])
    return tasks, skipped


def _check_names(settings: Settings, table: Table, laws: list[Law]) -> None:
    """Raise `ValueError` if a point to predict has an unknown variable, or no law has all parameters to test."""
    names = [name for point in settings.predict if isinstance(point, Mapping) for name in point]
    for name in names:
        if name not in (*VARIABLES, *table.frame):
            accepted = ", ".join(VARIABLES)
            raise ValueError(f"analysis.predict has {name}, which must be {accepted} or a column of the table")
    if settings.test and not any(set(settings.test) <= set(law.parameters) for law in laws):
        raise ValueError(
            f"analysis.test has {', '.join(settings.test)}, and no fitted law has all of these parameters: "
            + "; ".join(dict.fromkeys(f"{law.name} has {', '.join(law.parameters)}" for law in laws))
        )


def _overview(
    table: Table, settings: Settings, entries: list[Entry], fitted: selection.ByLaw, law: str, target: str, size: str
) -> Entry:
    """Return the keys of comparison.json on what was compared, how well each law fits, and which rankings agree."""
    frame, families, loss = table.frame, table.families, settings.fit_loss.name
    rankings = selection.rankings(entries, families)
    allowed = {"law": (law,), "target": (target,), "loss": (loss,), "size": (size, None)}  # None: a law without N
    primary_ranking = next(row for row in rankings if all(row[key] in values for key, values in allowed.items()))
    primary: Entry = {"law": law, "in_N": selection.is_in_size(fitted[law]), "target": target, "size": size}
    primary |= {"loss": loss, "level": settings.level}
    primary |= {"column": settings.target, "kind": settings.target_kind, "chance": settings.chance}
    has_epochs = "epochs" in frame and frame["epochs"].dtype.kind in "if" and frame["epochs"].notna().any()
    has_tokens = "tokens" in frame and not frame["tokens"].isna().any()
    return {
        "table": table.name,
        "families": families,
        "tokens": [float(frame["tokens"].min()), float(frame["tokens"].max())] if has_tokens else None,
        "epochs": float(frame["epochs"].max()) if has_epochs else None,
        "n_rows": len(frame),
        "n_runs": frame["cluster"].nunique(),
        "n_cells": frame["cell"].nunique(),
        "primary": primary,
        "ranking": selection.survival(rankings, primary_ranking, families),
        "selection": selection.rows_by_law(fitted, families),
        "levels": compare_levels(table, target, size, settings.level),
        "notes": [*table.notes, *_unmet_requests(settings, entries)],
    }


def _unmet_requests(settings: Settings, entries: list[Entry]) -> list[str]:
    """Return a sentence on each formula that fits no family, and on a test of parameters that no fitted law has."""
    sentences = []
    for name in settings.formulas or ():
        formula_entries = [entry for entry in entries if entry["law"] == name]
        if formula_entries and not any(entry["fitted"] for entry in formula_entries):
            sentences.append(f"The formula {name} was {formula_entries[0]['notes'][0]}.")
    if settings.test and not any(entry.get("test") for entry in entries):
        sentences.append(f"analysis.test was not computed: no fitted law has all of {', '.join(settings.test)}.")
    return sentences
