"""Families under one law, from nested models to a smallest detectable difference: `laws` of comparison.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
from scipy import stats

from slm.scaling.entries import Entry, Fitted
from slm.scaling.families import (
    MODELS,
    Families,
    JointFit,
    efficiency_factors,
    fit_joint,
    gather,
    likelihood_ratio,
    sharing,
)
from slm.scaling.fitting import Fit
from slm.scaling.intervals import Uncertainty
from slm.scaling.pairs import Difference, difference, holm
from slm.scaling.pooling import pool
from slm.scaling.power import Design, seeds_needed, span_needed
from slm.scaling.settings import Settings
from slm.scaling.starts import is_linear
from slm.scaling.verdict import UNEQUAL

FEWEST_POOLED = 3
"""Families from which a population of families can be guessed at all."""
Complete = dict[str, tuple[Fit, Uncertainty]]


def complete(fitted: Mapping[str, Fitted]) -> Complete:
    """The families whose exponents are identified; if those are fewer than two, all that were fitted with scatter."""
    known = {
        name: (one.fit, one.uncertainty)
        for name, one in fitted.items()
        if one.fit is not None and one.uncertainty and not one.fit.exact
    }
    identified = {name: one for name, one in known.items() if fitted[name].entry["identified"]}
    return identified if len(identified) > 1 else known


def compare_law(
    fitted: Mapping[str, Fitted], settings: Settings, rng: np.random.Generator, *, thorough: bool = True
) -> Entry | None:
    """Nested models, pairs, pooling and power of one law; None with fewer than two families fitted.

    Unless `thorough`, nested models are calibrated with fewer simulations and pairs by the profile's t alone.
    """
    if not thorough:
        settings = replace(settings, calibration=min(settings.calibration, 199))
    of = complete(fitted)
    if len(of) < 2:
        return None
    law = next(iter(of.values()))[0].law
    families = gather({name: fit for name, (fit, _) in of.items()})
    joint = _joint_fits(families)
    assumed = _assumptions(of)
    alike = assumed["equal_variance_p"] is None or assumed["equal_variance_p"] >= UNEQUAL
    independent = not assumed["rows_share_runs"]  # else the ratios are too sure, and are not shown
    tests = _tests(families, joint, settings, rng) if independent else []
    factors = efficiency_factors(families, joint["efficiency"], 500, rng, level=settings.level) if independent else []
    return {
        "law": law.name,
        "families": list(of),
        "left_out": [name for name in fitted if name not in of],
        "models": _models(families, joint),
        "tests": tests,
        "assumptions": assumed,
        "efficiency": [vars(factor) for factor in factors],
        "pairs": _pairs(of, tests, settings, rng, thorough, alike),
        "pooled": {name: _pooled(of, name, settings.level) for name in law.exponents},
        "power": design_power(of, settings),
    }


def _joint_fits(families: Families) -> dict[str, JointFit]:
    """Every nested model, except those that are another one under this law."""
    law, F = families.law, len(families.names)
    joint: dict[str, JointFit] = {}
    for model in MODELS:
        joint[model] = fit_joint(families, model)
    if np.array_equal(sharing(law, F, "efficiency"), sharing(law, F, "shared_exponents")):
        joint["shared_exponents"] = joint["efficiency"]
    return joint


def _models(families: Families, joint: Mapping[str, JointFit]) -> list[Entry]:
    best = min((one.criteria()[0] for one in joint.values() if np.isfinite(one.criteria()[0])), default=np.nan)
    rows = []
    for model, one in joint.items():
        aicc, bic = one.criteria()
        exponents = {
            name: float(one.theta[0][list(families.law.parameters).index(name)]) for name in families.law.exponents
        }
        rows.append(
            {
                "model": model,
                "parameters": len(one.phi),
                "sse": one.sse,
                "aicc": aicc,
                "aicc_above_best": aicc - best,
                "bic": bic,
                "converged": one.converged,
                "starts_agreeing": one.starts_agreeing,
                "shared_exponents": exponents if model != "separate" else None,
            }
        )
    return rows


def _tests(
    families: Families, joint: Mapping[str, JointFit], settings: Settings, rng: np.random.Generator
) -> list[Entry]:
    rows = []
    for model in MODELS[:-1]:
        if model == "shared_exponents" and joint[model] is joint["efficiency"]:
            continue
        possible = is_linear(families.law) or settings.calibration
        if possible and joint["separate"].rows > len(joint["separate"].phi):
            ratio = likelihood_ratio(families, joint[model], joint["separate"], settings.calibration, rng)
            rows.append(vars(ratio))
    for row in rows:
        if joint["efficiency"] is joint["shared_exponents"] and row["restricted"] == "efficiency":
            row["restricted"] = "shared_exponents"  # without a floor the two are one model
    return rows


def _assumptions(of: Complete) -> Entry:
    """Whether one variance for all families is tenable (Bartlett's test), and whether rows are independent."""
    fits = [fit for fit, _ in of.values()]
    df = np.array([fit.degrees_of_freedom for fit in fits], float)
    sse = np.array([fit.sse for fit in fits])
    clustered = any(fit.sample.rows_share_runs for fit in fits)
    p = None
    if (df >= 1).all() and (sse > 0).all():
        pooled = sse.sum() / df.sum()
        statistic = df.sum() * np.log(pooled) - (df * np.log(sse / df)).sum()
        correction = 1 + ((1 / df).sum() - 1 / df.sum()) / (3 * (len(df) - 1))
        p = float(stats.chi2.sf(statistic / correction, len(df) - 1))
    return {"equal_variance_p": p, "rows_share_runs": clustered, "sigma": {n: f.sigma for n, (f, _) in of.items()}}


def _pairs(
    of: Complete, tests: Sequence[Entry], settings: Settings, rng: np.random.Generator, thorough: bool, alike: bool
) -> list[Entry]:
    """Every pair's difference of each exponent; Holm's adjustment runs over all of them."""
    whole = next((test["p"] for test in tests if test["restricted"] == "shared_exponents"), None)
    law = next(iter(of.values()))[0].law
    found: list[tuple[Difference, float | None]] = []
    for exponent in law.exponents:
        for a, b in combinations(of, 2):
            one = difference((a, *of[a]), (b, *of[b]), exponent, level=settings.level, alike=alike)
            simulated = thorough and settings.calibration and alike
            exact = one.method != "profile_t" or is_linear(law) or not simulated
            if exact:
                p = one.p
            elif len(of) == 2 and len(law.exponents) == 1:  # the hypothesis that was just tested
                p = whole
            else:
                p = _calibrated({n: of[n][0] for n in (a, b)}, one, settings, rng)
            found.append((one, p))
    lost = {(name, e) for name, (_, u) in of.items() for e in u.not_identified}
    usable = [{(one.a, one.exponent), (one.b, one.exponent)}.isdisjoint(lost) for one, _ in found]
    adjusted = holm([p if known else None for (_, p), known in zip(found, usable, strict=True)])
    return [
        {
            "a": one.a,
            "b": one.b,
            "exponent": one.exponent,
            "delta": one.delta,
            "ci_low": one.low,
            "ci_high": one.high,
            "p": p,
            "p_profile": one.p,
            "p_adjusted": after,
            "method": one.method,
            "replicates": 0 if one.p == p else settings.calibration,
            "identified": known,
        }
        for (one, p), after, known in zip(found, adjusted, usable, strict=True)
    ]


def _calibrated(pair: Mapping[str, Fit], one: Difference, settings: Settings, rng: np.random.Generator) -> float | None:
    """p of equal exponents of a law that is not linear: a likelihood ratio with everything else free, simulated."""
    if one.p is None:
        return None
    families = gather(pair)
    shared = fit_joint(families, "share", shared=[one.exponent])
    return likelihood_ratio(families, shared, fit_joint(families, "separate"), settings.calibration, rng).p


def _pooled(of: Complete, exponent: str, level: float) -> Entry | None:
    fits = {n: fu for n, fu in of.items() if exponent not in fu[1].not_identified}
    errors = [u.error(f, exponent, level) for f, u in fits.values()]
    found = (
        pool([fit.params[exponent] for fit, _ in fits.values()], errors, level=level)
        if len(fits) >= FEWEST_POOLED
        else None
    )
    if found is None:
        return None
    return vars(found) | {"families": list(fits), "shrunken": dict(zip(fits, found.shrunken, strict=True))}


def design_power(of: Complete, settings: Settings) -> Entry:
    """The smallest difference of the first exponent that the families' own designs would detect, and better designs.

    Each family's design, scatter and law are taken as found; the largest is reported, since all pairs are compared.
    Rows that share runs count as the runs they are, with the scatter that the cluster bootstrap saw.
    """
    pairs = max(1, len(of) * (len(of) - 1) // 2)
    law = next(iter(of.values()))[0].law
    level = 1 - settings.level
    pooled = np.sqrt(
        sum(f.sse for f, _ in of.values()) / max(1, sum(max(f.degrees_of_freedom, 0) for f, _ in of.values()))
    )
    designs = {name: _design(fit, u, float(pooled), settings.level) for name, (fit, u) in of.items()}
    found = {
        name: None
        if law.exponents[0] in of[name][1].not_identified
        else d.detectable(power=settings.power, level=level, pairs=pairs)
        for name, d in designs.items()
    }
    known = [value for value in found.values() if value is not None]
    smallest = max(known) if len(known) == len(found) else None
    better: Entry = {}
    if smallest:
        worst = designs[max(found, key=lambda name: found[name] or 0.0)]
        half = smallest / 2
        asked = {"power": settings.power, "level": level, "pairs": pairs}
        better = {
            "half": half,
            "times_runs_for_half": seeds_needed(worst, half, **asked),  # type: ignore[arg-type]
            "span_now": float(np.exp(np.ptp(worst.log_x[:, 0]))),
            "span_for_half": span_needed(worst, half, **asked),  # type: ignore[arg-type]
        }
    return {
        "exponent": law.exponents[0],
        "power": settings.power,
        "level": level,
        "pairs": pairs,
        "sigma_log": float(pooled),
        "detectable": smallest,
        "by_family": found,
        "better": better,
    }


def _design(fit: Fit, of: Uncertainty, sigma: float, level: float) -> Design:
    """The rows as they are: seeds are rows of their own."""
    design = Design(fit.law, fit.sample.log_x, fit.params, sigma)
    if not fit.sample.rows_share_runs:
        return design
    seen, independent = of.error(fit, fit.law.exponents[0], level), design.error()
    factor = seen / independent if np.isfinite(seen) and 0 < independent < np.inf else 1.0
    return replace(design, sigma=sigma * factor, groups=len(np.unique(fit.sample.clusters)))
