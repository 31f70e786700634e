"""Standard errors and intervals of one fit, by the method that fits the case, and what the data do not identify."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy import stats

from slm.scaling.fitting import Fit
from slm.scaling.forms import Floats
from slm.scaling.identification import Interval, not_identified, remarks
from slm.scaling.profiles import Profile, profile
from slm.scaling.resample import Ensemble, Kind, bootstrap

RESAMPLED: tuple[Kind, ...] = ("cluster", "wild")
MOST_FAILED = 0.5
"""Share of bootstrap samples that may fail before what the others say is withheld."""


@dataclass(frozen=True)
class Uncertainty:
    """Of the quoted parameters. An end of None is open: the data set no bound on that side."""

    method: str
    """Of the intervals: ols_t, profile_t, cluster_t or cluster_bootstrap."""
    se: dict[str, float]
    se_method: str
    """ols, cluster_bootstrap, or delta where no bootstrap was asked for."""
    ci: dict[str, Interval]
    profiles: dict[str, Profile]
    ensembles: dict[str, Ensemble]
    not_identified: dict[str, str]
    """Parameters that the data do not hold, and why."""
    notes: tuple[str, ...]
    bootstrap_se: dict[str, dict[str, float]] = field(default_factory=dict)
    """Standard errors by each method that was used: cluster, wild, delta."""

    def error(self, found: Fit, name: str, level: float) -> float:
        """Half the interval of exponent `name` over its t quantile: a standard error that agrees with the interval."""
        low, high = self.ci[name]
        df = self.degrees_of_freedom(found, name)
        if low is None or high is None or df < 1:
            return self.se[name]
        return float((high - low) / 2 / stats.t.ppf(0.5 + level / 2, df))

    def degrees_of_freedom(self, found: Fit, name: str) -> float:
        """Of the t distribution that the interval of exponent `name` goes by."""
        if name in self.profiles:
            return self.profiles[name].df
        return len(np.unique(found.sample.clusters)) - len(found.theta)


def uncertainty(
    found: Fit, *, replicates: int, rng: np.random.Generator, level: float = 0.95, coefficients: bool = True
) -> Uncertainty:
    """Intervals of all parameters of a fit.

    Linear laws by least squares: Student's t, exact. Other laws by least squares: profile likelihood. Either is widened
    where rows share runs or shapes, by the cluster-robust standard error (`slm.scaling.robust`). Huber's loss: t
    intervals on standard errors of the cluster bootstrap, scaled up for the parameters fitted.
    `replicates` = 0 leaves the bootstraps out where they are only a cross-check. Without `coefficients`, those have the
    intervals of the delta method, in logs: exponents and floor are all that anything rests on.
    """
    if found.is_exact:
        return _none(found)
    likelihood = found.loss.name == "least_squares"
    ensembles: dict[str, Ensemble] = {}
    if found.degrees_of_freedom >= 1 and (replicates or not likelihood):
        for kind in RESAMPLED:
            ensembles[kind] = bootstrap(found, kind, replicates or 200, rng)
    profiles: dict[str, Profile] = {}
    if likelihood:
        rests = {*found.law.exponents, "" if found.law.floor is None else list(found.law.parameters)[found.law.floor]}
        for name in found.law.parameters:
            one = profile(found, name, level=level, straight=not coefficients and name not in rests)
            profiles |= {} if one is None else {name: one}
    spread = {kind: _spread(found, e) for kind, e in ensembles.items()}
    delta = _delta(found)
    if likelihood:
        method = "ols_t" if found.law.is_linear else "profile_t"
        method = method if found.sample.is_independent else "cluster_t"
        ci = {name: _of_profile(found, profiles.get(name)) for name in found.law.parameters}
        if "cluster" in ensembles:  # for what has no profile, such as a ratio of coordinates
            drawn = _of_bootstrap(found, ensembles["cluster"], level)
            ci |= {name: drawn[name] for name in found.law.parameters if name not in profiles}
    else:
        method = "cluster_bootstrap"
        ci = _of_bootstrap(found, ensembles.get("cluster"), level)
    se_method = "ols" if method == "ols_t" else "cluster_bootstrap" if "cluster" in spread else "delta"
    se = spread["cluster"] if se_method == "cluster_bootstrap" else delta
    lost = not_identified(found, ci)
    notes = (
        list(dict.fromkeys(lost.values()))
        + remarks(found, ci)
        + [
            f"{one.failed:.0%} of the {kind} bootstrap samples could not be refitted and are left out"
            for kind, one in ensembles.items()
            if one.failed > 0.02 and kind in se_method
        ]
    )
    return Uncertainty(method, se, se_method, ci, profiles, ensembles, lost, tuple(notes), {**spread, "delta": delta})


def _none(found: Fit) -> Uncertainty:
    """Of a fit without scatter."""
    names = found.law.parameters
    lost = not_identified(found, {})
    nothing = dict.fromkeys(names, np.nan)
    open_ends: dict[str, Interval] = dict.fromkeys(names, (None, None))
    return Uncertainty("none", nothing, "none", open_ends, {}, {}, lost, tuple(dict.fromkeys(lost.values())), {})


def _delta(found: Fit) -> dict[str, float]:
    """Delta-method standard errors of the quoted parameters; NaN where there are none."""
    step = 1e-6
    P = len(found.theta)
    moved = found.law.canonical(found.theta + step * np.r_[np.eye(P), -np.eye(P)], found.sample.refs)
    with np.errstate(invalid="ignore", over="ignore"):  # a coefficient at N = 1 may be beyond all floats
        slope = ((moved[:P] - moved[P:]) / (2 * step)).T
        covariance = found.covariance
        errors = np.sqrt(np.diag(slope @ np.nan_to_num(covariance, nan=0.0) @ slope.T))
    errors[np.isnan(np.diag(covariance))] = np.nan
    return dict(zip(found.law.parameters, errors.tolist(), strict=True))


def _spread(found: Fit, ensemble: Ensemble) -> dict[str, float]:
    """Standard deviation of each quoted parameter over the refits; NaN if most could not be made."""
    if len(ensemble.theta) < 20 or ensemble.failed > MOST_FAILED:
        return dict.fromkeys(found.law.parameters, np.nan)
    quoted = found.law.canonical(ensemble.theta, found.sample.refs)
    with np.errstate(invalid="ignore", over="ignore"):
        return dict(zip(found.law.parameters, quoted.std(axis=0, ddof=1).tolist(), strict=True))


def _of_profile(found: Fit, one: Profile | None) -> Interval:
    if one is None:
        return None, None
    if one.name in found.law.signed:
        return one.low, one.high
    with np.errstate(over="ignore"):
        low, high = (None if end is None else float(np.exp(end)) for end in (one.low, one.high))
    return low, high


def _of_bootstrap(found: Fit, ensemble: Ensemble | None, level: float) -> dict[str, Interval]:
    """estimate +- t se on the scale of the exponent or of the logarithm of the coefficient."""
    names = list(found.law.parameters)
    groups = len(np.unique(found.sample.clusters))
    df = groups - len(names)
    if ensemble is None or len(ensemble.theta) < 20 or ensemble.failed > MOST_FAILED or df < 1:
        return dict.fromkeys(names, (None, None))
    reach = stats.t.ppf(0.5 + level / 2, df) * np.sqrt(groups / df)
    centre, draws = _scaled(found, found.theta[None]), _scaled(found, ensemble.theta)
    with np.errstate(over="ignore"):
        ends = [centre[0] - reach * draws.std(axis=0, ddof=1), centre[0] + reach * draws.std(axis=0, ddof=1)]
        back = [np.where(_is_signed(found), end, np.exp(end)) for end in ends]
    return {name: (float(back[0][j]), float(back[1][j])) for j, name in enumerate(names)}


def _is_signed(found: Fit) -> np.ndarray:
    return np.array([name in found.law.signed for name in found.law.parameters])


def _scaled(found: Fit, theta: Floats) -> Floats:
    quoted = found.law.canonical(theta, found.sample.refs)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(_is_signed(found), quoted, np.log(quoted))
