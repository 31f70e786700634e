"""Laws written as formulas: parsed without evaluation, derivatives against differences, truth recovered, refusals."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import optimize

from slm.scaling import LAWS, Fit, Loss, Settings, Table, analyse, fit, get_law, table_from_frame, uncertainty
from slm.scaling.entries import Task, fit_group
from slm.scaling.families import fit_joint, gather
from slm.scaling.formulas import read_formula
from slm.scaling.laws import seed_of_law
from slm.scaling.symbolic import Formula
from tests.seeds import generator

N, D = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e7, 1e9, 6), np.geomspace(2e8, 2e10, 4)))
EXPERTS = np.tile([1.0, 2, 8, 16], 6)
UNIQUE = np.repeat([1e8, 1e9, 3e9], 16)
EPOCHS = UNIQUE * np.tile(np.geomspace(1, 40, 8), 6)
SIZES = np.geomspace(1e7, 1e9, 48)[generator().permutation(48)]
RNG = generator(7)


def table(loss: Any, *, sigma: float = 0.0, noise_seed: int = 0, **columns: Any) -> Table:
    noise = np.exp(sigma * generator(noise_seed).standard_normal(len(loss)))
    return table_from_frame(pd.DataFrame({"family": "f", **columns, "loss": loss * noise}), name="t")


def of_formula(given: Any, rows: Table, name: str = "mine", **how: Any) -> Fit:
    return fit(rows, read_formula(name, given, rows.frame.columns), size="N", **how)


def values_of(given: Any, params: dict[str, float], columns: dict[str, Any]) -> Any:
    """What Python's own arithmetic makes of a formula."""
    formula = given if isinstance(given, str) else given["formula"]
    variables = columns | {"D": columns.get("tokens"), "C": columns.get("flops")}
    return eval(formula, {"exp": np.exp, "log": np.log, "min": np.minimum}, params | variables)


N_D, N_EXPERTS = {"N": N, "tokens": D}, {"N": N, "experts": EXPERTS}
CASES: dict[str, tuple[Any, dict[str, float], dict[str, Any]]] = {
    "shared exponent": ("E + A*N**-a + B*D**-a", {"E": 1.7, "A": 900, "B": 1500, "a": 0.35}, N_D),
    "covariate": ("E + A*N**-a*experts**-g", {"E": 1.5, "A": 300, "a": 0.3, "g": 0.12}, N_EXPERTS),
    "straight, with a covariate": ("A*N**-a*experts**-g", {"A": 30, "a": 0.1, "g": 0.05}, N_EXPERTS),
    "exponent of either sign": (
        {"formula": "E + A*N**-a*context_length**g", "real": ["g"]},
        {"E": 1.5, "A": 300, "a": 0.3, "g": -0.05},
        {"N": N, "context_length": 512 * EXPERTS},
    ),
    "shifted": (
        "E + A*(C + C0)**-a",
        {"E": 1.5, "A": 300, "C0": 3e18, "a": 0.12},
        {"N": np.geomspace(1e7, 1e9, 30), "flops": np.geomspace(1e17, 1e21, 30)},
    ),
    "repeated data": (  # what repeated tokens are worth by Muennighoff et al. 2023 (arXiv:2305.16264), equation 5
        "E + A*N**-a + B*(unique + unique*R*(1 - exp(-(D/unique - 1)/R)))**-b",
        {"E": 1.8, "A": 400, "B": 1000, "R": 15, "a": 0.34, "b": 0.31},
        {"N": SIZES, "tokens": EPOCHS, "unique": UNIQUE},
    ),
    "no floor": ("((Nc/N)**(an/ad) + Dc/D)**ad", {"Nc": 8.8e13, "Dc": 5.4e13, "an": 0.076, "ad": 0.095}, N_D),
    "a break": ("E + A*min(N, K)**-a + B*D**-b", {"E": 1.5, "A": 300, "B": 900, "K": 2e8, "a": 0.3, "b": 0.3}, N_D),
    "declared": (
        {"formula": "c - b*log(N)", "exponents": ["b"], "real": ["c"]},
        {"c": 6, "b": 0.15},
        {"N": np.geomspace(1e6, 1e9, 12)},
    ),
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Fit, dict[str, float]]:
    """The fit of a formula to exact rows of it, and the parameters of those."""
    given, true, columns = CASES[request.param]
    return of_formula(given, table(values_of(given, true, columns), **columns)), true


def test_truth_is_recovered_without_noise(case: tuple[Fit, dict[str, float]]) -> None:
    found, true = case
    assert found.certificate.converged
    assert found.params == pytest.approx(true, rel=1e-6)


