"""One fit as an entry of fits.json: every number that a report, a figure or a tracker shows of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from slm.scaling.details import details
from slm.scaling.fitting import Fit, fit_sample, lack_of_fit, refusal
from slm.scaling.forms import Floats
from slm.scaling.intervals import Uncertainty, uncertainty
from slm.scaling.laws import Law
from slm.scaling.likelihood import criteria
from slm.scaling.prediction import new_run_sigma
from slm.scaling.sample import Sample, Unit, take_sample
from slm.scaling.settings import Settings
from slm.scaling.solver import Loss
from slm.scaling.tables import Table

Entry = dict[str, Any]
SUSPICIOUS_RATIO = 1.5


@dataclass(frozen=True)
class Case:
    """What is fitted: one family, law, target and N. `size` is "" for laws without N."""

    family: str
    law: Law
    target: str
    size: str


@dataclass(frozen=True)
class Fitted:
    """A fit with its uncertainty and its entry; `fit` is None where the law was refused."""

    entry: Entry
    fit: Fit | None = None
    uncertainty: Uncertainty | None = None


def fit_group(
    table: Table,
    law: Law,
    target: str,
    size: str,
    settings: Settings,
    rng: np.random.Generator,
    *,
    loss: Loss,
    thorough: bool,
) -> dict[str, Fitted]:
    """Fit one law to every family of the table; `thorough` adds bootstraps, curves, residuals and extrapolation.

    The rows are the means over seeds of each cell, or single runs if `settings.unit` says so; every figure of an entry
    (AICc, BIC, r2, rmse and sigma too) is of these rows. A family whose fit fails is refused with the reason.
    """
    unit: Unit = "run" if settings.unit == "run" else "cell"
    samples = {name: take_sample(table.of(name), law, target, size, unit=unit) for name in table.families}
    law = law.at(np.concatenate([sample.log_x for sample in samples.values()]))
    middle = np.median(np.concatenate([s.log_x for s in samples.values()]), axis=0)
    fitted = {}
    for name, sample in samples.items():
        case = Case(name, law, target, size)
        reason = refusal(law, sample)
        if reason is None:
            try:
                fitted[name] = _fit_case(table, case, sample, loss, settings, rng, middle if thorough else None)
            except (np.linalg.LinAlgError, FloatingPointError) as error:
                reason = f"not fitted: the computation broke down ({error})"
        if reason is not None:
            fitted[name] = Fitted(_refused(case, sample, loss, reason))
    return fitted


def _constant(table: Table, column: str) -> bool:
    return column in table.frame and bool(table.frame[column].nunique(dropna=False) == 1)


def _fit_case(
    table: Table,
    case: Case,
    sample: Sample,
    loss: Loss,
    settings: Settings,
    rng: np.random.Generator,
    middle: Floats | None,
) -> Fitted:
    """`middle` is the table's median of the log variables, for a thorough fit, else None."""
    found = fit_sample(case.law, sample, loss=loss)
    replicates = 0 if middle is None else settings.bootstrap
    of = uncertainty(found, replicates=replicates, rng=rng, level=settings.level, coefficients=middle is not None)
    entry = _entry(case, found, of, settings.unit)
    runs = take_sample(table.of(case.family), case.law, case.target, case.size, unit="run")
    test = lack_of_fit(found, runs)
    entry["n_runs"], entry["n_rows"] = len(np.unique(table.of(case.family).frame["cluster"])), len(runs.log_y)
    entry["lack_of_fit"] = test and vars(test)
    if test and test.p < 0.05:
        entry["notes"].append(f"sizes deviate from the law by more than seeds do (lack of fit, p = {test.p:.2g})")
    if len(runs.log_y) > len(sample.log_y):
        entry["notes"].append("fitted to the means over seeds, so that intervals rest on the number of sizes")
    if not sample.is_independent:
        entry["notes"].append(
            f"{len(sample.log_y)} rows belong to {len(np.unique(sample.clusters))} shapes or runs, which deviate from "
            "the law as one; intervals rest on their number"
        )
    if case.law.variables == ("C",) and _constant(table, "tokens"):
        entry["notes"].append("all runs saw the same tokens, so that C is N by another name")
    entry["run_sigma_log"] = run_sigma = new_run_sigma(found, runs)
    if middle is not None:
        entry |= details(found, of, settings, rng, middle, run_sigma)
    return Fitted(entry, found, of)


