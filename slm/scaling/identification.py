"""Which parameters of a fit the data hold, by the fit's certificate and the intervals found."""

from __future__ import annotations

from collections.abc import Mapping

from slm.scaling.fitting import Fit
from slm.scaling.starts import coordinate_bounds

Interval = tuple[float | None, float | None]
"""Ends; None is open."""
WIDEST = 10.0
"""An exponent whose interval spans a larger factor than this is called not identified."""
FEWEST = 3
"""Degrees of freedom below which no exponent of a law that is not linear is called identified.

With 2 and a floor, the rare intervals narrow enough to pass are narrow by luck, and cover in 60% of cases.
"""


def not_identified(found: Fit, ci: Mapping[str, Interval]) -> dict[str, str]:
    """Parameters that are not identified, each with the first reason why not, in words."""
    if not found.certificate.converged:
        return dict.fromkeys(found.law.parameters, "the fit did not converge")
    if found.is_exact:
        return dict.fromkeys(
            found.law.parameters, "all runs lie on the law to rounding: no scatter to put intervals on"
        )
    lost = dict.fromkeys(found.law.exponents, few) if (few := _too_few(found)) else {}
    at_bound = found.certificate.at_bound
    for name in found.law.exponents:
        reason = _reason(found, name, ci[name])
        if reason:
            lost.setdefault(name, reason)
    names = list(found.law.parameters)
    floor = None if found.law.floor is None else names[found.law.floor]
    if floor is not None:
        if floor in at_bound:
            lost[floor] = f"the floor {floor} ended at 0: the law without it says the same"
        elif few or ci[floor][0] is None:
            lost[floor] = f"a floor {floor} of 0 is not excluded"
    for name, powers in found.law.powers.items():
        exponents = [exponent for _, exponent in powers]
        if name in at_bound:  # without its term an exponent means nothing
            lost[name] = f"{name} ended at its bound"
            for exponent in exponents:
                if not _elsewhere(found, name, exponent):
                    lost.setdefault(exponent, lost[name])
        else:
            for exponent in (one for one in exponents if one in lost):
                lost[name] = lost[exponent]
    for name in names:  # what is neither floor, exponent nor the coefficient of a power
        if name in lost or name in (floor, *found.law.exponents, *found.law.powers):
            continue
        if few or name in at_bound or None in ci[name]:
            lost[name] = few or (
                f"{name} ended at its bound" if name in at_bound else f"the interval of {name} is open"
            )
    return {name: lost[name] for name in found.law.parameters if name in lost}


def _both_ways(found: Fit, name: str) -> bool:
    """Whether an exponent may be below 0, so that 0 is a value like another."""
    return bool(coordinate_bounds(found.law, found.sample)[0][list(found.law.parameters).index(name)] < 0)


def _elsewhere(found: Fit, coefficient: str, exponent: str) -> bool:
    """Whether the exponent is also that of another coefficient, whose term is there."""
    return any(
        exponent in dict(powers).values() and name != coefficient and name not in found.certificate.at_bound
        for name, powers in found.law.powers.items()
    )


def remarks(found: Fit, ci: Mapping[str, Interval]) -> list[str]:
    """Remarks on exponents of a straight line that may as well be 0, or are below it."""
    said = []
    for name in (name for name in found.law.exponents if _both_ways(found, name)):
        low, high = ci[name]
        if low is not None and high is not None and low <= 0 <= high:
            said.append(f"the interval of {name} includes 0")
        elif high is not None and high < 0:
            said.append(f"{name} is below 0: the target rises with {found.law.variable_of[name]}")
    return said


def _too_few(found: Fit) -> str | None:
    P = len(found.theta)
    if found.sample.points >= P + 2 and (found.law.is_linear or found.degrees_of_freedom >= FEWEST):
        return None
    return (
        f"{found.sample.points} distinct sizes and {len(found.sample.log_y)} values for {P} parameters are too few: "
        "no exponent is identified"
    )


def _reason(found: Fit, name: str, interval: Interval) -> str | None:
    low, high = interval
    if name in found.certificate.at_bound:
        return f"{name} ended at its bound"
    if low is None or high is None:
        return f"the interval of {name} is open"
    if not _both_ways(found, name) and (low <= 0 or high / low > WIDEST):
        return f"the interval of {name} spans a factor of more than {WIDEST:g}"
    return None
