"""The two-step law of a task (Bhagia et al. 2024, arXiv:2412.04403): task loss from N and D, then accuracy from it.

Step 1 fits a law of the task loss T (bits per byte of the right answer) in N, and in D if it varies. Step 2 fits the
accuracy as a sigmoid of T that starts at chance, and ends at one or at a ceiling (`slm.scaling.bounded.TaskLossLaw`).
Each step has the law with the lowest AICc of those that the runs do not reject, as the verdict has.

Notable: an interval of the chain combines two distances on each side: how far the error moves if T moves to the end of
its interval for a new run, and how far step 2 lets the error move at the predicted T. They add up like independent
errors (Zou & Donner 2008), since step 2 is fitted given the measured T. Least squares are of log T, and of arcsin
sqrt(error).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from slm.scaling.bounded import Bounded, TaskLossLaw, from_angle
from slm.scaling.compare import compare_law
from slm.scaling.entries import Entry, Fitted, Task, fit_group
from slm.scaling.fitting import Fit, fit_sample, refusal
from slm.scaling.forms import Floats, Law
from slm.scaling.laws import LAWS
from slm.scaling.prediction import band, new_run_sigma
from slm.scaling.sample import take_sample
from slm.scaling.selection import assess_laws, choose_law
from slm.scaling.settings import Settings
from slm.scaling.solver import Loss
from slm.scaling.tables import Table
from slm.scaling.targets import fitted_column

FIRST_LAWS = ("power", "power_floor", "chinchilla")  # of the task loss; those without D unless `_budgets_vary`
CURVE_POINTS = 25
SAME_TOKENS = 1.001  # budgets whose ratio is at most this are one budget
MAX_CORRELATION = 1 - 1e-6  # of log N and log D, beyond which no law can separate them, as in `fitting.refusal`


@dataclass(frozen=True)
class Chain:
    """Both steps fitted to one family; `sigmas` are the scatter of new runs about each, as its residuals."""

    steps: tuple[Fit, Fit]
    sigmas: tuple[float, float]

    def predict(self, log_x: Floats, level: float) -> Entry:
        """Predict a new run at log variables [M, V] of step 1: `task_loss` and `accuracy`, with `low` and `high`, [M].

        An end is NaN if the data do not bound it. `beyond` is the factor by which the predicted task loss leaves the
        task losses that step 2 was fitted to; 1 inside.
        """
        first, second = self.steps
        T = band(first, log_x, None, level=level).for_run(self.sigmas[0])
        losses = np.exp([T.centre, T.low, T.high])
        angles = second.log_value(-losses.reshape(-1, 1)).reshape(losses.shape)
        at_T = band(second, -losses[0][:, None], None, level=level).for_run(self.sigmas[1])
        down = angles[0] - np.hypot(angles[0] - angles[1], at_T.centre - at_T.low)
        up = angles[0] + np.hypot(angles[2] - angles[0], at_T.high - at_T.centre)
        measured = -second.sample.log_x[:, 0]
        beyond = np.maximum(1, np.maximum(losses[0] / measured.max(), measured.min() / losses[0]))
        ends = {"centre": angles[0], "low": up, "high": down}  # a low error is a high accuracy
        accuracy = {name: 1 - from_angle(angle) for name, angle in ends.items()}
        task_loss = dict(zip(("centre", "low", "high"), losses, strict=True))
        return {"task_loss": task_loss, "accuracy": accuracy, "beyond": beyond}


def two_step(
    table: Table, settings: Settings, size: str, rng: np.random.Generator, *, curves: bool = True
) -> Entry | None:
    """Return `two_step` of comparison.json; None if the settings name no task loss.

    `laws` has the law of each step and why it was chosen. `families` has a row per family: entries of both `steps` (as
    in fits.json), `predictions`, `curve` against N, `sigmoid` against task loss, and `held_out`; or `reason`. `shared`
    tests whether the families share step 2: the same accuracy at the same task loss. Without `curves`, both are None.
    """
    if settings.task_loss is None:
        return None
    T, column = settings.task_loss, f"exp(-{settings.task_loss})"
    # Step 2 has one task loss per cell, as step 1 has: the mean over its seeds, in logs.
    mean_T = np.exp(np.log(table.frame[T]).groupby(table.frame["cell"]).transform("mean"))
    table = replace(table, frame=table.frame.assign(**{column: np.exp(-mean_T)}))
    first_laws = [LAWS[name] for name in FIRST_LAWS if ("D" in LAWS[name].variables) == _budgets_vary(table, size)]
    sigmoids = [TaskLossLaw(column, has_floor=has_floor) for has_floor in (False, True)]
    second_laws = [Bounded(law, "logistic", settings.chance or 0.0) for law in sigmoids]
    steps: list[dict[str, Fitted]] = []
    chosen: list[Entry] = []
    for laws, target in ((first_laws, T), (second_laws, fitted_column(settings))):
        fitted, law, why = _fit_step(table, laws, Task(laws[0], target, size, Loss()), settings, rng)
        steps.append(fitted[law])
        chosen.append({"law": law, "why": why, "tried": list(fitted)})
    families = [
        _family(table.family(name), steps[0][name], steps[1][name], settings, curves) for name in table.families
    ]
    shared = compare_law(steps[1], settings, rng) if len(families) > 1 else None
    tests = (shared or {}).get("tests") or []
    test = next((row for row in tests if (row["restricted"], row["wider"]) == ("one_law", "separate")), None)
    return {"task_loss": T, "laws": chosen, "families": families, "shared": test}


def _budgets_vary(table: Table, size: str) -> bool:
    """Whether tokens vary in every family, and not only in proportion to N or a power of it."""
    tokens = table.frame.get("tokens")
    if tokens is None or tokens.isna().any():
        return False
    return all(
        rows["tokens"].max() > SAME_TOKENS * rows["tokens"].min()
        and abs(np.log(rows["tokens"]).corr(np.log(rows[size]))) < MAX_CORRELATION
        for _, rows in table.frame.groupby("family")
    )


def _fit_step(
    table: Table, laws: Sequence[Law], task: Task, settings: Settings, rng: np.random.Generator
) -> tuple[dict[str, dict[str, Fitted]], str, str]:
    """Fit all laws of a step to all families; returns law -> family -> fit, the law chosen, and why."""
    fitted = {}
    for law in laws:
        size = task.size if "N" in law.variables else ""
        own_task = Task(law, task.target, size, task.loss)
        fitted[law.name] = fit_group(table, own_task, settings, rng, thorough=False)
        for result in fitted[law.name].values():
            is_error = task.target == fitted_column(settings)
            result.entry["kind"] = "accuracy" if is_error else "bits_per_byte"
            result.entry["chance"] = settings.chance if is_error else None
    chosen, why = choose_law(fitted, assess_laws(fitted), "auto")
    return fitted, chosen, why


def _family(table: Table, first: Fitted, second: Fitted, settings: Settings, curves: bool) -> Entry:
    """Return the row of one family, the only one of `table`."""
    row: Entry = {"family": table.families[0], "steps": [first.entry, second.entry], "reason": None}
    row |= dict.fromkeys(("predictions", "curve", "sigmoid", "held_out"))
    if first.fit is None or second.fit is None:
        failed = first.entry if first.fit is None else second.entry
        return row | {"reason": f"{failed['target']}: {failed['notes'][0].removeprefix('not fitted: ')}"}
    sigmas = (first.entry["run_sigma_log"], _scatter_at_own_loss(table, second.fit, settings))
    chain = Chain((first.fit, second.fit), sigmas)
    if min(fit.degrees_of_freedom for fit in chain.steps) < 1 or any(fit.is_exact for fit in chain.steps):
        return row | {"reason": "there is no scatter from which to compute intervals"}
    sample, variables = chain.steps[0].sample, chain.steps[0].law.variables
    medians = np.median(sample.log_x, axis=0)
    row["predictions"] = _predictions(chain, medians, settings)
    row["held_out"] = _held_out(chain, settings.level)
    if not curves:
        return row
    grid = np.repeat(medians[None], CURVE_POINTS, axis=0)
    grid[:, 0] = np.linspace(sample.log_x[:, 0].min() - 0.3, sample.log_x[:, 0].max() + 1.2, CURVE_POINTS)
    held = dict(zip(variables[1:], np.exp(medians[1:]).tolist(), strict=True))
    row["curve"] = {"x": np.exp(grid[:, 0]), "held": held} | chain.predict(grid, settings.level)["accuracy"]
    row["sigmoid"] = _sigmoid(chain.steps[1], settings)
    return row


def _scatter_at_own_loss(table: Table, fit: Fit, settings: Settings) -> float:
    """The scatter of a new run around step 2 at its own task loss.

    Seeds of a cell differ in task loss; step 1 has that scatter, so it must not count again in their accuracies.
    """
    runs = take_sample(table, fit.law, fitted_column(settings), "", unit="run")
    own_x = -table.frame[str(settings.task_loss)].to_numpy(float)[:, None]
    return new_run_sigma(fit, replace(runs, log_y=runs.log_y - fit.log_value(own_x)))


def _predictions(chain: Chain, medians: Floats, settings: Settings) -> list[Entry]:
    """Predict a new run at multiples of the largest N (other variables at `medians`), and at the user's points."""
    sample, variables = chain.steps[0].sample, chain.steps[0].law.variables
    points = [item for item in settings.predict if isinstance(item, Mapping) and set(variables) <= set(item)]
    factors = [item for item in settings.predict if not isinstance(item, Mapping)]
    log_points = [np.r_[sample.log_x[:, 0].max() + np.log(factor), medians[1:]] for factor in factors]
    log_points += [np.log([point[v] for v in variables]) for point in points]
    return _rows(chain, np.array(log_points).reshape(-1, len(variables)), settings.level)


