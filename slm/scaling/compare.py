"""Compare families under one law: joint test, pairs, nested models, pooling, and the smallest detectable difference.

The result is an entry of `laws` in comparison.json. `slm.scaling.paired` compares at equal sizes, without a law.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import combinations

import numpy as np

from slm.runtime.pool import map_in_processes
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

MIN_FAMILIES_TO_POOL = 3
Fits = dict[str, tuple[Fit, Uncertainty]]  # by family


def compare_law(
    fitted: Mapping[str, Fitted], settings: Settings, rng: np.random.Generator, *, thorough: bool = True
) -> Entry | None:
    """Compare the families under one law; None if fewer than two were fitted.

    Unless `thorough`, the entry has only the joint tests of all families and the comparisons of pairs.
    """
    fits = _comparable(fitted)
    if len(fits) < 2:
        return None
    law = next(iter(fits.values()))[0].law
    fits, common_range = _over_common_range(fits, law, settings)
    curves = _curves(fits, law, settings.level)
    joint_tests = _joint_tests(curves, rng)
    entry: Entry = {
        "law": law.name,
        "families": list(fits),
        "left_out": [name for name in fitted if name not in fits],
        "common_range": common_range,
        "independent": all(fit.sample.is_independent for fit, _ in fits.values()),
        "joint": joint_tests,
        "p": min((test["p_adjusted"] for test in joint_tests.values()), default=None),  # over the exponents
        "pairs": _pairs(fits, law, curves, settings.level),
    }
    if not thorough:
        return entry
    families = gather({name: fit for name, (fit, _) in fits.items()})
    models = {name: fit_joint(families, name) for name in MODELS}
    if law.floor is None:  # without a floor, these two models are the same
        models["shared_exponents"] = models["efficiency"]
    return entry | {
        "models": _model_rows(law, models),
        "tests": _likelihood_ratios(families, models, settings.calibration, rng) if entry["independent"] else [],
        "efficiency": efficiency_factors(families, models["efficiency"], level=settings.level),
        "pooled": {name: _pooled(fits, name, settings.level, joint_tests) for name in law.exponents},
        "power": _power(fits, law, fitted, settings),
    }


def _comparable(fitted: Mapping[str, Fitted]) -> Fits:
    """Select the fits with identified exponents. If these are fewer than two, select all fits that have scatter."""
    fits: Fits = {}
    for name, result in fitted.items():
        if result.fit and result.uncertainty and not result.fit.is_exact:
            fits[name] = result.fit, result.uncertainty
    identified = {name: fits[name] for name in fits if fitted[name].entry["identified"]}
    return identified if len(identified) > 1 else fits


def _over_common_range(fits: Fits, law: Law, settings: Settings) -> tuple[Fits, Entry | None]:
    """If the law is a straight line in logs, refit it with only the sizes in the range that all families share.

    The slope of a straight line through a curve depends on the range of sizes: two families that follow the same law
    with a floor have different slopes if one of them has larger sizes. The second result is None if no refit is needed,
    else an entry with the shared `range`. If too few sizes lie in it, `range` is None, and the fits are unchanged.
    """
    log_sizes = {name: fit.sample.log_x[:, 0] for name, (fit, _) in fits.items()}
    lows, highs = np.array([(x.min(), x.max()) for x in log_sizes.values()]).T
    shared_low, shared_high, slack = lows.max(), highs.min(), np.log1p(SAME_SIZE)
    have_same_range = max(shared_low - lows.min(), highs.max() - shared_high) <= slack
    if not law.is_linear or have_same_range:
        return fits, None
    refits: Fits = {}
    for name, (fit, _) in fits.items():
        kept = fit.sample.subset((log_sizes[name] >= shared_low - slack) & (log_sizes[name] <= shared_high + slack))
        if len(kept.log_y) < 4 or refusal(law, kept):
            return fits, {"range": None}
        refit = fit_sample(law, kept, loss=fit.loss)
        refits[name] = refit, uncertainty(refit, replicates=0, rng=np.random.default_rng(0), level=settings.level)
    return refits, {"range": np.exp([shared_low, shared_high]).tolist()}


def _curves(fits: Fits, law: Law, level: float) -> dict[str, dict[str, Curve]]:
    """Return exponent -> family -> t at each value of the exponent, for the families in which it is identified."""
    curves: dict[str, dict[str, Curve]] = {exponent: {} for exponent in law.exponents}
    for exponent, by_family in curves.items():
        for name, (fit, intervals) in _identified(fits, exponent).items():
            if t_curve := curve(fit, intervals, exponent, level):
                by_family[name] = t_curve
    return curves


def _identified(fits: Fits, exponent: str) -> Fits:
    return {f: fits[f] for f, (_, intervals) in fits.items() if exponent not in intervals.reasons_not_identified}


def _joint_tests(curves: Mapping[str, Mapping[str, Curve]], rng: np.random.Generator) -> dict[str, Entry]:
    """Test whether families in which an exponent is identified share it; `p_adjusted` is adjusted over exponents."""
    tests: dict[str, Entry] = {}
    for exponent, by_family in curves.items():
        if len(by_family) > 1:
            statistic, p = joint_p(list(by_family.values()), rng)
            tests[exponent] = {"families": list(by_family), "statistic": statistic, "p": p}
    for test, adjusted in zip(tests.values(), holm([test["p"] for test in tests.values()]), strict=True):
        test["p_adjusted"] = adjusted
    return tests


def _pairs(fits: Fits, law: Law, curves: Mapping[str, Mapping[str, Curve]], level: float) -> list[Entry]:
    """Compare each exponent between every two families; p-values are adjusted over all pairs and exponents (Holm)."""
    rows = []
    for exponent, by_family in curves.items():
        for a, b in combinations(fits, 2):
            fit_a, fit_b = fits[a][0], fits[b][0]
            row: Entry = {"a": a, "b": b, "exponent": exponent, "identified": a in by_family and b in by_family}
            row |= {"variable": law.variable_of[exponent], "straight": law.is_linear}
            row["delta"] = fit_a.params[exponent] - fit_b.params[exponent]
            row |= dict.fromkeys(("ci_low", "ci_high", "p", "df", "p_any_floor"))  # None unless `identified`
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
        aicc = criteria[name].aicc
        row: Entry = {"model": name, "parameters": len(fit.phi), "sse": fit.sse}
        row |= {"aicc": aicc, "aicc_above_best": aicc - best, "bic": criteria[name].bic}
        row |= {"converged": fit.converged, "starts_agreeing": fit.starts_agreeing}
        theta = dict(zip(law.parameters, fit.theta[0].tolist(), strict=True))  # of the first family
        shared = None if name == "separate" else {exponent: theta[exponent] for exponent in law.exponents}
        rows.append(row | {"shared_exponents": shared})
    return rows


def _likelihood_ratios(
    families: Families, models: Mapping[str, JointFit], calibration: int, rng: np.random.Generator
) -> list[Entry]:
    """Test each model against `separate`, and `one_law` against `efficiency`."""
    separate = models["separate"]
    can_compute_p = families.law.is_linear or calibration > 0
    if separate.num_rows <= len(separate.phi) or not can_compute_p:
        return []
    has_floor = families.law.floor is not None  # without one, `efficiency` and `shared_exponents` are the same model
    restricted_models = [name for name in MODELS if name != "separate" and (has_floor or name != "efficiency")]
    tests = [(name, "separate") for name in restricted_models]
    tests.append(("one_law", "efficiency" if has_floor else "shared_exponents"))
    compute = partial(_likelihood_ratio, families, models, calibration)
    return list(map_in_processes(compute, list(zip(tests, rng.spawn(len(tests)), strict=True)), at_once=True))


def _likelihood_ratio(
    families: Families,
    models: Mapping[str, JointFit],
    calibration: int,
    test: tuple[tuple[str, str], np.random.Generator],
) -> Entry:
    (restricted, wider), rng = test
    row = likelihood_ratio(families, models[restricted], models[wider], calibration, rng)
    return row | {"restricted": restricted, "wider": wider}


def _pooled(fits: Fits, exponent: str, level: float, tests: Mapping[str, Entry]) -> Entry | None:
    """Pool the exponent over the families in which it is identified; None if there are too few."""
    identified = _identified(fits, exponent)
    if len(identified) < MIN_FAMILIES_TO_POOL or exponent not in tests:
        return None
    estimates = [fit.params[exponent] for fit, _ in identified.values()]
    errors = [intervals.error(fit, exponent, level) for fit, intervals in identified.values()]
    pooled = pool(estimates, errors, level=level)
    if pooled is None:
        return None
    shrunken = dict(zip(identified, pooled.shrunken, strict=True))
    return vars(pooled) | {"q_p": tests[exponent]["p"], "families": list(identified), "shrunken": shrunken}


def _power(fits: Fits, law: Law, fitted: Mapping[str, Fitted], settings: Settings) -> Entry:
    """Compute the smallest difference in the first exponent that each pair of families can detect.

    `detectable` is the largest of these differences. `advice` says how that pair could detect half this difference.
    """
    exponent = law.exponents[0]
    designs = {
        name: _design(fit, intervals, fitted[name].entry, settings.level)
        for name, (fit, intervals) in _identified(fits, exponent).items()
    }
    pairs = {(a, b): UnpairedDesigns(designs[a], designs[b]) for a, b in combinations(designs, 2)}
    num_tests = len(law.exponents) * len(fitted) * (len(fitted) - 1) // 2  # p-values are adjusted over all of them
    options: Entry = {"power": settings.power, "level": 1 - settings.level, "num_tests": num_tests}
    detectable_by_pair = {names: pair.detectable(**options) for names, pair in pairs.items()}
    largest, advice = None, None
    if len(designs) == len(fits) and None not in detectable_by_pair.values():
        worst_pair = max(pairs, key=lambda names: detectable_by_pair[names] or 0.0)
        largest = detectable_by_pair[worst_pair]
        if largest:
            advice = pairs[worst_pair].advice(largest / 2, **options).entry()
    return {"power": settings.power, "level": 1 - settings.level, "pairs": num_tests} | {
        "exponent": exponent,
        "detectable": largest,
        "by_pair": [{"a": a, "b": b, "detectable": value} for (a, b), value in detectable_by_pair.items()],
        "advice": advice,
    }


def _design(fit: Fit, intervals: Uncertainty, entry: Entry, level: float) -> Design:
    """Return a family's design. Its `noise` is the scatter between seeds; `misfit` is that of sizes around the law."""
    num_seeds = max(1, round(entry["n_rows"] / entry["n_cells"])) if entry["unit"] == "cell" else 1
    noise = entry["lack_of_fit"]["pure_sigma"] if entry["lack_of_fit"] else None
    misfit = float(np.sqrt(max(fit.sigma**2 - (noise or 0.0) ** 2 / num_seeds, 0.0)))
    design = Design(fit.law, fit.sample.log_x, fit.params, noise=noise, misfit=misfit, seeds=num_seeds)
    if fit.sample.is_independent:
        return design
    # Rows share runs or shapes, so scale the scatter such that the exponent's error is the cluster-robust one.
    robust, usual = intervals.error(fit, fit.law.exponents[0], level), design.error()
    factor = robust / usual if np.isfinite(robust) and 0 < usual < np.inf else 1.0
    groups = len(np.unique(fit.sample.clusters))
    return replace(design, noise=None if noise is None else noise * factor, misfit=misfit * factor, num_groups=groups)
