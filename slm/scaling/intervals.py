"""Standard errors and intervals of the parameters of one fit, and which parameters the data identify."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy import stats

from slm.scaling.clusters import Ensemble, Kind, bootstraps
from slm.scaling.fitting import Fit
from slm.scaling.forms import Floats
from slm.scaling.profiles import Profile, profiles
from slm.scaling.starts import coordinate_bounds

Interval = tuple[float | None, float | None]
MAX_SPAN = 10.0
"""An exponent is not identified if the high end of its interval is more than this many times the low end."""
MIN_DEGREES = 3
"""With fewer degrees of freedom, no exponent of a nonlinear law is identified. With 2, few fits of a law with a floor
have an interval within `MAX_SPAN`, and those are narrow by chance: only 60% of them contain the true exponent."""
BOOTSTRAPS: tuple[Kind, ...] = ("cluster", "wild")
MAX_FAILED = 0.5  # a bootstrap is not used if a larger share of its samples could not be refitted
MIN_REFITS = 20  # a bootstrap is not used if fewer refits than this converged


@dataclass(frozen=True)
class Uncertainty:
    """Errors and intervals of reported parameters, not of fitted coordinates. An end without a bound is None."""

    method: str  # of the intervals: ols_t, profile_t, cluster_t, cluster_bootstrap or none
    se: dict[str, float]
    se_method: str  # ols, cluster_bootstrap, delta (if no bootstrap was requested) or none
    ci: dict[str, Interval]
    profiles: dict[str, Profile]
    ensembles: dict[str, Ensemble]
    reasons_not_identified: dict[str, str]  # only for parameters that the data do not identify
    notes: tuple[str, ...]
    bootstrap_se: dict[str, dict[str, float]] = field(default_factory=dict)  # "cluster", "wild" and "delta" -> errors

    def error(self, fit: Fit, name: str, level: float) -> float:
        """The standard error of exponent `name` that matches its interval; `se` if an end of the interval is open."""
        low, high = self.ci[name]
        df = self.degrees_of_freedom(fit, name)
        if low is None or high is None or df < 1:
            return self.se[name]
        return float((high - low) / 2 / stats.t.ppf(0.5 + level / 2, df))

    def degrees_of_freedom(self, fit: Fit, name: str) -> float:
        """Degrees of freedom of the t distribution behind the interval of exponent `name`."""
        if name in self.profiles:
            return self.profiles[name].df
        return len(np.unique(fit.sample.clusters)) - len(fit.theta)


def uncertainty(
    fit: Fit, *, replicates: int, rng: np.random.Generator, level: float = 0.95, profile_coefficients: bool = True
) -> Uncertainty:
    """Compute standard errors and intervals of all parameters of a fit.

    After least squares, intervals of linear laws use Student's t, which is exact; those of other laws use the profile
    likelihood. If several rows share a run or a shape, intervals are widened to match the cluster-robust standard error
    (`slm.scaling.clusters`). After other losses, intervals use Student's t and errors of the cluster bootstrap.
    `replicates` = 0 leaves out bootstraps that are only a cross-check. Without `profile_coefficients`, intervals of
    coefficients come from the delta method in logs, which is quicker; the other intervals are the same.
    """
    names = list(fit.law.parameters)
    if fit.is_exact:
        reasons = _reasons_not_identified(fit, {})
        se = dict.fromkeys(names, np.nan)
        ci: dict[str, Interval] = dict.fromkeys(names, (None, None))
        return Uncertainty("none", se, "none", ci, {}, {}, reasons, notes=tuple(dict.fromkeys(reasons.values())))
    is_least_squares = fit.loss.name == "least_squares"
    ensembles: dict[str, Ensemble] = {}
    if fit.degrees_of_freedom >= 1 and (replicates or not is_least_squares):
        ensembles = bootstraps(fit, BOOTSTRAPS, replicates or 200, rng)
    profile_of: dict[str, Profile] = {}
    method = "cluster_bootstrap"
    ci = _bootstrap_intervals(fit, ensembles.get("cluster"), level)
    if is_least_squares:
        method = "ols_t" if fit.law.is_linear else "profile_t"
        if not fit.sample.is_independent:
            method = "cluster_t"
        floor = [] if fit.law.floor is None else [names[fit.law.floor]]
        by_delta = [] if profile_coefficients else [n for n in names if n not in (*fit.law.exponents, *floor)]
        # Parameters without a profile, such as a ratio of coordinates, keep the interval of the bootstrap.
        profile_of = profiles(fit, names, level=level, delta_method=by_delta)
        ci |= {name: _profile_interval(fit, one) for name, one in profile_of.items()}
    se_by_method = {kind: _bootstrap_errors(fit, ensemble) for kind, ensemble in ensembles.items()}
    se_by_method["delta"] = _delta_errors(fit)
    se_method = "ols" if method == "ols_t" else "delta"
    se = se_by_method["delta"]
    if ensembles and method != "ols_t":
        se_method, se = "cluster_bootstrap", se_by_method["cluster"]
    reasons = _reasons_not_identified(fit, ci)
    notes = [*dict.fromkeys(reasons.values()), *_remarks(fit, ci)]
    if se_method == "cluster_bootstrap" and (share := ensembles["cluster"].failed) > 0.02:
        notes.append(f"{share:.0%} of the cluster bootstrap samples could not be refitted and are left out")
    return Uncertainty(method, se, se_method, ci, profile_of, ensembles, reasons, tuple(notes), se_by_method)


def _profile_interval(fit: Fit, profile: Profile) -> Interval:
    """Return the interval of the reported parameter; the profile of a coefficient is over its logarithm."""
    if profile.name in fit.law.not_logged:
        return profile.low, profile.high
    with np.errstate(over="ignore"):
        low, high = (None if end is None else float(np.exp(end)) for end in (profile.low, profile.high))
    return low, high


def _delta_errors(fit: Fit) -> dict[str, float]:
    """Compute standard errors of the reported parameters by the delta method; NaN for parameters at a bound."""
    step = 1e-6
    P = len(fit.theta)
    moved = fit.law.canonical(fit.theta + step * np.r_[np.eye(P), -np.eye(P)], fit.sample.refs)
    with np.errstate(invalid="ignore", over="ignore"):  # coefficients are values at N = 1 and may overflow
        slope = ((moved[:P] - moved[P:]) / (2 * step)).T
        covariance = fit.covariance
        errors = np.sqrt(np.diag(slope @ np.nan_to_num(covariance, nan=0.0) @ slope.T))
    errors[np.isnan(np.diag(covariance))] = np.nan
    return dict(zip(fit.law.parameters, errors.tolist(), strict=True))


def _is_usable(ensemble: Ensemble) -> bool:
    return len(ensemble.theta) >= MIN_REFITS and ensemble.failed <= MAX_FAILED


def _bootstrap_errors(fit: Fit, ensemble: Ensemble) -> dict[str, float]:
    """Compute the standard deviation of each reported parameter over the refits; NaN if too many refits failed."""
    if not _is_usable(ensemble):
        return dict.fromkeys(fit.law.parameters, np.nan)
    reported = fit.law.canonical(ensemble.theta, fit.sample.refs)
    with np.errstate(invalid="ignore", over="ignore"):
        return dict(zip(fit.law.parameters, reported.std(axis=0, ddof=1).tolist(), strict=True))


def _bootstrap_intervals(fit: Fit, ensemble: Ensemble | None, level: float) -> dict[str, Interval]:
    """Return estimate ± quantile of t × standard error, computed in logs for parameters that are always positive."""
    names = fit.law.parameters
    num_clusters = len(np.unique(fit.sample.clusters))
    df = num_clusters - len(names)
    if ensemble is None or not _is_usable(ensemble) or df < 1:
        return dict.fromkeys(names, (None, None))
    is_signed = np.array([name in fit.law.not_logged for name in names])

    def scaled(theta: Floats) -> Floats:
        reported = fit.law.canonical(theta, fit.sample.refs)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(is_signed, reported, np.log(reported))

    centre, draws = scaled(fit.theta[None])[0], scaled(ensemble.theta)
    half_width = stats.t.ppf(0.5 + level / 2, df) * np.sqrt(num_clusters / df) * draws.std(axis=0, ddof=1)
    ends = np.stack([centre - half_width, centre + half_width], axis=1)
    with np.errstate(over="ignore"):
        ends = np.where(is_signed[:, None], ends, np.exp(ends))
    return {name: (low, high) for name, (low, high) in zip(names, ends.tolist(), strict=True)}


def _reasons_not_identified(fit: Fit, ci: Mapping[str, Interval]) -> dict[str, str]:
    """Return, for each parameter that is not identified, the reason found in the fit's certificate or intervals."""
    law, certificate = fit.law, fit.certificate
    names = list(law.parameters)
    if not certificate.converged:
        return dict.fromkeys(names, "the fit did not converge")
    if fit.is_exact:
        return dict.fromkeys(names, "all runs lie on the law up to rounding, so there is no scatter for an interval")
    too_few = _reason_too_few_sizes(fit)  # this reason, if there is one, takes precedence over the others
    reasons = {name: too_few or _reason_against_exponent(fit, name, ci[name]) for name in law.exponents}
    floor = None if law.floor is None else names[law.floor]
    for name in names:
        if name == floor and name in certificate.at_bound:
            reasons[name] = f"the floor {name} ended at 0: the law without a floor fits as well"
        elif name == floor:
            may_be_zero = too_few is not None or ci[name][0] is None
            reasons[name] = f"a floor {name} of 0 is not excluded" if may_be_zero else None
        elif name not in law.exponents and name not in law.powers:
            reasons[name] = too_few or _reason_bound_or_open_end(fit, name, ci[name])
    for name, powers in law.powers.items():
        exponents = [exponent for _, exponent in powers]
        if name in certificate.at_bound:
            reasons[name] = f"{name} ended at its bound"
            # The term of this coefficient is nearly absent, so an exponent that is in no other term is not identified.
            for exponent in exponents:
                if not _has_other_term(fit, name, exponent):
                    reasons[exponent] = reasons[exponent] or reasons[name]
        else:
            # A coefficient is identified only if all its exponents are. The last reason against one of them is given.
            reasons_of_exponents = [reasons[exponent] for exponent in exponents if reasons[exponent]]
            reasons[name] = reasons_of_exponents[-1] if reasons_of_exponents else None
    return {name: reason for name in names if (reason := reasons[name])}