def _refused(case: Case, sample: Sample, loss: Loss, reason: str) -> Entry:
    empty = dict.fromkeys(case.law.parameters)
    return _identity(case, sample, loss) | {
        "params": empty,
        "se": empty,
        "ci95": {name: [None, None] for name in case.law.parameters},
        "covariance_method": "none",
        "se_method": "none",
        "objective": None,
        "r2": None,
        "rmse_log": None,
        "sigma_log": None,
        "aicc": np.nan,
        "bic": np.nan,
        "converged": False,
        "starts": 0,
        "starts_agreeing": None,
        "gradient_norm": None,
        "at_bound": [],
        "condition_number": None,
        "identified": False,
        "not_identified": list(case.law.parameters),
        "reasons": dict.fromkeys(case.law.parameters, reason),
        "fitted": False,
        "notes": [reason],
    }


def _identity(case: Case, sample: Sample, loss: Loss) -> Entry:
    ranges = {
        v: [float(np.exp(x.min())), float(np.exp(x.max()))]
        for v, x in zip(case.law.variables, sample.log_x.T, strict=True)
    }
    return {
        "family": case.family,
        "law": case.law.name,
        "equation": case.law.equation,
        "source": case.law.source,
        "variables": list(case.law.variables),
        "target": case.target,
        "size": case.size or None,
        "loss": loss.name,
        "delta": None if np.isinf(loss.delta) else loss.delta,
        "exponents": list(case.law.exponents),
        "variable_of": dict(case.law.variable_of),
        "floor": None if case.law.floor is None else list(case.law.parameters)[case.law.floor],
        "range": ranges,
        "n_rows": len(sample.log_y),
        "n_runs": len(np.unique(sample.clusters)),
        "n_cells": len(np.unique(sample.cells)),
    }


def _entry(case: Case, found: Fit, of: Uncertainty, unit: str) -> Entry:
    score = criteria([found])
    certificate = found.certificate
    notes = list(of.notes)
    if certificate.starts_agreeing < 0.5:
        notes.append(f"only {certificate.starts_agreeing:.0%} of the starts reach the best objective")
    notes += _disagreement(found, of)
    if case.target == "perplexity":
        notes.append("an exponent of perplexity, not of loss: not to be set beside loss exponents")
    return _identity(case, found.sample, found.loss) | {
        "unit": "run" if unit == "run" else "cell",
        "params": found.params,
        "se": of.se,
        "ci95": {name: list(ends) for name, ends in of.ci.items()},
        "covariance_method": of.method,
        "se_method": of.se_method,
        "se_by_method": of.bootstrap_se,
        "objective": certificate.objective,
        "r2": found.r2,
        "rmse_log": math.sqrt(found.sse / len(found.residuals)),
        "sigma_log": found.sigma,
        "degrees_of_freedom": found.degrees_of_freedom,
        "aicc": score.aicc,
        "bic": score.bic,
        "converged": certificate.converged,
        "starts": certificate.starts,
        "starts_agreeing": certificate.starts_agreeing,
        "gradient_norm": certificate.gradient_norm,
        "at_bound": list(certificate.at_bound),
        "condition_number": certificate.condition_number,
        "identified": certificate.converged and not set(of.not_identified) & set(case.law.exponents),
        "not_identified": list(of.not_identified),
        "reasons": of.not_identified,
        "fitted": True,
        "notes": notes,
    }


def _disagreement(found: Fit, of: Uncertainty) -> list[str]:
    """Where the cluster bootstrap finds much more scatter than the likelihood does."""
    if of.method in ("cluster_bootstrap", "cluster_t") or "cluster" not in of.bootstrap_se:
        return []
    by = of.bootstrap_se
    ratios = {e: by["cluster"][e] / by["delta"][e] for e in found.law.exponents if by["delta"][e] > 0}
    return [
        f"the bootstrap's standard error of {name} is {ratio:.1f} times the likelihood's: the scatter is not the same "
        "everywhere, and the interval is too narrow"
        for name, ratio in ratios.items()
        if ratio > SUSPICIOUS_RATIO and len(found.sample.log_y) >= 10 * len(found.theta)
    ]


def plain(value: Any) -> Any:
    """The same value in what JSON can hold: numpy's scalars and arrays made plain, NaN and infinities None."""
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)) or (isinstance(value, Sequence) and not isinstance(value, str)):
        return [plain(one) for one in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value
