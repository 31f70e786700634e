"""Compare families under one law: joint test, pairs, nested models, pooling, and the smallest detectable difference.

The result is an entry of `laws` in comparison.json. The comparison at equal sizes, which needs no law, is in
`slm.scaling.paired`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations

import numpy as np

from slm.scaling.entries import Entry, Fitted
from slm.scaling.families import MODELS, Families, JointFit, efficiency_factors, fit_joint, gather, likelihood_ratio
from slm.scaling.fitting import Fit, fit_sample, refusal
from slm.scaling.intervals import Uncertainty, uncertainty
from slm.scaling.laws import Law
from slm.scaling.matching import SAME_SIZE
from slm.scaling.pairs import Curve, adjust, any_floor_p, curve, difference, holm, joint_p
from slm.scaling.pooling import pool
from slm.scaling.power import Design, UnpairedDesigns
from slm.scaling.settings import Settings

MIN_POOLED = 3
"""Fewest families from which a population of families is estimated."""
Fits = dict[str, tuple[Fit, Uncertainty]]


def compare_law(
    fitted: Mapping[str, Fitted], settings: Settings, rng: np.random.Generator, *, thorough: bool = True
) -> Entry | None:
    """The families under one law; None with fewer than two families fitted.

    Unless `thorough`, the entry has only the joint test of all families and the pairs.
    """
    fits = _comparable(fitted)
    if len(fits) < 2:
        return None
    law = next(iter(fits.values()))[0].law
    fits, common = _over_common_range(fits, law, settings)
    curves = _curves(fits, law, settings.level)
    joint_tests = _joint_tests(curves, rng)
    entry: Entry = {
        "law": law.name,
        "families": list(fits),
        "left_out": [name for name in fitted if name not in fits],
        "common_range": common,
        "independent": all(fit.sample.is_independent for fit, _ in fits.values()),
        "joint": joint_tests,
        "p": min((test["p_adjusted"] for test in joint_tests.values()), default=None),
        "pairs": _pairs(fits, law, curves, settings.level),
    }
    if not thorough:
        return entry
    families = gather({name: fit for name, (fit, _) in fits.items()})
    models = {name: fit_joint(families, name) for name in MODELS}
    if law.floor is None:  # without a floor, the two are the same model
        models["shared_exponents"] = models["efficiency"]
    return entry | {
        "models": _model_rows(law, models),
        "tests": _likelihood_ratios(families, models, settings.calibration, rng) if entry["independent"] else [],
        "efficiency": efficiency_factors(families, models["efficiency"], level=settings.level),
        "pooled": {name: _pooled(fits, name, settings.level, joint_tests) for name in law.exponents},
        "power": _power(fits, law, fitted, settings),
    }


def _comparable(fitted: Mapping[str, Fitted]) -> Fits:
    """The families whose exponents are identified; if those are fewer than two, all that were fitted with scatter."""
    results = ((name, result.fit, result.uncertainty) for name, result in fitted.items())
    fits = {name: (fit, bounds) for name, fit, bounds in results if fit and bounds and not fit.is_exact}
    identified = {name: pair for name, pair in fits.items() if fitted[name].entry["identified"]}
    return identified if len(identified) > 1 else fits


def _over_common_range(fits: Fits, law: Law, settings: Settings) -> tuple[Fits, Entry | None]:
    """Fits to the sizes in the range that all families share, for laws that are straight lines in logs.

    The slope of a straight line through a curve depends on the range of sizes: of two families that follow the same law
    with a floor, one with sizes 4 times as large has another slope. The fits stay as they are if the ranges agree, if
    the law is not a straight line, or if too few sizes are left (`range` is then None).
    """
    log_sizes = {name: fit.sample.log_x[:, 0] for name, (fit, _) in fits.items()}
    lows, highs = np.array([(x.min(), x.max()) for x in log_sizes.values()]).T
    low, high, slack = lows.max(), highs.min(), np.log1p(SAME_SIZE)
    if not law.is_linear or max(low - lows.min(), highs.max() - high) <= slack:
        return fits, None
    refits: Fits = {}
    for name, (fit, _) in fits.items():
        kept = fit.sample.subset((log_sizes[name] >= low - slack) & (log_sizes[name] <= high + slack))
        if len(kept.log_y) < 4 or refusal(law, kept):
            return fits, {"range": None}
        refit = fit_sample(law, kept, loss=fit.loss)
        refits[name] = refit, uncertainty(refit, replicates=0, rng=np.random.default_rng(0), level=settings.level)
    return refits, {"range": np.exp([low, high]).tolist()}


def _curves(fits: Fits, law: Law, level: float) -> dict[str, dict[str, Curve]]:
    """Exponent -> family -> curve of t, for the families whose data identify the exponent."""
    curves: dict[str, dict[str, Curve]] = {}
    for exponent in law.exponents:
        identified = {name: pair for name, pair in fits.items() if exponent not in pair[1].not_identified}
        by_family = {name: curve(fit, bounds, exponent, level) for name, (fit, bounds) in identified.items()}
        curves[exponent] = {name: t_curve for name, t_curve in by_family.items() if t_curve}
    return curves


def _joint_tests(curves: Mapping[str, Mapping[str, Curve]], rng: np.random.Generator) -> dict[str, Entry]:
    """One test of all families for each exponent that at least two identify; adjusted over the exponents."""
    tests: dict[str, Entry] = {}
    for exponent, by_family in curves.items():
        if len(by_family) > 1:
            statistic, p = joint_p(list(by_family.values()), rng)
            tests[exponent] = {"families": list(by_family), "statistic": statistic, "p": p}
    for test, adjusted in zip(tests.values(), holm([test["p"] for test in tests.values()]), strict=True):
        test["p_adjusted"] = adjusted
    return tests


def _pairs(fits: Fits, law: Law, curves: Mapping[str, Mapping[str, Curve]], level: float) -> list[Entry]:
    """Every pair's difference of each exponent; p-values are adjusted over all of them (Holm)."""
    rows = []
    for exponent, by_family in curves.items():
        for a, b in combinations(fits, 2):
            fit_a, fit_b = fits[a][0], fits[b][0]
            row: Entry = {"a": a, "b": b, "exponent": exponent, "identified": a in by_family and b in by_family}
            row |= {"variable": law.variable_of[exponent], "straight": law.is_linear}
            row["delta"] = fit_a.params[exponent] - fit_b.params[exponent]
            row |= dict.fromkeys(("ci_low", "ci_high", "p", "df", "p_any_floor"))
            if row["identified"]:
                test = difference(by_family[a], by_family[b], level=level)
                row |= test._asdict() | {"p_any_floor": any_floor_p(fit_a, fit_b, test, level)}
            rows.append(row)
    adjust(rows)
    return rows


