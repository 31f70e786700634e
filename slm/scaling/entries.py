"""Fit one law to every family, and write each fit as an entry of fits.json for reports, figures and trackers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from slm.runtime.words import format_number
from slm.scaling.details import compute_details
from slm.scaling.fitting import Fit, fit_sample, lack_of_fit, refusal
from slm.scaling.forms import Floats
from slm.scaling.intervals import Uncertainty, uncertainty
from slm.scaling.laws import Law
from slm.scaling.likelihood import Entry, criteria
from slm.scaling.prediction import new_run_sigma
from slm.scaling.sample import Sample, Unit, take_sample
from slm.scaling.settings import Settings
from slm.scaling.solver import Loss
from slm.scaling.tables import Table

SUSPICIOUS_RATIO = 1.5  # a fit gets a note if the bootstrap's standard error exceeds the likelihood's by this factor


@dataclass(frozen=True)
class Task:
    """A law to fit to the `target` of every family. `size` is the table's column of N, or "" for a law without N."""

    law: Law
    target: str
    size: str
    loss: Loss
    is_primary: bool = False  # whether the verdict (which families differ) may rest on the fits


@dataclass(frozen=True)
class Fitted:
    """A fit with its uncertainty and its entry; `fit` is None if the law could not be fitted."""

    entry: Entry
    fit: Fit | None = None
    uncertainty: Uncertainty | None = None


def fit_group(
    table: Table, task: Task, settings: Settings, rng: np.random.Generator, *, thorough: bool
) -> dict[str, Fitted]:
    """Fit one law to every family of the table: see `fit_family`. Each family has its own generator."""
    rngs = zip(table.families, rng.spawn(len(table.families)), strict=True)
    return {family: fit_family(table, family, task, settings, own_rng, thorough=thorough) for family, own_rng in rngs}


def fit_family(
    table: Table, family: str, task: Task, settings: Settings, rng: np.random.Generator, *, thorough: bool
) -> Fitted:
    """Fit one law to one family of the table; `thorough` adds bootstraps and the keys of `compute_details`.

    The fitted rows are single runs if `settings.unit` is "run", else means of cells (runs that differ only in seed).
    AICc, BIC, r2, rmse and sigma are computed from these rows. The entry of a failed fit has the reason instead.
    """
    unit: Unit = "run" if settings.unit == "run" else "cell"
    samples = {f: take_sample(table.family(f), task.law, task.target, task.size, unit=unit) for f in table.families}
    log_x = np.concatenate([sample.log_x for sample in samples.values()])
    task, sample = replace(task, law=task.law.prepared_for(log_x)), samples[family]
    medians = np.median(log_x, axis=0) if thorough else None
    reason = refusal(task.law, sample)
    if reason is None:
        try:
            return _fit_family(table.family(family), task, sample, settings, rng, medians)
        except (np.linalg.LinAlgError, FloatingPointError) as error:
            reason = f"not fitted: the computation broke down ({error})"
    return Fitted(_task_keys(family, task, sample) | _refusal_keys(task.law, reason))


def _fit_family(
    table: Table, task: Task, sample: Sample, settings: Settings, rng: np.random.Generator, medians: Floats | None
) -> Fitted:
    """Fit the only family of `table`. `medians` (of all families' log variables) is None unless the fit is thorough."""
    fit = fit_sample(task.law, sample, loss=task.loss)
    thorough = medians is not None
    replicates = settings.bootstrap if thorough else 0
    intervals = uncertainty(fit, replicates=replicates, rng=rng, level=settings.level, profile_coefficients=thorough)
    runs = take_sample(table, task.law, task.target, task.size, unit="run")
    test, run_sigma = lack_of_fit(fit, runs), new_run_sigma(fit, runs)
    entry = _task_keys(table.families[0], task, sample) | _result_keys(task.target, fit, intervals)
    entry |= {
        "unit": "run" if settings.unit == "run" else "cell",
        "n_runs": len(np.unique(table.frame["cluster"])),
        "n_rows": len(runs.log_y),
        "lack_of_fit": vars(test) if test else None,
        "run_sigma_log": run_sigma,
    }
    if test and test.p < 0.05:
        entry["notes"].append(
            f"the misfit of the law is more than the scatter of seeds explains (p = {format_number(test.p, 2)})"
        )
    if len(runs.log_y) > len(sample.log_y):
        entry["notes"].append("fitted to means over seeds: more seeds per size add no degrees of freedom")
    if not sample.is_independent:
        entry["notes"].append(
            f"the residuals of the {len(sample.log_y)} rows are correlated within {len(np.unique(sample.clusters))} "
            "shapes or runs; the number of shapes or runs sets the degrees of freedom"
        )
    if task.law.variables == ("C",) and "tokens" in table.frame and table.frame["tokens"].nunique(dropna=False) == 1:
        entry["notes"].append("all runs have the same number of tokens, so C is proportional to N")
    if medians is not None:
        entry |= compute_details(fit, intervals, settings, rng, medians, run_sigma)
    return Fitted(entry, fit, intervals)