def test_derivatives_are_those_of_differences(case: tuple[Fit, dict[str, float]]) -> None:
    found, true = case
    law, x = found.law, found.sample.centred
    P, step = len(law.parameters), 1e-5
    theta = law.coordinates(true, found.sample.refs) + 0.01 * RNG.standard_normal((3, P))
    weights = RNG.standard_normal((3, len(x)))
    value, gradient, curvature = law.derivatives(theta, x)
    assert value == pytest.approx(law.log_value(theta, x), rel=1e-12)
    ends = [law.derivatives(theta + s * step * e, x) for e in np.eye(P) for s in (1, -1)]
    slope = np.stack([(a[0] - b[0]) / (2 * step) for a, b in zip(ends[::2], ends[1::2], strict=True)], axis=1)
    assert np.abs(gradient - slope).max() < 1e-6 * np.abs(slope).max()
    first = [np.einsum("rpi,ri->rp", one[1], weights) for one in ends]
    second = np.stack([(a - b) / (2 * step) for a, b in zip(first[::2], first[1::2], strict=True)], axis=1)
    assert np.abs(curvature(weights, 0 * weights) - second).max() < 1e-5 * max(np.abs(second).max(), 1e-4)


def test_coordinates_and_parameters_are_inverse(case: tuple[Fit, dict[str, float]]) -> None:
    found, true = case
    law, refs = found.law, found.sample.refs
    theta = law.coordinates(true, refs)
    back = law.canonical(theta[None], refs)[0]
    assert dict(zip(law.parameters, back.tolist(), strict=True)) == pytest.approx(true, rel=1e-9)
    for name in law.parameters:
        expected = true[name] if name in law.not_logged else np.log(true[name])
        assert float(law.projection(name, refs) @ theta) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("loss", [Loss(), Loss(1e-3)])
def test_a_built_in_law_as_a_formula_is_the_same_fit(loss: Loss) -> None:
    rows = table(1.7 + 400 * N**-0.34 + 1200 * D**-0.32, sigma=0.003, N=N, tokens=D)
    one = fit(rows, "chinchilla", size="N", loss=loss)
    two = of_formula("E + A*N**-alpha + B*D**-beta", rows, loss=loss)
    assert two.params == pytest.approx(one.params, rel=1e-6)
    assert two.certificate.objective == pytest.approx(one.certificate.objective, rel=1e-9)
    if np.isinf(loss.delta):
        ours, built_in = (uncertainty(of, replicates=0, rng=RNG).ci for of in (two, one))
        assert all(ours[name] == pytest.approx(built_in[name], rel=1e-6) for name in one.params)


def test_a_straight_formula_is_linear_regression() -> None:
    sizes = SIZES[:24]
    rows = table(30 * sizes**-0.1 * EXPERTS**-0.05, sigma=0.01, N=sizes, experts=EXPERTS)
    found = of_formula("A*N**-a*experts**-g", rows)
    design = np.column_stack([np.ones(24), -np.log(sizes), -np.log(EXPERTS)])
    beta = np.linalg.lstsq(design, np.log(rows.frame["loss"].to_numpy()), rcond=None)[0]
    assert [np.log(found.params["A"]), found.params["a"], found.params["g"]] == pytest.approx(beta, rel=1e-8)
    of = uncertainty(found, replicates=0, rng=RNG)
    assert of.method == "ols_t"
    residual = np.log(rows.frame["loss"].to_numpy()) - design @ beta
    error = np.sqrt(residual @ residual / 21 * np.linalg.inv(design.T @ design)[1, 1])
    assert of.se["a"] == pytest.approx(error, rel=1e-5)


@pytest.mark.slow
def test_intervals_cover_the_truth_of_a_shared_exponent_and_a_covariate() -> None:
    given, true, columns = CASES["shared exponent"]
    hit = []
    for seed in range(16):
        found = of_formula(given, table(values_of(given, true, columns), sigma=0.004, noise_seed=seed, **columns))
        low, high = uncertainty(found, replicates=0, rng=RNG).ci["a"]
        hit.append(low is not None and high is not None and low <= true["a"] <= high)
    assert sum(hit) >= 13  # of 16; fewer has a chance below 0.7%


def test_cells_are_told_apart_by_covariates() -> None:
    """Seeds of one cell are averaged; rows that differ in a column that only the formula knows are not."""
    sizes, experts = np.repeat(N, 2), np.repeat(EXPERTS, 2)
    rows = table(1.5 + 300 * sizes**-0.3 * experts**-0.12, N=sizes, experts=experts, seed=np.tile([1, 2], 24))
    assert len(of_formula(CASES["covariate"][0], rows).sample.log_y) == len({*zip(N, EXPERTS, strict=True)}) == 12