def _model_rows(law: Law, models: Mapping[str, JointFit]) -> list[Entry]:
    criteria = {name: fit.criteria() for name, fit in models.items()}
    best = min((score.aicc for score in criteria.values() if np.isfinite(score.aicc)), default=np.nan)
    rows = []
    for name, fit in models.items():
        aicc, bic, *_ = criteria[name]
        row: Entry = {"model": name, "parameters": len(fit.phi), "sse": fit.sse}
        row |= {"aicc": aicc, "aicc_above_best": aicc - best, "bic": bic}
        row |= {"converged": fit.converged, "starts_agreeing": fit.starts_agreeing}
        theta = dict(zip(law.parameters, fit.theta[0].tolist(), strict=True))
        rows.append(
            row | {"shared_exponents": {key: theta[key] for key in law.exponents if name != "separate"} or None}
        )
    return rows


def _likelihood_ratios(
    families: Families, models: Mapping[str, JointFit], calibration: int, rng: np.random.Generator
) -> list[Entry]:
    """Tests of each model against separate laws, and of one law for all against constant factors on size (and data)."""
    separate = models["separate"]
    if separate.rows <= len(separate.phi) or not (families.law.is_linear or calibration):
        return []
    has_floor = families.law.floor is not None
    tests = [(name, "separate") for name in MODELS[:-1] if has_floor or name != "efficiency"]
    tests.append(("one_law", "efficiency" if has_floor else "shared_exponents"))
    return [
        likelihood_ratio(families, models[restricted], models[wider], calibration, rng)
        | {"restricted": restricted, "wider": wider}
        for restricted, wider in tests
    ]