def _refusal_keys(law: Law, reason: str) -> Entry:
    names = list(law.parameters)
    keys_without_value = "objective r2 rmse_log sigma_log aicc bic starts_agreeing gradient_norm condition_number"
    entry: Entry = dict.fromkeys(keys_without_value.split())
    entry |= {"floor_value": None, "floor_ci95": [None, None]}
    entry |= {"params": dict.fromkeys(names), "se": dict.fromkeys(names), "ci95": {n: [None, None] for n in names}}
    entry |= {"covariance_method": "none", "se_method": "none", "converged": False, "starts": 0, "at_bound": []}
    entry |= {"identified": False, "not_identified": names, "reasons": dict.fromkeys(names, reason)}
    return entry | {"fitted": False, "notes": [reason]}


def _task_keys(family: str, task: Task, sample: Sample) -> Entry:
    law, loss = task.law, task.loss
    floor = None if law.floor is None else list(law.parameters)[law.floor]
    columns = zip(law.variables, sample.log_x.T, strict=True)
    entry: Entry = {"family": family, "law": law.name, "equation": law.equation, "source": law.source}
    entry |= {"variables": list(law.variables), "target": task.target, "size": task.size or None}
    entry |= {"loss": loss.name, "delta": None if np.isinf(loss.delta) else loss.delta}
    entry |= {"exponents": list(law.exponents), "variable_of": dict(law.variable_of), "floor": floor}
    entry["range"] = {v: [float(np.exp(x.min())), float(np.exp(x.max()))] for v, x in columns}
    n_runs, n_cells = len(np.unique(sample.clusters)), len(np.unique(sample.cells))
    return entry | {"n_rows": len(sample.log_y), "n_runs": n_runs, "n_cells": n_cells}


def _result_keys(target: str, fit: Fit, intervals: Uncertainty) -> Entry:
    score, certificate = criteria([fit]), fit.certificate  # the certificate says how well the search converged
    notes, share_of_starts = list(intervals.notes), certificate.starts_agreeing
    if share_of_starts < 0.5:
        notes.append(f"only {share_of_starts:.0%} of the starts reach the best objective")
    notes += _notes_on_bootstrap(fit, intervals)
    if target == "perplexity":
        notes.append("an exponent of perplexity, which is not comparable with exponents of loss")
    entry = {**vars(certificate), "params": fit.params, "se": intervals.se}
    entry["ci95"] = {name: list(ends) for name, ends in intervals.ci.items()}
    floor = None if fit.law.floor is None else list(fit.law.parameters)[fit.law.floor]
    if floor is not None:
        ends = [None if end is None else fit.law.target_floor(end) for end in intervals.ci[floor]]
        entry |= {"floor_value": fit.law.target_floor(fit.params[floor]), "floor_ci95": ends}
    entry |= {"covariance_method": intervals.method, "se_method": intervals.se_method}
    entry |= {"se_by_method": intervals.bootstrap_se}
    entry |= {"r2": fit.r2, "rmse_log": math.sqrt(fit.sse / len(fit.residuals)), "sigma_log": fit.sigma}
    entry |= {"degrees_of_freedom": fit.degrees_of_freedom, "aicc": score.aicc, "bic": score.bic}
    is_identified = certificate.converged and not set(intervals.reasons_not_identified) & set(fit.law.exponents)
    entry |= {"identified": is_identified, "not_identified": list(intervals.reasons_not_identified)}
    return entry | {"reasons": intervals.reasons_not_identified, "fitted": True, "notes": notes}


def _notes_on_bootstrap(fit: Fit, intervals: Uncertainty) -> list[str]:
    """Return notes on exponents whose bootstrap standard error is much larger than the likelihood's."""
    se = intervals.bootstrap_se  # by the cluster bootstrap, and "delta": by the delta method
    has_few_rows = len(fit.sample.log_y) < 10 * len(fit.theta)
    if has_few_rows or intervals.method in ("cluster_bootstrap", "cluster_t") or "cluster" not in se:
        return []
    ratios = {name: se["cluster"][name] / se["delta"][name] for name in fit.law.exponents if se["delta"][name] > 0}
    return [
        f"the bootstrap's standard error of {name} is {ratio:.1f} times the likelihood's: the scatter is not the same "
        "everywhere, and the interval is too narrow"
        for name, ratio in ratios.items()
        if ratio > SUSPICIOUS_RATIO
    ]


def to_json_types(value: Any) -> Any:
    """Convert to types that JSON can hold: numpy's scalars and arrays to Python's, NaN and infinities to None."""
    if isinstance(value, dict):
        return {str(key): to_json_types(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return to_json_types(value.tolist())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [to_json_types(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