def test_what_a_formula_is_made_of() -> None:
    law = read_formula("m", CASES["covariate"][0], ["experts"])
    assert law.variables == ("N", "experts")
    assert list(law.parameters) == ["E", "A", "a", "g"]
    assert law.exponents == ("a", "g")
    assert law.floor == 0
    assert law.powers == {"A": (("N", "a"), ("experts", "g"))}
    assert law.variable_of == {"a": "N", "g": "experts"}
    assert law.equation == "L = E + A N^-a experts^-g"
    assert read_formula("m", "E + B*D**-b + A*N**-a", []).exponents == ("a", "b")
    assert read_formula("m", {"formula": "c + F + A*N**-a", "floor": "F", "real": "c"}, []).floor == 0
    shared = get_law("shared_exponent")
    assert shared.variable_of == {"a": "N and D"}
    assert isinstance(shared, Formula)


def test_built_in_laws_keep_their_numbers() -> None:
    """They seed bootstraps, so that results of earlier analyses stay what they were."""
    assert [seed_of_law(name) for name in LAWS] == list(range(9))
    assert len({seed_of_law(name) for name in (*LAWS, "shared_exponent", "mine", "yours")}) == 12


REFUSED: list[tuple[Any, str]] = [
    ("__import__('os').system('x')", "only numbers, names"),
    ("E + A*N**-a + (lambda: 1)()", "only numbers, names"),
    ("E + A*N.real**-a", "it has N.real ("),
    ("E + A*N**-a if N > 1 else 2", "only numbers, names"),
    ("E + A*N**-'a'", "only numbers"),
    ("E + A*sin(N)**-a", "it has sin(N) (only numbers, names, + - * / ** and exp, log, sqrt, min, max"),
    ("E + A*N^-a", "a power is written **"),
    ("E + A*N**", "is not a formula"),
    ("E + A*n**-a", "has n, which is called N"),
    ("E + A*N**-a*Tokens**-b", "has Tokens, which is called tokens"),
    ("1.7 + 400*N**-0.3", "no parameters"),
    ("E + A*B**-a", "no variable"),
    ("E + A*N**-a + B*D**-b + F*C**-c1 + G*w**-g + H*d**-h", "has 11 parameters; at most 9 can be fitted"),
    ("E + A*N**-a + N*0*k", "does not depend on k"),
    ("E + A*N", "has no exponent"),
    ("E + A*exp*N**-a", "has the function exp without an argument"),
    ("E + A*max(N)**-a", "it has max(N) ("),
    ("E + A*N**-a + 9**9**9**9", "not finite"),
    ("E + A*N**-a + log(0)", "not finite"),
    ("loss + A*N**-a", "has loss, which laws predict"),
    ("E + " + "A*" * 300 + "N**-a", "more than 500 characters"),
    ("(" * 240 + "N" + ")" * 240, "is not a formula"),
    ("", "must be text"),
    (3, "must be text"),
    ({"formula": "E + A*N**-a", "exponent": "a"}, "has the key exponent"),
    ({"formula": "E + A*N**-a", "exponents": ["b"]}, "declares b, which is not one of its parameters"),
    ({"formula": "E + A*N**-a", "real": 3}, "must have a list of parameters as real"),
    ({"formula": "E*N**-a", "floor": "E"}, "has the floor E"),
]


@pytest.mark.parametrize(("given", "words"), REFUSED, ids=map(str, range(len(REFUSED))))
def test_what_cannot_be_a_law_is_refused_in_one_sentence(given: Any, words: str) -> None:
    with pytest.raises(ValueError, match=r"^analysis\.formulas\.mine ") as caught:
        read_formula("mine", given, ["tokens", "family"])
    assert words in str(caught.value)
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


def test_a_refused_formula_runs_nothing(tmp_path: Any) -> None:
    there = tmp_path / "ran"
    for text in (f"__import__('pathlib').Path({str(there)!r}).touch()", f"E + exp(open({str(there)!r}, 'w'))*N**-a"):
        with pytest.raises(ValueError, match="formulas"):
            Settings.from_dict({"formulas": {"mine": text}})
    assert not there.exists()


@pytest.mark.parametrize("name", ["power", "shared_exponent", "auto", "no-name", "", 3])
def test_a_formula_needs_a_name_of_its_own(name: Any) -> None:
    with pytest.raises(ValueError, match=r"^analysis\.formulas\."):
        Settings.from_dict({"formulas": {name: "E + A*N**-a"}})


