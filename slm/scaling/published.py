"""What the published MobileLLM study said of its four rows, set beside what the same four rows say.

The study fitted perplexity = 1152 N^-0.246 and drew conclusions from it; every figure here is computed from the table.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import optimize, stats

from slm.scaling.fitting import Fit, fit
from slm.scaling.forms import Floats
from slm.scaling.intervals import uncertainty
from slm.scaling.prediction import band
from slm.scaling.reference import REFERENCES, local_exponent
from slm.scaling.tables import Table, read_table

NAME = "mobilellm_published"
"""The table that slm ships under this name."""
Claim = dict[str, Any]


def is_published(table: Table) -> bool:
    """Whether `table` has the published rows and no others, with all that the claims are about."""
    shipped = read_table(NAME).frame
    columns = ["params_total", "params_non_embedding", "tokens", "perplexity", "tokens_per_second", "depth"]
    return set(columns) <= set(table.frame) and table.frame[columns].equals(shipped[columns])


def review(table: Table) -> list[Claim]:
    """The study's claims, each with `claim`, `figures` computed from its table, and `finding` in words."""
    ppl, loss = fit(table, "power", target="perplexity"), fit(table, "power")
    return [
        _fit_claim(ppl),
        _interval_claim(ppl),
        _target_claim(table, loss),
        _reference_claim(table, ppl),
        _source_claim(),
        _floor_claim(table),
        _smallest_claim(table),
        _prediction_claim(ppl),
        _speed_claim(table),
        _product_claim(table),
    ]


def _interval(found: Fit) -> tuple[float, float]:
    low, high = uncertainty(found, replicates=0, rng=np.random.default_rng(0)).ci["alpha"]
    assert low is not None  # a linear law with degrees of freedom has both ends
    assert high is not None
    return low, high


def _fit_claim(ppl: Fit) -> Claim:
    A, alpha = ppl.params["A"], ppl.params["alpha"]
    figures = {"A": A, "slope": -alpha, "r2": ppl.r2, "n": len(ppl.residuals)}
    finding = f"Reproduced: {A:.0f} N^{-alpha:.4f}, R2 {ppl.r2:.4f}."
    return {"claim": "perplexity = 1152 N^-0.246", "figures": figures, "finding": finding}


def _interval_claim(ppl: Fit) -> Claim:
    low, high = _interval(ppl)
    n, df = len(ppl.residuals), ppl.degrees_of_freedom
    excluded = {str(value): not low <= value <= high for value in (0.076, 0.089)}
    words = "It excludes" if all(excluded.values()) else "It does not exclude"
    return {
        "claim": "the slope cannot be distinguished from -0.076 (Kaplan) and -0.089",
        "figures": {"slope_low": -high, "slope_high": -low, "df": df, "excludes": excluded},
        "finding": f"The slope's 95% t({df}) interval is [{-high:.3f}, {-low:.3f}]. {words} -0.076 and -0.089, so that "
        f"is not what these points say; the real limits are one family, one token budget and n = {n}.",
    }


def _target_claim(table: Table, loss: Fit) -> Claim:
    low, high = _interval(loss)
    alpha, kaplan = loss.params["alpha"], 0.076
    inner = fit(table, "power", size="params_non_embedding").params["alpha"]
    figures = {
        "alpha": alpha,
        "low": low,
        "high": high,
        "times_kaplan": alpha / kaplan,
        "alpha_non_embedding": inner,
        "times_kaplan_non_embedding": inner / kaplan,
    }
    return {
        "claim": "the exponent 0.246 is three times Kaplan's 0.076",
        "figures": figures,
        "finding": "0.246 is an exponent of perplexity, Kaplan's of loss. On loss the same rows give "
        f"{alpha:.4f} [{low:.3f}, {high:.3f}]: {alpha / kaplan:.2f} times Kaplan's, or {inner / kaplan:.2f} times with "
        "non-embedding N, which is what Kaplan's law is in.",
    }


def _reference_claim(table: Table, ppl: Fit) -> Claim:
    slopes = {}
    for reference in REFERENCES[:2]:
        N = table.frame[reference.size].to_numpy(float)
        loss = np.exp(reference.log_loss({"N": N, "D": table.frame["tokens"].to_numpy(float)}))
        slopes[reference.name] = -local_exponent(np.log(N), loss)
    kaplan, hoffmann = slopes.values()
    tokens = table.frame["tokens"].iloc[0]
    inner = -fit(table, "power", target="perplexity", size="params_non_embedding").params["alpha"]
    return {
        "claim": "published exponents of loss can be set beside a slope of perplexity",
        "figures": {
            "kaplan_as_perplexity": kaplan,
            "hoffmann_as_perplexity": hoffmann,
            "tokens": tokens,
            "slope_non_embedding": inner,
        },
        "finding": f"Read as perplexity over these sizes, Kaplan's law has slope {kaplan:.3f} where the table has "
        f"{inner:.3f} (both in non-embedding N), and Hoffmann's at {tokens / 1e12:g}T tokens {hoffmann:.3f} where it "
        f"has {-ppl.params['alpha']:.3f} (in all parameters).",
    }