def _remarks(fit: Fit, ci: Mapping[str, Interval]) -> list[str]:
    """Return remarks on exponents that are below 0 or whose interval includes 0."""
    notes = []
    for name in (name for name in fit.law.exponents if _may_be_negative(fit, name)):
        low, high = ci[name]
        if low is not None and high is not None and low <= 0 <= high:
            notes.append(f"the interval of {name} includes 0")
        elif high is not None and high < 0:
            notes.append(f"{name} is below 0: the target rises with {fit.law.variable_of[name]}")
    return notes


def _may_be_negative(fit: Fit, exponent: str) -> bool:
    """Whether the bounds of the fit allow this exponent to be below 0."""
    low, _ = coordinate_bounds(fit.law, fit.sample)
    return bool(low[fit.law.parameters.index(exponent)] < 0)


def _has_other_term(fit: Fit, coefficient: str, exponent: str) -> bool:
    """Whether the exponent is also in the term of another coefficient that did not end at its bound."""
    return any(
        exponent in dict(powers).values() and other != coefficient and other not in fit.certificate.at_bound
        for other, powers in fit.law.powers.items()
    )


def _reason_too_few_sizes(fit: Fit) -> str | None:
    """Return a reason if the sample has too few sizes or rows for the law; None if it has enough."""
    num_parameters, num_sizes = len(fit.theta), fit.sample.num_points
    if num_sizes >= num_parameters + 2 and (fit.law.is_linear or fit.degrees_of_freedom >= MIN_DEGREES):
        return None
    return (
        f"{num_sizes} distinct sizes and {len(fit.sample.log_y)} values for {num_parameters} parameters are too few: "
        "no exponent is identified"
    )


def _reason_against_exponent(fit: Fit, name: str, interval: Interval) -> str | None:
    """Return in words why this exponent is not identified; None if it is identified."""
    reason = _reason_bound_or_open_end(fit, name, interval)
    low, high = interval
    if reason or low is None or high is None or _may_be_negative(fit, name):
        return reason
    is_wide = low <= 0 or high / low > MAX_SPAN
    return f"the interval of {name} spans a factor of more than {MAX_SPAN:g}" if is_wide else None


def _reason_bound_or_open_end(fit: Fit, name: str, interval: Interval) -> str | None:
    if name in fit.certificate.at_bound:
        return f"{name} ended at its bound"
    return f"the interval of {name} is open" if None in interval else None
