"""One fit as an entry of fits.json: every number that a report, a figure or a tracker shows of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from slm.scaling.details import details
from slm.scaling.fitting import Fit, LackOfFit, fit_sample, lack_of_fit, refusal
from slm.scaling.forms import Floats
from slm.scaling.intervals import Uncertainty, uncertainty
from slm.scaling.laws import Law
from slm.scaling.sample import Sample, take_sample
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


@dataclass(frozen=True)
class _Misfit:
    """A lack-of-fit test, one of `of` families' (Bonferroni)."""

    test: LackOfFit | None
    of: int

    @property
    def significant(self) -> bool:
        return self.test is not None and self.test.p * self.of < 0.05


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

    All families are fitted by run, or all by cell: by cell where any deviates from the law by more than its seeds do
    (at the level 0.05, Holm's adjustment over families), unless the settings say which. AICc and BIC are those of a
    least-squares fit by run whatever else is asked for, and r2, rmse and sigma are by run, so that all laws compare.
    """
    samples = {name: take_sample(table.of(name), law, target, size) for name in table.families}
    refusals = {name: refusal(law, sample) for name, sample in samples.items()}
    by_run = {name: fit_sample(law, s, loss=loss) for name, s in samples.items() if refusals[name] is None}
    misfits = {name: lack_of_fit(found) for name, found in by_run.items()}
    smallest = min((m.p for m in misfits.values() if m), default=1.0) * len(misfits)
    shared = any(sample.rows_share_runs for sample in samples.values())  # then whole runs are drawn instead
    by_cell = settings.unit == "cell" or (settings.unit == "auto" and smallest < 0.05 and not shared)
    means = {name: samples[name].cell_means() for name in by_run}
    by_cell = by_cell and all(refusal(law, one) is None for one in means.values())
    middle = np.median(np.concatenate([s.log_x for s in samples.values()]), axis=0)
    fitted = {}
    for name, sample in samples.items():
        case = Case(name, law, target, size)
        if name not in by_run:
            fitted[name] = Fitted(_refused(case, sample, loss, refusals[name] or ""))
            continue
        found = fit_sample(law, means[name], loss=loss) if by_cell else by_run[name]
        fitted[name] = _fit_case(
            table,
            case,
            found,
            by_run[name],
            _Misfit(misfits[name], len(misfits)),
            by_cell,
            settings,
            rng,
            middle if thorough else None,
        )
    return fitted


def _constant(table: Table, column: str) -> bool:
    return column in table.frame and bool(table.frame[column].nunique(dropna=False) == 1)


def _fit_case(
    table: Table,
    case: Case,
    found: Fit,
    by_run: Fit,
    misfit: _Misfit,
    by_cell: bool,
    settings: Settings,
    rng: np.random.Generator,
    middle: Floats | None,
) -> Fitted:
    """`middle` is the table's median of the log variables, for a thorough fit, else None."""
    replicates = 0 if middle is None else settings.bootstrap
    of = uncertainty(found, replicates=replicates, rng=rng, level=settings.level)
    entry = _entry(case, by_run, found, of, "cell" if by_cell else "run")
    entry["lack_of_fit"] = misfit.test and vars(misfit.test)
    entry["misfits"] = misfit.significant
    if misfit.test and misfit.significant:
        entry["notes"].append(
            f"sizes deviate from the law by more than seeds do (lack of fit, p = {misfit.test.p:.2g})"
        )
    if by_cell:
        entry["notes"].append("fitted to the means over seeds, so that intervals rest on the number of sizes")
    if case.law.variables == ("C",) and _constant(table, "tokens"):
        entry["notes"].append("all runs saw the same tokens, so that C is N by another name")
    if middle is not None:
        entry |= details(found, of, settings, rng, middle)
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
        "target": case.target,
        "size": case.size or None,
        "loss": "least_squares" if np.isinf(loss.delta) else "huber",
        "delta": None if np.isinf(loss.delta) else loss.delta,
        "exponents": list(case.law.exponents),
        "range": ranges,
        "n_rows": len(sample.log_y),
        "n_runs": len(np.unique(sample.clusters)),
        "n_cells": len(np.unique(sample.cells)),
    }


def _entry(case: Case, by_run: Fit, found: Fit, of: Uncertainty, unit: str) -> Entry:
    squares = by_run if np.isinf(by_run.loss.delta) else fit_sample(case.law, by_run.sample)
    aicc, bic = squares.information_criteria()
    certificate = found.certificate
    notes = list(of.notes)
    if certificate.starts_agreeing < 0.5:
        notes.append(f"only {certificate.starts_agreeing:.0%} of the starts reach the best objective")
    notes += _disagreement(found, of)
    if case.target == "perplexity":
        notes.append("an exponent of perplexity, not of loss: not to be set beside loss exponents")
    return _identity(case, by_run.sample, found.loss) | {
        "unit": unit,
        "params": found.params,
        "se": of.se,
        "ci95": {name: list(ends) for name, ends in of.ci.items()},
        "covariance_method": of.method,
        "se_method": of.se_method,
        "se_by_method": of.bootstrap_se,
        "objective": certificate.objective,
        "r2": by_run.r2,
        "rmse_log": math.sqrt(by_run.sse / len(by_run.residuals)),
        "sigma_log": by_run.sigma,
        "degrees_of_freedom": found.degrees_of_freedom,
        "aicc": aicc,
        "bic": bic,
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
    if of.method == "cluster_bootstrap" or "cluster" not in of.bootstrap_se:
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