def two_families(sigma: float = 0.003) -> Table:
    """Under one shared exponent each, at sizes of which no two are the same, so that rows are independent."""
    rng, N = generator(2), SIZES[:24]
    frames = []
    for family, a in (("one", 0.35), ("two", 0.31)):
        loss = (1.7 + 1.4 * (N / 1e8) ** -a + 0.8 * (D / 2e9) ** -a) * np.exp(sigma * rng.standard_normal(24))
        frames.append(pd.DataFrame({"family": family, "N": N, "tokens": D, "loss": loss}))
    return table_from_frame(pd.concat(frames), name="t")


def test_families_are_compared_under_a_formula() -> None:
    """A shared exponent by the formula, against the same model as a constraint on the built-in law."""
    law = get_law("shared_exponent")
    rng = generator()
    of = fit_group(two_families(), Task(law, "loss", "N", Loss()), Settings(bootstrap=0), rng, thorough=False)
    fits = {name: one.fit for name, one in of.items()}
    joint = fit_joint(gather(fits), "shared_exponents")
    assert joint.converged
    assert joint.sse == pytest.approx(_shared_by_hand(two_families()), rel=1e-6)
    assert fit_joint(gather(fits), "separate").sse == pytest.approx(sum(fit.sse for fit in fits.values()), rel=1e-9)


def _shared_by_hand(rows: Table) -> float:
    """Least squares of both families with one exponent, by scipy."""
    parts = [rows.family(family).frame for family in rows.families]

    def residuals(p: Any) -> Any:
        found = []
        for part, (floor, a, b) in zip(parts, np.reshape(p[1:], (2, 3)), strict=True):
            of_size, of_tokens = (part["N"] / 1e8) ** -p[0], (part["tokens"] / 2e9) ** -p[0]
            found.append(np.log(part["loss"] / (np.exp(floor) + np.exp(a) * of_size + np.exp(b) * of_tokens)))
        return np.concatenate(found)

    start = [0.33, *(np.log(1.7), np.log(1.5), np.log(0.8)) * 2]
    return float(2 * optimize.least_squares(residuals, start, xtol=1e-15, ftol=1e-15, gtol=1e-15).cost)


def test_an_analysis_takes_formulas_for_laws() -> None:
    points = [2, {"N": 1e10, "D": 1e10, "C": 1.0}, {"N": 3e8}, {"N": 1e8, "D": 1e9}]
    values = {"laws": ["power"], "targets": "loss", "bootstrap": 200, "calibration": 50, "predict": points}
    values |= {"formulas": {"mine": "E + A*N**-a + B*D**-a"}, "law": "mine", "test": {"a": 0.35}}
    found = analyse(two_families(), Settings.from_dict(values))
    own = {entry["family"]: entry for entry in found.fits if entry["law"] == "mine" and entry["loss"] != "huber"}
    assert found.comparison["primary"]["law"] == "mine"
    assert {pair["exponent"] for pair in found.comparison["laws"]["mine"]["pairs"]} == {"a"}
    one = own["one"]
    assert one["identified"]
    assert one["equation"] == "L = E + A N^-a + B D^-a"
    # Predictions: the multiple, then the points that give all variables.
    rows = one["predictions"]
    largest = SIZES[:24].max()
    assert [row["N"] for row in rows] == pytest.approx([2 * largest, 1e10, 1e8])
    assert rows[1]["beyond"] == pytest.approx({"N": 1e10 / largest, "D": 1})
    assert rows[1]["ignored"] == ["C"]
    assert rows[2]["beyond"] == {"N": 1, "D": 1}
    for row in rows[1:]:
        true = 1.7 + 1.4 * (row["N"] / 1e8) ** -0.35 + 0.8 * (row["D"] / 2e9) ** -0.35
        assert row["low"] < true < row["high"]
    assert one["not_predicted"] == [{"point": {"N": 3e8}, "lacks": ["D"]}]
    plain = next(entry for entry in found.fits if entry["law"] == "power" and entry["loss"] != "huber")
    assert plain["not_predicted"] == []
    # The true exponent is kept for one family and rejected for the other.
    assert one["test"]["p"] > 0.01
    assert own["two"]["test"]["p"] < 1e-4
    assert plain["test"] is None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"predict": [{"experts": 3.0}]}, "analysis.predict has experts"),
        ({"test": {"zeta": 1.0}}, "analysis.test has zeta, and no fitted law"),
        ({"law": "mine", "formulas": {"mine": "A*N**-a*family**-g"}}, "no family above 0 in every row"),
    ],
)
def test_names_that_the_table_does_not_have_are_refused(settings: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        analyse(two_families(), Settings.from_dict({"laws": ["power"], "bootstrap": 0, "calibration": 0, **settings}))
