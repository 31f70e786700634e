"""Which parameters of a fit the data identify, judged by the certificate of the fit and by its intervals."""

from __future__ import annotations

from collections.abc import Mapping

from slm.scaling.fitting import Fit
from slm.scaling.starts import coordinate_bounds

Interval = tuple[float | None, float | None]
"""The ends of an interval; an end of None is open."""
MAX_SPAN = 10.0
"""An exponent is not identified if the ratio of its interval's ends is larger than this."""
MIN_DEGREES = 3
"""With fewer degrees of freedom, no exponent of a law that is not linear is identified.

With 2 of them, and a floor in the law, few intervals pass `MAX_SPAN`; those are narrow by chance, and contain the true
exponent in only 60% of cases.
"""


def reasons_not_identified(fit: Fit, ci: Mapping[str, Interval]) -> dict[str, str]:
    """Parameter -> the first reason why it is not identified, in words; identified parameters are left out."""
    law, certificate = fit.law, fit.certificate
    names = list(law.parameters)
    if not certificate.converged:
        return dict.fromkeys(names, "the fit did not converge")
    if fit.is_exact:
        return dict.fromkeys(names, "all runs lie on the law to rounding: no scatter to put intervals on")
    too_few = _too_few_sizes(fit)
    reasons = {name: too_few or _reason_against_exponent(fit, name, ci[name]) for name in law.exponents}
    floor = None if law.floor is None else names[law.floor]
    for name in names:
        is_at_bound = name in certificate.at_bound
        if name == floor and is_at_bound:
            reasons[name] = f"the floor {name} ended at 0: the law without a floor fits as well"
        elif name == floor:
            reasons[name] = f"a floor {name} of 0 is not excluded" if too_few or ci[name][0] is None else None
        elif name not in law.exponents and name not in law.powers:
            open_end = f"the interval of {name} is open" if None in ci[name] else None
            reasons[name] = too_few or (f"{name} ended at its bound" if is_at_bound else open_end)
    for name, powers in law.powers.items():
        exponents = [exponent for _, exponent in powers]
        if name in certificate.at_bound:
            reasons[name] = f"{name} ended at its bound"
            # The term of this coefficient is all but absent, so an exponent that stands in no other term means nothing.
            for exponent in exponents:
                if not _has_other_term(fit, name, exponent):
                    reasons[exponent] = reasons[exponent] or reasons[name]
        else:
            # A coefficient is identified only if its exponents are; of several reasons, the last exponent's is given.
            reasons[name] = next((reason for exponent in reversed(exponents) if (reason := reasons[exponent])), None)
    return {name: reason for name in names if (reason := reasons[name])}


def remarks(fit: Fit, ci: Mapping[str, Interval]) -> list[str]:
    """Remarks on exponents that are below 0 or whose interval includes 0, which only straight lines can have."""
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
    return bool(coordinate_bounds(fit.law, fit.sample)[0][fit.law.parameters.index(exponent)] < 0)


def _has_other_term(fit: Fit, coefficient: str, exponent: str) -> bool:
    """Whether the exponent also stands in the term of another coefficient, and that one did not end at its bound."""
    return any(
        exponent in dict(powers).values() and name != coefficient and name not in fit.certificate.at_bound
        for name, powers in fit.law.powers.items()
    )


def _too_few_sizes(fit: Fit) -> str | None:
    """That the sample has too few sizes or values for the law, in words; None if it has enough."""
    num_parameters, num_sizes = len(fit.theta), fit.sample.points
    if num_sizes >= num_parameters + 2 and (fit.law.is_linear or fit.degrees_of_freedom >= MIN_DEGREES):
        return None
    return (
        f"{num_sizes} distinct sizes and {len(fit.sample.log_y)} values for {num_parameters} parameters are too few: "
        "no exponent is identified"
    )


def _reason_against_exponent(fit: Fit, name: str, interval: Interval) -> str | None:
    """Why this exponent is not identified, in words; None if it is."""
    low, high = interval
    if name in fit.certificate.at_bound:
        return f"{name} ended at its bound"
    if low is None or high is None:
        return f"the interval of {name} is open"
    if not _may_be_negative(fit, name) and (low <= 0 or high / low > MAX_SPAN):
        return f"the interval of {name} spans a factor of more than {MAX_SPAN:g}"
    return None