def _rows(chain: Chain, log_x: Floats, level: float) -> list[Entry]:
    """`Chain.predict` as rows, one per point: its variables, `accuracy` and `task_loss` with intervals, `beyond`."""
    if not len(log_x):
        return []
    found = chain.predict(log_x, level)
    rows: list[Entry] = [dict(zip(chain.steps[0].law.variables, np.exp(x).tolist(), strict=True)) for x in log_x]
    for index, row in enumerate(rows):
        for name in ("accuracy", "task_loss"):
            row[name] = {end: float(values[index]) for end, values in found[name].items()}
        row["beyond"] = float(found["beyond"][index])
    return rows


def _sigmoid(fit: Fit, settings: Settings) -> Entry:
    """Step 2 as accuracies against the task loss, with the interval of the law, over the range of the runs."""
    measured = -fit.sample.log_x[:, 0]
    margin = 0.1 * float(np.ptp(measured))
    T = np.linspace(measured.min() - margin, measured.max() + margin, CURVE_POINTS)
    limits = band(fit, -T[:, None], None, level=settings.level)
    ends = {"centre": limits.centre, "low": limits.high, "high": limits.low}  # a low error is a high accuracy
    curve = {"x": T} | {name: 1 - from_angle(angle) for name, angle in ends.items()}
    return curve | {"points": {"x": measured, "value": 1 - from_angle(fit.sample.log_y)}}


