"""Which runs are analysed by a measure of evaluate.py, and what the audit is told of it."""

import pandas as pd

from slm.analysis.audit import audit
from slm.sweep.evaluation import without_unmeasured
from tests.sweep.designs import runs, what

BY_WIKI = {"bits_per_byte": "wiki_bits_per_byte"}


def measured(**changes: object) -> pd.DataFrame:
    frame = runs(wiki_bits_per_byte=1.5, wiki_eval_data_fingerprint="w", books_eval_data_fingerprint="b")
    return frame.assign(run_id=[f"run{row}" for row in frame.index], **changes)


def test_the_audit_goes_by_the_text_of_the_measure_that_is_analysed() -> None:
    texts = ["w"] * 6 + ["v"] * 6
    assert audit(without_unmeasured(measured(), BY_WIKI)[0])["controlled"]
    assert audit(without_unmeasured(measured(wiki_eval_data_fingerprint=texts), {})[0])["controlled"]
    assert audit(without_unmeasured(measured(books_eval_data_fingerprint=texts), BY_WIKI)[0])["controlled"]
    found = audit(without_unmeasured(measured(wiki_eval_data_fingerprint=texts), BY_WIKI)[0])
    assert what(found, "violations") == ["evaluation set"]
