"""Which parameters of a fit the data determine, by the fit's certificate and its intervals."""

from __future__ import annotations

from collections.abc import Mapping

from slm.scaling.fitting import Fit
from slm.scaling.starts import coordinate_bounds

Interval = tuple[float | None, float | None]
"""Ends; None is open."""
MAX_SPAN = 10.0
"""An exponent whose interval spans a larger factor than this is called not identified."""
MIN_DEGREES = 3
"""Degrees of freedom below which no exponent of a law that is not linear is called identified.

With 2 and a floor, the rare intervals narrow enough to pass are narrow by luck, and cover in 60% of cases.
"""


def not_identified(fit: Fit, ci: Mapping[str, Interval]) -> dict[str, str]:
    """Parameters that are not identified, each with the first reason why not, in words."""
    law, certificate = fit.law, fit.certificate
    names = list(law.parameters)
    if not certificate.converged:
        return dict.fromkeys(names, "the fit did not converge")
    if fit.is_exact:
        return dict.fromkeys(names, "all runs lie on the law to rounding: no scatter to put intervals on")
    few = _too_few(fit)
    reasons = {name: few or _reason(fit, name, ci[name]) for name in law.exponents}
    floor = None if law.floor is None else names[law.floor]
    for name in names:
        is_at_bound = name in certificate.at_bound
        if name == floor and is_at_bound:
            reasons[name] = f"the floor {name} ended at 0: the law without it says the same"
        elif name == floor:
            reasons[name] = f"a floor {name} of 0 is not excluded" if few or ci[name][0] is None else None
        elif name not in law.exponents and name not in law.powers:
            open_end = f"the interval of {name} is open" if None in ci[name] else None
            reasons[name] = few or (f"{name} ended at its bound" if is_at_bound else open_end)
    for name, powers in law.powers.items():
        exponents = [exponent for _, exponent in powers]
        if name in certificate.at_bound:  # without its term an exponent means nothing
            reasons[name] = f"{name} ended at its bound"
            for exponent in exponents:
                if not _has_other_term(fit, name, exponent):
                    reasons[exponent] = reasons[exponent] or reasons[name]
        else:
            reasons[name] = next((reasons[one] for one in reversed(exponents) if reasons[one]), None)
    return {name: reason for name in names if (reason := reasons[name])}


def remarks(fit: Fit, ci: Mapping[str, Interval]) -> list[str]:
    """Remarks on exponents of a straight line that may as well be 0, or are below it."""
    notes = []
    for name in (name for name in fit.law.exponents if _may_be_negative(fit, name)):
        low, high = ci[name]
        if low is not None and high is not None and low <= 0 <= high:
            notes.append(f"the interval of {name} includes 0")
        elif high is not None and high < 0:
            notes.append(f"{name} is below 0: the target rises with {fit.law.variable_of[name]}")
    return notes


def _may_be_negative(fit: Fit, exponent: str) -> bool:
    return bool(coordinate_bounds(fit.law, fit.sample)[0][fit.law.parameters.index(exponent)] < 0)


def _has_other_term(fit: Fit, coefficient: str, exponent: str) -> bool:
    """Whether the exponent is also that of another coefficient, which did not end at a bound."""
    return any(
        exponent in dict(powers).values() and name != coefficient and name not in fit.certificate.at_bound
        for name, powers in fit.law.powers.items()
    )


def _too_few(fit: Fit) -> str | None:
    P, points = len(fit.theta), fit.sample.points
    if points >= P + 2 and (fit.law.is_linear or fit.degrees_of_freedom >= MIN_DEGREES):
        return None
    values = len(fit.sample.log_y)
    return f"{points} distinct sizes and {values} values for {P} parameters are too few: no exponent is identified"


def _reason(fit: Fit, name: str, interval: Interval) -> str | None:
    low, high = interval
    if name in fit.certificate.at_bound:
        return f"{name} ended at its bound"
    if low is None or high is None:
        return f"the interval of {name} is open"
    if not _may_be_negative(fit, name) and (low <= 0 or high / low > MAX_SPAN):
        return f"the interval of {name} spans a factor of more than {MAX_SPAN:g}"
    return None
