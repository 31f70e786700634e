"""Parameters that somebody else published, tested on these rows: the likelihood ratio against the free fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import stats

from slm.scaling.fitting import Fit, huber_deviance
from slm.scaling.forms import Floats
from slm.scaling.solver import FINE, Block, minimise
from slm.scaling.starts import coordinate_bounds, grid_starts

Entry = dict[str, Any]


def given_entry(found: Fit, given: Mapping[str, float]) -> Entry | None:
    """`given`, the parameters of the best fit that has them, and the test; None where the law lacks one of them.

    statistic: twice the difference of the largest log likelihoods, that of the free fit less that with the parameters
    held. Least squares: n log(SSE_0 / SSE_1), whose p is that of F (exact for laws that are straight in logs, as close
    as profile intervals are for others). Huber's loss: residuals have the density proportional to exp(-loss / s), with
    the scale s at its best in both, and p is that of chi-squared. Rows count as independent (`independent` says whether
    they are, else p is too small). `refused` says why there is no test.
    """
    if not given or not set(given) <= set(found.law.parameters):
        return None
    spare, n = found.degrees_of_freedom, len(found.sample.log_y)
    head = {"given": dict(given), "df": len(given), "refused": None}
    if found.exact or spare < 1:
        return head | {"refused": "there is no scatter to test against"}
    theta = _held(found, given)
    if theta is None:
        return head | {"refused": "some of these can only be held with all other parameters: give all of them"}
    residuals = found.sample.log_y - found.law.log_value(theta[None], found.sample.centred)[0]
    quoted = found.law.canonical(theta[None], found.sample.refs)[0].tolist()
    loss, log_y = found.loss, found.sample.log_y
    squares = np.isinf(loss.delta)
    if squares:
        held, free = (float((loss.residuals(r, log_y) ** 2).sum()) for r in (residuals, found.residuals))
        statistic = n * float(np.log(held / free))
        p = float(stats.f.sf(np.expm1(statistic / n) * spare / len(given), len(given), spare))
        method = "F" if found.law.is_linear and not loss.linear else "F, approximate"
    else:
        statistic = huber_deviance(residuals, loss) - huber_deviance(found.residuals, loss)
        p, method = float(stats.chi2.sf(statistic, len(given))), "chi-squared"
    return head | {
        "statistic": statistic,
        "p": p,
        "method": method,
        "likelihood": "normal" if squares else "proportional to exp(-loss / s)",
        "params": dict(zip(found.law.parameters, quoted, strict=True)),
        "independent": found.sample.independent,
    }


def _held(found: Fit, given: Mapping[str, float]) -> Floats | None:
    """Coordinates [P] of the best fit with parameters held; None where they are no linear function of coordinates."""
    law, sample = found.law, found.sample
    names = list(law.parameters)
    if set(given) == set(names):
        return law.coordinates(given, sample.refs)
    vectors = [law.functional(name, sample.refs) for name in given]
    if any(vector is None for vector in vectors):
        return None
    wanted = np.array([value if name in law.signed else np.log(value) for name, value in given.items()])
    held = [names.index(name) for name in given]
    free = [j for j in range(len(names)) if j not in held]
    V = np.array(vectors)
    back = np.linalg.inv(V[:, held])
    matrix, offset = np.zeros((len(names), len(free))), np.zeros(len(names))
    matrix[free, range(len(free))] = 1
    matrix[held] = -back @ V[:, free]
    offset[held] = back @ wanted
    block = Block(law, sample.centred, np.arange(len(sample.log_y)), matrix, offset)
    low, high = coordinate_bounds(law, sample)
    starts = np.concatenate([found.theta[None], grid_starts(law, sample)])[:, free]
    optimum = minimise([block], sample.log_y, starts, (low[free], high[free]), loss=found.loss, tolerance=FINE)
    return np.asarray(offset + matrix @ optimum.phi[optimum.best])
