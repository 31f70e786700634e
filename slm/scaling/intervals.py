"""Standard errors and intervals of one fit, by the method that suits it, and what the data do not identify."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy import stats

from slm.scaling.fitting import Fit
from slm.scaling.forms import Floats
from slm.scaling.identification import Interval, reasons_not_identified, remarks
from slm.scaling.profiles import Profile, profile
from slm.scaling.resample import Ensemble, Kind, bootstrap

RESAMPLED: tuple[Kind, ...] = ("cluster", "wild")
MAX_FAILED = 0.5
"""Share of bootstrap samples above which, if they fail, what the others say is withheld."""


@dataclass(frozen=True)
class Uncertainty:
    """Of the quoted parameters. An end of None is open: the data set no bound on that side."""

    method: str
    """Of the intervals: ols_t, profile_t, cluster_t or cluster_bootstrap."""
    se: dict[str, float]
    se_method: str
    """ols, cluster_bootstrap, or delta if no bootstrap was requested."""
    ci: dict[str, Interval]
    profiles: dict[str, Profile]
    ensembles: dict[str, Ensemble]
    not_identified: dict[str, str]
    """Parameters that the data do not identify, and why."""
    notes: tuple[str, ...]
    bootstrap_se: dict[str, dict[str, float]] = field(default_factory=dict)
    """Standard errors by each method that was used: cluster, wild, delta."""

    def error(self, fit: Fit, name: str, level: float) -> float:
        """Half the interval of exponent `name` over its t quantile: a standard error that agrees with the interval."""
        low, high = self.ci[name]
        df = self.degrees_of_freedom(fit, name)
        if low is None or high is None or df < 1:
            return self.se[name]
        return float((high - low) / 2 / stats.t.ppf(0.5 + level / 2, df))

    def degrees_of_freedom(self, fit: Fit, name: str) -> float:
        """Of the t distribution behind the interval of exponent `name`."""
        if name in self.profiles:
            return self.profiles[name].df
        return len(np.unique(fit.sample.clusters)) - len(fit.theta)


def uncertainty(
    fit: Fit, *, replicates: int, rng: np.random.Generator, level: float = 0.95, coefficients: bool = True
) -> Uncertainty:
    """Intervals of all parameters of a fit.

    Linear laws by least squares: Student's t, exact. Other laws by least squares: profile likelihood. Either is widened
    if rows share runs or shapes, by the cluster-robust standard error (`slm.scaling.robust`). Huber's loss: t intervals
    on standard errors of the cluster bootstrap, scaled up for the parameters fitted.
    `replicates` = 0 leaves out bootstraps that are only a cross-check. Without `coefficients`, those have the intervals
    of the delta method, in logs: every further result rests on exponents and floor alone.
    """
    names = list(fit.law.parameters)
    if fit.is_exact:
        lost, nan = reasons_not_identified(fit, {}), dict.fromkeys(names, np.nan)
        notes = tuple(dict.fromkeys(lost.values()))
        return Uncertainty("none", nan, "none", dict.fromkeys(names, (None, None)), {}, {}, lost, notes)
    is_least_squares = fit.loss.name == "least_squares"
    ensembles: dict[str, Ensemble] = {}
    if fit.degrees_of_freedom >= 1 and (replicates or not is_least_squares):
        ensembles = {kind: bootstrap(fit, kind, replicates or 200, rng) for kind in RESAMPLED}
    profiles: dict[str, Profile] = {}
    method = "cluster_bootstrap"
    ci = _bootstrap_intervals(fit, ensembles.get("cluster"), level)
    if is_least_squares:
        method = "ols_t" if fit.law.is_linear else "profile_t"
        method = method if fit.sample.is_independent else "cluster_t"
        profiles = _profiles(fit, level, coefficients)
        # The bootstrap's intervals stay for what has no profile, such as a ratio of coordinates.
        ci |= {name: _profile_interval(fit, own) for name, own in profiles.items()}
    se_by_method = {kind: _spread(fit, drawn) for kind, drawn in ensembles.items()} | {"delta": _delta(fit)}
    se_method = "ols" if method == "ols_t" else "cluster_bootstrap" if ensembles else "delta"
    se = se_by_method["cluster" if se_method == "cluster_bootstrap" else "delta"]
    lost = reasons_not_identified(fit, ci)
    failed = [
        f"{drawn.failed:.0%} of the {kind} bootstrap samples could not be refitted and are left out"
        for kind, drawn in ensembles.items()
        if drawn.failed > 0.02 and kind in se_method
    ]
    notes = (*dict.fromkeys(lost.values()), *remarks(fit, ci), *failed)
    return Uncertainty(method, se, se_method, ci, profiles, ensembles, lost, notes, se_by_method)


def _profiles(fit: Fit, level: float, coefficients: bool) -> dict[str, Profile]:
    names = list(fit.law.parameters)
    floor = [] if fit.law.floor is None else [names[fit.law.floor]]
    exact = names if coefficients else [*fit.law.exponents, *floor]
    profiles = {name: profile(fit, name, level=level, straight=name not in exact) for name in names}
    return {name: own for name, own in profiles.items() if own is not None}


def _profile_interval(fit: Fit, own: Profile) -> Interval:
    if own.name in fit.law.signed:
        return own.low, own.high
    with np.errstate(over="ignore"):
        low, high = (None if end is None else float(np.exp(end)) for end in (own.low, own.high))
    return low, high


def _delta(fit: Fit) -> dict[str, float]:
    """Delta-method standard errors of the quoted parameters; NaN if there are none."""
    step = 1e-6
    P = len(fit.theta)
    moved = fit.law.canonical(fit.theta + step * np.r_[np.eye(P), -np.eye(P)], fit.sample.refs)
    with np.errstate(invalid="ignore", over="ignore"):  # a coefficient at N = 1 may be beyond all floats
        slope = ((moved[:P] - moved[P:]) / (2 * step)).T
        covariance = fit.covariance
        errors = np.sqrt(np.diag(slope @ np.nan_to_num(covariance, nan=0.0) @ slope.T))
    errors[np.isnan(np.diag(covariance))] = np.nan
    return dict(zip(fit.law.parameters, errors.tolist(), strict=True))


def _is_usable(ensemble: Ensemble) -> bool:
    return len(ensemble.theta) >= 20 and ensemble.failed <= MAX_FAILED


def _spread(fit: Fit, ensemble: Ensemble) -> dict[str, float]:
    """Standard deviation of each quoted parameter over the refits; NaN if most could not be made."""
    if not _is_usable(ensemble):
        return dict.fromkeys(fit.law.parameters, np.nan)
    quoted = fit.law.canonical(ensemble.theta, fit.sample.refs)
    with np.errstate(invalid="ignore", over="ignore"):
        return dict(zip(fit.law.parameters, quoted.std(axis=0, ddof=1).tolist(), strict=True))


def _bootstrap_intervals(fit: Fit, ensemble: Ensemble | None, level: float) -> dict[str, Interval]:
    """estimate +- t se on the scale of the exponent or of the logarithm of the coefficient."""
    names = list(fit.law.parameters)
    groups = len(np.unique(fit.sample.clusters))
    df = groups - len(names)
    if ensemble is None or not _is_usable(ensemble) or df < 1:
        return dict.fromkeys(names, (None, None))
    is_signed = np.array([name in fit.law.signed for name in names])

    def scaled(theta: Floats) -> Floats:
        quoted = fit.law.canonical(theta, fit.sample.refs)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(is_signed, quoted, np.log(quoted))

    centre, draws = scaled(fit.theta[None])[0], scaled(ensemble.theta)
    reach = stats.t.ppf(0.5 + level / 2, df) * np.sqrt(groups / df) * draws.std(axis=0, ddof=1)
    with np.errstate(over="ignore"):
        low, high = (np.where(is_signed, end, np.exp(end)).tolist() for end in (centre - reach, centre + reach))
    return dict(zip(names, zip(low, high, strict=True), strict=True))