def _source_claim() -> Claim:
    hoffmann = REFERENCES[1]
    alpha, beta, floor = (hoffmann.params[name] for name in ("alpha", "beta", "E"))
    return {
        "claim": "-0.089 (Hoffmann)",
        "figures": {"alpha": alpha, "beta": beta, "E": floor},
        "finding": f"No such exponent has a source: Hoffmann et al. have alpha = {alpha}, beta = {beta} above a floor "
        f"of {floor} nats per token.",
    }


def _floor_claim(table: Table) -> Claim:
    found = fit(table, "power_floor")
    low, high = uncertainty(found, replicates=0, rng=np.random.default_rng(0)).ci["alpha"]
    free = _free_floor_interval(found)

    def shown(ends: tuple[float | None, float | None]) -> str:
        return "[" + ", ".join("open" if end is None else f"{end:.2f}" for end in ends) + "]"

    return {
        "claim": "a power law without a floor describes the models",
        "figures": {
            "alpha": found.params["alpha"],
            "low": low,
            "high": high,
            "free_low": free[0],
            "free_high": free[1],
        },
        "finding": f"With a floor E free, alpha's interval is {shown((low, high))} ({shown(free)} if E may be "
        "negative): not identified. Four points cannot tell a floor from none.",
    }


def _free_floor_interval(found: Fit, level: float = 0.95) -> tuple[float | None, float | None]:
    """Profile interval of alpha in `power_floor` of the table's loss, with a floor of either sign."""
    log_y, x = found.sample.log_y, found.sample.centred[:, 0]
    df = found.degrees_of_freedom

    def sse(alpha: float) -> float:
        power = np.exp(-alpha * x)
        slope, floor = np.polyfit(power, np.exp(log_y), 1)

        def residuals(p: Floats) -> Floats:
            return log_y - np.log(np.maximum(p[0] + p[1] * power, 1e-9))

        return 2 * float(optimize.least_squares(residuals, [floor, slope], xtol=1e-15, ftol=1e-15, gtol=1e-15).cost)

    best = optimize.minimize_scalar(sse, bounds=(0.05, 1.0), method="bounded", options={"xatol": 1e-9})
    threshold = best.fun * (1 + stats.f.ppf(level, 1, df) / df)

    def above(alpha: float) -> float:
        return sse(alpha) - threshold

    low = optimize.brentq(above, 1e-4, best.x) if above(1e-4) > 0 else None
    high = optimize.brentq(above, best.x, 5.0) if above(5.0) > 0 else None
    return low, high


def _smallest_claim(table: Table) -> Claim:
    rest = Table(table.frame.sort_values("params_total").iloc[1:].reset_index(drop=True), table.notes, table.name)
    slope = -fit(rest, "power", target="perplexity").params["alpha"]
    return {
        "claim": "one power law holds from 125M to 1B",
        "figures": {"slope_without_smallest": slope},
        "finding": f"Without the 125M model the slope is {slope:.3f}: one point makes much of the steepness.",
    }


def _prediction_claim(ppl: Fit) -> Claim:
    run = band(ppl, np.log([[2e9]]), None).of_run(ppl.sigma)
    value, low, high = (float(np.exp(end[0])) for end in (run.centre, run.low, run.high))
    return {
        "claim": "a 2B model has a perplexity of about 6.1",
        "figures": {"value": value, "low": low, "high": high},
        "finding": f"The formula gives {value:.2f}, 95% prediction interval [{low:.2f}, {high:.2f}].",
    }


def _speed_claim(table: Table) -> Claim:
    frame = table.frame.sort_values("params_total")
    products = (frame["tokens_per_second"] * frame["depth"]).to_numpy(float)
    return {
        "claim": "tokens per second show a sweet spot of size",
        "figures": {"tokens_per_second_times_layers": products.tolist()},
        "finding": f"Tokens/s times layers is constant ({', '.join(f'{p:.0f}' for p in products)}): the speeds measure "
        "depth without a KV cache, not a sweet spot.",
    }


def _product_claim(table: Table) -> Claim:
    frame = table.frame
    product = (frame["perplexity"] * frame["tokens_per_second"]).to_numpy(float)
    best = frame.loc[int(np.argmax(product)), "name"]
    worst = bool(np.argmax(product) == np.argmax(frame["perplexity"].to_numpy(float)))
    return {
        "claim": "perplexity x speed measures efficiency",
        "figures": {"products": product.tolist(), "largest": best, "largest_has_worst_perplexity": worst},
        "finding": f"It multiplies a lower-is-better by a higher-is-better: its largest value is {best}'s"
        + (", the model of the worst perplexity." if worst else ".")
        + " A Pareto front compares the two without multiplying.",
    }
