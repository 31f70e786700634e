"""The published study's section: its claims on figures measured here, against the figures of FACTS."""

import math
from typing import Any

from slm.evaluation.report.results import Results
from slm.evaluation.report.study import measured_table, published_points, study_pairs, study_section
from tests.evaluation.reported import entry, published, score


def text_of(entries: list[dict[str, Any]]) -> str:
    section = study_section(Results(entries))
    assert section
    return section.markdown()


def test_measured_rows_equal_to_the_published_repeat_every_figure_of_its_review() -> None:
    text = text_of(published())
    for said in (
        "| 1,152 N^-0.2457, R2 0.9935. |",
        "The slope's 95% t(2) interval [-0.306, -0.185] excludes -0.076 and -0.089.",
        "The exponent of the loss is 0.1105 [0.0941, 0.127], 1.45 times Kaplan's; 1.38 times with non-embedding N.",
        "not identified",
        "Without the 125M model the slope is -0.210.",
        "The fit gives 5.97, 95% prediction interval [5.18, 6.89].",
        "without a KV cache: 711, 694, 701, 719 (they vary by 4%): constant, so the depth determines the speed.",
        "Perplexity times speed is largest for MobileLLM-125M, the model with the worst perplexity.",
    ):
        assert said in text
    assert text.count("+0.00%") == 4


def test_other_measurements_give_other_findings() -> None:
    entries = published()
    for one, factor, decode in zip(entries, (1.02, 1.01, 1.0, 1.0), (400.0, 300.0, 100.0, 20.0), strict=True):
        (of,) = one["perplexity_results"]
        of["loss"] += math.log(factor)
        of["perplexity"] *= factor
        one["speed"] |= {"decode_tokens_per_second": decode, "cache": True}
    text = text_of(entries)
    assert "+2.00%" in text
    assert "| 1,152 N^-0.2457, R2 0.9935. |" not in text
    assert "measured here with a KV cache: 12000, 9600, 4000, 1080" in text
    assert "not constant" in text


def test_some_of_the_models_are_set_beside_the_published_and_the_fit_is_not_repeated() -> None:
    text = text_of(published()[:2])
    assert "not evaluated on the whole text under the study's protocol: MobileLLM-600M and MobileLLM-1B" in text
    assert "what the rows measured here show" not in text
    assert "Reproduced: 1152 N^-0.2457" in text  # of the study's own rows


def test_a_part_of_the_text_or_another_protocol_is_not_set_beside_the_published() -> None:
    for change in ({"bytes": 20_000}, {"stride": 1024}, {"data": "pydocs"}):
        entries = published()
        for one in entries:
            one["perplexity_results"][0] |= change
        results = Results(entries)
        assert published_points(results) == []
        assert measured_table(study_pairs(results)) is None
        assert "No model was evaluated on the whole text under the study's protocol" in text_of(entries)


def test_the_file_of_the_raw_test_split_is_known_by_its_name() -> None:
    entries = published()
    for one in entries:
        one["perplexity_results"][0]["data"] = "wiki.test.raw"
    assert len(published_points(Results(entries))) == 4
    assert text_of(entries).count("+0.00%") == 4


def test_models_are_known_by_name_and_size_and_a_block_shared_one_is_another() -> None:
    def found(name: str, inner: int) -> int:
        return len(study_pairs(Results([entry("x", inner + 18_432_000, checkpoint=name, params_non_embedding=inner)])))

    assert found("facebook/MobileLLM-125M", 106_203_456) == 1
    assert found("/models/mobilellm-125m/", 106_203_456) == 1
    assert found("facebook/MobileLLM-125M-layer-share", 106_203_456) == 0
    assert found("facebook/MobileLLM-125M", 106_203_457) == 0
    assert found("SmolLM2-125M", 106_203_456) == 0
    assert study_section(Results([entry("x", 10**7, perplexity_results=[score(3.0)])])) is None


def test_a_model_whose_file_has_a_head_of_its_own_is_known_and_counted_as_it_is() -> None:
    entries = published()
    entries[2]["params_total"] += 32_000 * 1_152  # MobileLLM-600M
    measured = measured_table(study_pairs(Results(entries)))
    assert measured is not None
    assert measured.frame["params_total"].tolist()[2] == 603_188_352 + 36_864_000
    assert "| 1,152 N^-0.2457, R2 0.9935. |" not in text_of(entries)


def test_untrained_weights_under_a_released_name_are_no_traceback() -> None:
    entries = published()
    for place, one in enumerate(entries):
        loss = 10.4 + 0.001 * place
        one["perplexity_results"] = [score(loss)]
    assert "What the" in text_of(entries) or "claim" in text_of(entries)
    for one in entries:
        one["perplexity_results"] = [score(14.0)]
    assert "a model was evaluated more than once, or is untrained" in text_of(entries)
    for one in entries:
        one["perplexity_results"] = [score(2.0)]
    assert "claim" in text_of(entries)
