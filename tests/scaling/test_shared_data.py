"""Two published data sets: what others found in them is found again."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from slm.scaling import Fit, Loss, Table, fit, read_table, uncertainty
from slm.scaling.clusters import bootstrap
from slm.scaling.families import fit_joint, gather, likelihood_ratio
from slm.scaling.forms import Floats
from slm.scaling.isoflop import isoflop
from tests.scaling.samples import SHARED, plain_law
from tests.seeds import generator

pytestmark = pytest.mark.skipif(not SHARED.exists(), reason="needs the data sets beside the repository")
EPOCH, XLSTM = Path(SHARED, "chinchilla_epoch.csv"), Path(SHARED, "xlstm_isoflop.csv")


@pytest.fixture(scope="module")
def besiroglu() -> Fit:
    return fit(read_table(EPOCH, drop_worst=5), "chinchilla", size="N", loss=Loss(1e-3))


def huber_objective(params: dict[str, float], N: Floats, D: Floats, loss: Floats) -> float:
    r = np.abs(np.log(plain_law("chinchilla", params, {"N": N, "D": D}) / loss))
    return float(np.where(r <= 1e-3, r**2 / 2, 1e-3 * (r - 5e-4)).sum())


def test_hoffmanns_data_give_besiroglus_fit(besiroglu: Fit) -> None:
    params = besiroglu.params
    published = {"E": 1.81724, "A": 477.84, "B": 2143.86, "alpha": 0.34731, "beta": 0.36718}
    assert params == pytest.approx(published, rel=2.5e-4)  # whose optimiser stopped at 0.00101828186
    frame = read_table(EPOCH, drop_worst=5).frame
    columns = [frame[name].to_numpy(float) for name in ("N", "tokens", "loss")]
    ours = huber_objective(params, *columns)
    assert ours <= 0.00101828
    assert ours <= huber_objective(published, *columns)
    assert besiroglu.certificate.objective <= 0.00101828
    assert besiroglu.certificate.converged
    assert len(besiroglu.residuals) == 240


def test_the_bootstrap_over_rows_has_besiroglus_errors(besiroglu: Fit) -> None:
    rows = replace(besiroglu.sample, clusters=np.arange(len(besiroglu.sample.log_y)))  # theirs are independent
    ensemble = bootstrap(replace(besiroglu, sample=rows), "cluster", 500, generator())
    assert ensemble.failed < 0.02
    assert ensemble.theta[:, 3:].std(axis=0, ddof=1) == pytest.approx([0.0154, 0.0206], rel=0.1)  # alpha, beta


def test_the_share_of_compute_that_goes_into_size_is_about_a_half(besiroglu: Fit) -> None:
    """a = beta / (alpha + beta) = 0.513 in the paper."""
    alpha, beta = besiroglu.params["alpha"], besiroglu.params["beta"]
    assert beta / (alpha + beta) == pytest.approx(0.513, abs=0.002)


@pytest.fixture(scope="module")
def runs() -> dict[int, Table]:
    where = {context: f"context_length == {context}" for context in (2048, 8192, 16384)}
    return {context: read_table(XLSTM, columns={"loss": "val_loss"}, where=rows) for context, rows in where.items()}


def test_separate_exponents_at_16k_have_the_published_likelihood_ratio(runs: dict[int, Table]) -> None:
    fits = {f: fit(runs[16384].family(f), "chinchilla", size="N") for f in ("llama", "xlstm")}
    families = gather(fits)
    shared, separate = fit_joint(families, "shared_exponents"), fit_joint(families, "separate")
    ratio = likelihood_ratio(families, shared, separate, 99, generator())
    assert ratio["df"] == 2
    assert ratio["statistic"] == pytest.approx(16.3, rel=0.05)
    assert separate.sse == pytest.approx(sum(one.sse for one in fits.values()), rel=1e-6)
    assert ratio["p"] <= 0.02


@pytest.mark.parametrize(
    ("family", "context", "exponent"),
    [("llama", 2048, 0.554), ("llama", 8192, 0.577), ("llama", 16384, 0.569), ("xlstm", 16384, 0.566)],
)
def test_approach_2_gives_published_exponents(runs: dict, family: str, context: int, exponent: float) -> None:
    found = isoflop(runs[context].family(family).frame, "N", "loss")
    assert found.grouped_by == "isoflop"
    assert found.params.value == pytest.approx(exponent, abs=0.002)
    assert found.params.low < exponent < found.params.high
    by_gaps = isoflop(runs[context].family(family).frame.drop(columns="isoflop"), "N", "loss")
    assert by_gaps.params.value == pytest.approx(found.params.value)


def test_runs_that_are_not_known_to_share_budgets_give_no_isoflop_exponent() -> None:
    """FLOPs read off the colours of a figure: 92 rows over a factor of 9 were once one budget, and a came to 2.2."""
    found = isoflop(read_table(EPOCH).frame, "N", "loss")
    assert found.params is None
    assert found.reason.startswith("no 5 sizes have FLOPs within a factor of")


def test_the_interval_of_hoffmanns_own_beta_excludes_his(besiroglu: Fit) -> None:
    """Besiroglu et al.'s finding: 0.28 lies more than three standard errors away."""
    low, high = uncertainty(besiroglu, replicates=200, rng=generator()).ci["beta"]
    assert 0.28 < low < 0.36718 < high
