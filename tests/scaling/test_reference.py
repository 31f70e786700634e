"""Published laws, in their own numbers."""

import numpy as np
import pytest

from slm.scaling.reference import REFERENCES, local_exponent

TOTAL = np.array([124_635_456, 345_355_200, 603_188_352, 1_005_461_760], dtype=float)
NON_EMBEDDING = np.array([106_203_456, 314_635_200, 566_324_352, 964_501_760], dtype=float)
KAPLAN, HOFFMANN, BESIROGLU = REFERENCES


def test_references_have_the_constants_of_their_papers() -> None:
    N, D = np.array([1e8, 7e10]), np.array([2e9, 1.4e12])
    np.testing.assert_allclose(np.exp(KAPLAN.log_loss({"N": N})), (8.8e13 / N) ** 0.076, rtol=1e-9)
    hoffmann = 1.69 + 406.4 / N**0.34 + 410.7 / D**0.28
    np.testing.assert_allclose(np.exp(HOFFMANN.log_loss({"N": N, "D": D})), hoffmann, rtol=1e-9)
    besiroglu = 1.8172 + 482.01 / N**0.3478 + 2085.43 / D**0.3658
    np.testing.assert_allclose(np.exp(BESIROGLU.log_loss({"N": N, "D": D})), besiroglu, rtol=1e-9)
    assert [r.size for r in REFERENCES] == ["params_non_embedding", "params_total", "params_total"]


def test_read_as_perplexity_over_mobilellms_sizes_they_have_the_slopes_of_facts() -> None:
    kaplan = np.exp(KAPLAN.log_loss({"N": NON_EMBEDDING}))
    hoffmann = np.exp(HOFFMANN.log_loss({"N": TOTAL, "D": np.full(4, 1e12)}))
    assert local_exponent(np.log(NON_EMBEDDING), kaplan) == pytest.approx(0.198, abs=5e-4)
    assert local_exponent(np.log(TOTAL), hoffmann) == pytest.approx(0.177, abs=5e-4)


def test_the_local_exponent_of_a_power_law_is_its_exponent() -> None:
    assert local_exponent(np.log(TOTAL), KAPLAN.log_loss({"N": TOTAL})) == pytest.approx(0.076, rel=1e-9)
