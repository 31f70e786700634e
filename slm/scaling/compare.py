"""Families under one law: one test of all, pairs, nested models, levels, and what could have been found.

`laws` of comparison.json. What families at the same sizes show without any law is in `slm.scaling.paired`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations

import numpy as np

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
from slm.scaling.fitting import Fit, fit_sample, refusal
from slm.scaling.floors import any_floor_p
from slm.scaling.intervals import Uncertainty, uncertainty
from slm.scaling.matching import SAME_SIZE
from slm.scaling.pairs import Curve, adjust, curve, difference, holm, joint_p
from slm.scaling.pooling import pool
from slm.scaling.power import Design, UnpairedDesigns
from slm.scaling.settings import Settings

FEWEST_POOLED = 3
"""Families from which a population of families can be guessed at all."""
Complete = dict[str, tuple[Fit, Uncertainty]]


def complete(fitted: Mapping[str, Fitted]) -> Complete:
    """The families whose exponents are identified; if those are fewer than two, all that were fitted with scatter."""
    known = {
        name: (one.fit, one.uncertainty)
        for name, one in fitted.items()
        if one.fit is not None and one.uncertainty and not one.fit.is_exact
    }
    identified = {name: one for name, one in known.items() if fitted[name].entry["identified"]}
    return identified if len(identified) > 1 else known


def compare_law(
    fitted: Mapping[str, Fitted], settings: Settings, rng: np.random.Generator, *, thorough: bool = True
) -> Entry | None:
    """The families under one law; None with fewer than two families fitted.

    Unless `thorough`, only one test of all families and the pairs: no nested models, factors, pooling and power.
    """
    own = complete(fitted)
    if len(own) < 2:
        return None
    law = next(iter(own.values()))[0].law
    fits, common = _over_common_range(own, settings)
    joint_tests = _joint_tests(fits, settings, rng)
    found: Entry = {
        "law": law.name,
        "families": list(fits),
        "left_out": [name for name in fitted if name not in fits],
        "common_range": common,
        "independent": all(fit.sample.is_independent for fit, _ in fits.values()),
        "joint": joint_tests,
        "p": min((test["p_adjusted"] for test in joint_tests.values()), default=None),
        "pairs": _pairs(fits, settings),
    }
    if not thorough:
        return found
    families = gather({name: fit for name, (fit, _) in fits.items()})
    joint = _joint_fits(families)
    tests = _tests(families, joint, settings.calibration, rng) if found["independent"] else []
    return found | {
        "models": _models(families, joint),
        "tests": tests,
        "efficiency": [vars(one) for one in efficiency_factors(families, joint["efficiency"], level=settings.level)],
        "pooled": {name: _pooled(fits, name, settings.level, joint_tests) for name in law.exponents},
        "power": design_power(fits, fitted, settings),
    }


def _over_common_range(of: Complete, settings: Settings) -> tuple[Complete, Entry | None]:
    """Fits to the sizes that lie in every family's range, under a law that bends nowhere.

    A straight line through a curve depends on where it was looked at: families of one floored law whose sizes are
    shifted by a factor of 4 have power laws of other exponents. Nothing changes where ranges agree, where the law has a
    floor, or where too few sizes are left (`range` is then None).
    """
    if not all(fit.law.is_linear for fit, _ in of.values()):
        return of, None
    ends = [(fit.sample.log_x[:, 0].min(), fit.sample.log_x[:, 0].max()) for fit, _ in of.values()]
    slack = np.log1p(SAME_SIZE)
    low, high = max(end[0] for end in ends) - slack, min(end[1] for end in ends) + slack
    if all(abs(end[0] - low - slack) <= slack and abs(end[1] - high + slack) <= slack for end in ends):
        return of, None
    found: Complete = {}
    for name, (fit, _) in of.items():
        x = fit.sample.log_x[:, 0]
        kept = fit.sample.subset((x >= low) & (x <= high))
        if len(kept.log_y) < 4 or refusal(fit.law, kept):
            return of, {"range": None}
        again = fit_sample(fit.law, kept, loss=fit.loss)
        found[name] = again, uncertainty(again, replicates=0, rng=np.random.default_rng(0), level=settings.level)
    return found, {"range": [float(np.exp(low + slack)), float(np.exp(high - slack))]}


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
    scores = {model: one.criteria() for model, one in joint.items()}
    best = min((score.aicc for score in scores.values() if np.isfinite(score.aicc)), default=np.nan)
    rows = []
    for model, one in joint.items():
        exponents = {
            name: float(one.theta[0][list(families.law.parameters).index(name)]) for name in families.law.exponents
        }
        rows.append(
            {
                "model": model,
                "parameters": len(one.phi),
                "sse": one.sse,
                "aicc": scores[model].aicc,
                "aicc_above_best": scores[model].aicc - best,
                "bic": scores[model].bic,
                "converged": one.converged,
                "starts_agreeing": one.starts_agreeing,
                "shared_exponents": exponents if model != "separate" else None,
            }
        )
    return rows


def _tests(
    families: Families, joint: Mapping[str, JointFit], calibration: int, rng: np.random.Generator
) -> list[Entry]:
    """Each model against separate laws, and one law for all against a constant factor on size (and data)."""
    alike = joint["efficiency"] is joint["shared_exponents"]  # without a floor the two are one model
    asked = [(model, "separate") for model in MODELS[:-1] if not (alike and model == "efficiency")]
    asked.append(("one_law", "shared_exponents" if alike else "efficiency"))
    if joint["separate"].rows <= len(joint["separate"].phi) or not (families.law.is_linear or calibration):
        return []
    rows = []
    for restricted, wider in asked:
        ratio = likelihood_ratio(families, joint[restricted], joint[wider], calibration, rng)
        rows.append(vars(ratio) | {"restricted": restricted, "wider": wider})
    return rows


def _curves(fits: Complete, exponent: str, level: float) -> dict[str, Curve]:
    """Of the families that identify the exponent."""
    found = {
        name: curve(fit, of, exponent, level) for name, (fit, of) in fits.items() if exponent not in of.not_identified
    }
    return {name: one for name, one in found.items() if one is not None}


def _joint_tests(fits: Complete, settings: Settings, rng: np.random.Generator) -> dict[str, Entry]:
    """One test of all families for each exponent that at least two identify; adjusted over the exponents."""
    law = next(iter(fits.values()))[0].law
    tests: dict[str, Entry] = {}
    for exponent in law.exponents:
        curves = _curves(fits, exponent, settings.level)
        if len(curves) > 1:
            statistic, p = joint_p(list(curves.values()), rng)
            tests[exponent] = {"families": list(curves), "statistic": statistic, "p": p}
    for test, adjusted in zip(tests.values(), holm([test["p"] for test in tests.values()]), strict=True):
        test["p_adjusted"] = adjusted
    return tests


def _pairs(fits: Complete, settings: Settings) -> list[Entry]:
    """Every pair's difference of each exponent; Holm's adjustment runs over all of them."""
    law = next(iter(fits.values()))[0].law
    rows = []
    for exponent in law.exponents:
        curves = _curves(fits, exponent, settings.level)
        for a, b in combinations(fits, 2):
            row: Entry = {"a": a, "b": b, "exponent": exponent, "identified": a in curves and b in curves}
            row |= {"variable": law.variable_of[exponent], "straight": law.is_linear}
            row["delta"] = fits[a][0].params[exponent] - fits[b][0].params[exponent]
            if row["identified"]:
                found = difference((a, curves[a]), (b, curves[b]), exponent, level=settings.level)
                row |= {"ci_low": found.low, "ci_high": found.high, "p": found.p, "df": found.df}
                row["p_any_floor"] = any_floor_p(fits[a][0], fits[b][0], found, settings.level)
            else:
                row |= dict.fromkeys(("ci_low", "ci_high", "p", "df", "p_any_floor"))
            rows.append(row)
    adjust(rows)
    return rows


def _pooled(fits: Complete, exponent: str, level: float, tests: Mapping[str, Entry]) -> Entry | None:
    known = {n: fu for n, fu in fits.items() if exponent not in fu[1].not_identified}
    if len(known) < FEWEST_POOLED or exponent not in tests:
        return None
    errors = [u.error(f, exponent, level) for f, u in known.values()]
    found = pool([fit.params[exponent] for fit, _ in known.values()], errors, level=level)
    if found is None:
        return None
    shrunken = dict(zip(known, found.shrunken, strict=True))
    return vars(found) | {"q_p": tests[exponent]["p"], "families": list(known), "shrunken": shrunken}


def design_power(fits: Complete, fitted: Mapping[str, Fitted], settings: Settings) -> Entry:
    """The smallest difference of the first exponent that each pair's own designs and scatter would have shown.

    `detectable` is the largest over the pairs; `advice` says what would show half of that, for that pair.
    """
    law, level = next(iter(fits.values()))[0].law, 1 - settings.level
    designs = {
        name: _design(fit, of, fitted[name].entry, settings.level)
        for name, (fit, of) in fits.items()
        if law.exponents[0] not in of.not_identified
    }
    pairs = [UnpairedDesigns(designs[a], designs[b]) for a, b in combinations(designs, 2)]
    compared = len(law.exponents) * len(fitted) * (len(fitted) - 1) // 2  # what p-values are adjusted over
    asked: Entry = {"power": settings.power, "level": level, "pairs": compared}
    found = [pair.detectable(**asked) for pair in pairs]
    known = [value for value in found if value is not None]
    smallest = max(known) if known and len(designs) == len(fits) and len(known) == len(found) else None
    rows = [
        {"a": a, "b": b, "detectable": value} for (a, b), value in zip(combinations(designs, 2), found, strict=True)
    ]
    advice = pairs[found.index(smallest)].advice(smallest / 2, **asked) if smallest else None
    return {
        "exponent": law.exponents[0],
        "power": settings.power,
        "level": level,
        "pairs": compared,
        "detectable": smallest,
        "by_pair": rows,
        "advice": advice and {**vars(advice), "text": advice.text},
    }


def _design(fit: Fit, of: Uncertainty, entry: Entry, level: float) -> Design:
    """A family's cells, with the scatter of its seeds apart from that of its sizes about the law."""
    test = entry["lack_of_fit"]
    seeds = max(1, round(entry["n_rows"] / entry["n_cells"])) if entry["unit"] == "cell" else 1
    pure = test["pure_sigma"] if test else None
    misfit = float(np.sqrt(max(fit.sigma**2 - (pure or 0.0) ** 2 / seeds, 0.0)))
    design = Design(fit.law, fit.sample.log_x, fit.params, pure, misfit, seeds)
    if fit.sample.is_independent:
        return design
    seen, usual = of.error(fit, fit.law.exponents[0], level), design.error()
    factor = seen / usual if np.isfinite(seen) and 0 < usual < np.inf else 1.0
    return replace(
        design,
        sigma=None if pure is None else pure * factor,
        misfit=misfit * factor,
        groups=len(np.unique(fit.sample.clusters)),
    )