def _pooled(fits: Fits, exponent: str, level: float, tests: Mapping[str, Entry]) -> Entry | None:
    identified = {name: pair for name, pair in fits.items() if exponent not in pair[1].not_identified}
    estimates = [fit.params[exponent] for fit, _ in identified.values()]
    errors = [bounds.error(fit, exponent, level) for fit, bounds in identified.values()]
    pooled = pool(estimates, errors, level=level) if len(identified) >= MIN_POOLED and exponent in tests else None
    if pooled is None:
        return None
    shrunken = dict(zip(identified, pooled.shrunken, strict=True))
    return vars(pooled) | {"q_p": tests[exponent]["p"], "families": list(identified), "shrunken": shrunken}


def _power(fits: Fits, law: Law, fitted: Mapping[str, Fitted], settings: Settings) -> Entry:
    """The smallest difference of the first exponent that each pair detects with its own designs and scatter.

    `detectable` is the largest over the pairs; `advice` is how that pair would detect half of it.
    """
    exponent, level = law.exponents[0], 1 - settings.level
    designs = {
        name: _design(fit, bounds, fitted[name].entry, settings.level)
        for name, (fit, bounds) in fits.items()
        if exponent not in bounds.not_identified
    }
    pairs = {(a, b): UnpairedDesigns(designs[a], designs[b]) for a, b in combinations(designs, 2)}
    tests = len(law.exponents) * len(fitted) * (len(fitted) - 1) // 2  # over which p-values are adjusted
    options: Entry = {"power": settings.power, "level": level, "pairs": tests}
    detectable = {names: pair.detectable(**options) for names, pair in pairs.items()}
    is_complete = len(designs) == len(fits) and None not in detectable.values()
    worst = max(pairs, key=lambda names: detectable[names] or 0.0) if is_complete else None
    largest = detectable[worst] if worst else None
    advice = pairs[worst].advice(largest / 2, **options) if worst and largest else None
    return options | {
        "exponent": exponent,
        "detectable": largest,
        "by_pair": [{"a": a, "b": b, "detectable": value} for (a, b), value in detectable.items()],
        "advice": advice and advice.entry(),
    }


def _design(fit: Fit, bounds: Uncertainty, entry: Entry, level: float) -> Design:
    """A family's design, with the scatter between seeds separate from the misfit of its sizes to the law."""
    test = entry["lack_of_fit"]
    seeds = max(1, round(entry["n_rows"] / entry["n_cells"])) if entry["unit"] == "cell" else 1
    noise = test["pure_sigma"] if test else None
    misfit = float(np.sqrt(max(fit.sigma**2 - (noise or 0.0) ** 2 / seeds, 0.0)))
    design = Design(fit.law, fit.sample.log_x, fit.params, noise, misfit, seeds)
    if fit.sample.is_independent:
        return design
    # Rows that share runs or shapes: scale the scatter up to the cluster-robust error of the exponent.
    robust, usual = bounds.error(fit, fit.law.exponents[0], level), design.error()
    factor = robust / usual if np.isfinite(robust) and 0 < usual < np.inf else 1.0
    groups = len(np.unique(fit.sample.clusters))
    return replace(design, noise=None if noise is None else noise * factor, misfit=misfit * factor, groups=groups)