def _held_out(chain: Chain, level: float) -> Entry | None:
    """Predict the runs of the largest N from the smaller ones: both steps are refitted without its runs and clusters.

    `rows` are those of `_rows` with the `measured` accuracy, the `error` of the prediction and whether the measured one
    is `inside` its interval. None if a step cannot be refitted.
    """
    first, second = (fit.sample for fit in chain.steps)  # their rows are the same cells, in the same order
    is_largest = first.log_x[:, 0] > first.log_x[:, 0].max() - 1e-6
    is_kept = ~np.isin(first.clusters, first.clusters[is_largest])
    refits = []
    for fit, sample in zip(chain.steps, (first, second), strict=True):
        kept = sample.subset(is_kept)
        if not is_kept.any() or refusal(fit.law, kept):
            return None
        refits.append(fit_sample(fit.law, kept, loss=fit.loss))
    if min(refit.degrees_of_freedom for refit in refits) < 1 or any(refit.is_exact for refit in refits):
        return None
    smaller = Chain((refits[0], refits[1]), (refits[0].sigma, refits[1].sigma))
    rows = _rows(smaller, first.log_x[is_largest], level)
    for row, measured in zip(rows, 1 - from_angle(second.log_y[is_largest]), strict=True):
        predicted = row["accuracy"]
        row |= {"measured": float(measured), "error": predicted["centre"] - float(measured)}
        row["inside"] = not (measured < predicted["low"] or measured > predicted["high"])  # an open end always covers
    return {"N": float(np.exp(first.log_x[:, 0].max())), "n_fitted": int(is_kept.sum()), "rows": rows}
