"""Differences between checkpoints: paired where the blocks are the same parts of a text, and else said not to be."""

import copy
import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from slm.evaluation.perplexity import Protocol, perplexity
from slm.evaluation.report.quality import Difference, Error, compare, paired_error, quality_section, significance_texts
from slm.evaluation.report.results import Results
from slm.evaluation.report.rows import rows, to_csv
from slm.evaluation.report.scaling import gain_section, gains
from slm.evaluation.report.write import summary_section
from tests.evaluation.reported import correlated_blocks, entry, score, scored_blocks
from tests.evaluation.toys import cut_windows, random_decoder, random_stream, window_documents
from tests.seeds import seeded

NAMES = "abcdefgh"


def entries(checkpoints: int, seed: int = 0) -> list[dict[str, Any]]:
    """Checkpoints a, b, ... on one text, each better than the next."""
    nats, num_bytes, tokens = correlated_blocks(np.random.default_rng(seeded(seed)), checkpoints)
    return [
        entry(name, 10**7 * (10 - place), family="m", perplexity_results=[scored_blocks(one, num_bytes, tokens)])
        for place, (name, one) in enumerate(zip(NAMES, nats, strict=False))
    ]


def the_score(one: dict[str, Any]) -> dict[str, Any]:
    (of,) = one["perplexity_results"]
    return of


def blocks_of(one: dict[str, Any]) -> list[np.ndarray]:
    """Nats, bytes and tokens."""
    return [np.asarray(the_score(one)["blocks"][name]) for name in ("nats", "bytes", "tokens")]


def told(found: list[dict[str, Any]]) -> tuple[str, list[list[str]]]:
    """The section on quality, and the cells of its (only) table of differences."""
    text = quality_section(Results(found)).markdown()  # type: ignore[union-attr]
    lines = text.partition("**Differences**")[2].splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return text, table


def paired_by_hand(one: dict[str, Any], other: dict[str, Any], size: str) -> float:
    """Over one denominator: the error of one ratio, that of the differences."""
    nats = np.subtract(one["blocks"]["nats"], other["blocks"]["nats"])
    sizes = np.asarray(one["blocks"][size])
    K = len(nats)
    rest = nats - nats.sum() / sizes.sum() * sizes
    return math.sqrt((rest**2).sum() / ((K - 1) * K)) / sizes.mean()


def test_a_difference_has_the_value_and_the_paired_error_of_the_closed_form() -> None:
    a, b = map(the_score, entries(2))
    for target, size, unit in (("bits_per_byte", "bytes", math.log(2)), ("loss", "tokens", 1.0)):
        found = compare(a, b, target)
        assert found.value == pytest.approx(a[target] - b[target])
        assert found.error.num_blocks == 62
        assert found.error.se == pytest.approx(paired_by_hand(a, b, size) / unit, rel=1e-9)
        assert found.error.se < 0.2 * math.hypot(a[f"se_{target}"], b[f"se_{target}"])


def test_the_report_shows_all_pairs_of_three_with_both_differences_and_errors() -> None:
    found = entries(3)
    text, (header, _, *table) = told(found)
    assert header == ["A", "B", "bits per byte", "loss", "error", "beyond 2 se"]
    assert [row[:2] for row in table] == [["a", "b"], ["a", "c"], ["b", "c"]]
    of = {one["name"]: the_score(one) for one in found}
    for a, b, bits, loss, error, beyond in table:
        for shown, target, size, unit in ((bits, "bits_per_byte", "bytes", math.log(2)), (loss, "loss", "tokens", 1)):
            value, se = (float(part) for part in shown.split(" ± "))
            assert value == pytest.approx(of[a][target] - of[b][target], abs=se / 10)
            assert se == pytest.approx(paired_by_hand(of[a], of[b], size) / unit, rel=0.05)
        assert (error, beyond) == ("paired, 62 blocks", "yes")
    assert "The error of a difference is *paired*" in text
    assert "Independent" not in text


def test_of_more_than_four_checkpoints_neighbours_in_rank_are_compared() -> None:
    text, (_, _, *table) = told(list(reversed(entries(6))))
    assert [row[:2] for row in table] == [["a", "b"], ["b", "c"], ["c", "d"], ["d", "e"], ["e", "f"]]
    assert "Neighbours in rank only." in text


def test_what_two_independent_errors_hide_a_paired_one_shows_and_the_summary_agrees() -> None:
    found = entries(2)
    unpaired = copy.deepcopy(found)
    for one in unpaired:
        del the_score(one)["blocks"]
    a, b = map(the_score, found)
    independent = math.hypot(a["se_bits_per_byte"], b["se_bits_per_byte"])
    assert abs(a["bits_per_byte"] - b["bits_per_byte"]) > 2 * paired_by_hand(a, b, "bytes") / math.log(2)
    text, (_, _, row) = told(found)
    assert row[-1] == "yes"
    assert "distinguishable" not in summary_section(Results(found)).markdown()
    text, (_, _, row) = told(unpaired)
    assert row[-2] == "independent: no blocks stored"
    assert float(row[2].split(" ± ")[1]) == pytest.approx(independent, rel=0.05)
    assert "*Independent* errors combine two errors" in text
    assert "is *paired*" not in text


@pytest.mark.parametrize(("gap", "beyond"), [(0.030, "no"), (0.040, "yes")])
def test_results_without_blocks_are_compared_by_two_errors(gap: float, beyond: str) -> None:
    # 2 sqrt(0.012^2 + 0.012^2) = 0.0339 nats
    found = [entry(name, 10**7, perplexity_results=[score(3.0 + x)]) for name, x in (("a", 0.0), ("b", gap))]
    _, (_, _, row) = told(found)
    assert row[-2:] == ["independent: no blocks stored", beyond]
    said = "; not distinguishable from b by the standard errors of the differences"
    assert (said in summary_section(Results(found)).markdown()) is (beyond == "no")


def test_one_checkpoint_has_no_differences_and_one_without_errors_is_not_judged() -> None:
    assert "Differences" not in told(entries(1))[0]
    found = [entry(name, 10**7, perplexity_results=[score(3.0, se_bits_per_byte=None)]) for name in "ab"]
    _, (_, _, row) = told(found)
    assert row[-2:] == ["–", "not known"]


def test_blocks_that_end_elsewhere_are_not_paired_and_a_token_more_at_a_border_is_no_matter() -> None:
    a, b = map(the_score, entries(2))
    moved = copy.deepcopy(b)
    moved["blocks"]["bytes"][0] -= 5  # its first token is only context
    moved["blocks"]["bytes"][9] += 7
    moved["blocks"]["bytes"][10] -= 7
    near, exact = compare(a, moved, "bits_per_byte").error, compare(a, b, "bits_per_byte").error
    assert near.num_blocks == 62
    assert near.se == pytest.approx(exact.se, rel=0.02)
    shifted = copy.deepcopy(b)
    shifted["blocks"]["bytes"][9] += 2_000
    shifted["blocks"]["bytes"][10] -= 2_000
    merged = b | {"blocks": {name: [v[0] + v[1], *v[2:]] for name, v in b["blocks"].items()}}
    for other in (shifted, merged):
        found = compare(a, other, "bits_per_byte").error
        assert (found.num_blocks, found.reason) == (None, "different block borders")
        assert found.se == pytest.approx(math.hypot(a["se_bits_per_byte"], b["se_bits_per_byte"]))


def test_other_tokens_have_a_paired_difference_in_bits_and_none_in_loss() -> None:
    found = entries(2)
    nats, num_bytes, tokens = blocks_of(found[1])
    found[1]["perplexity_results"] = [scored_blocks(nats, num_bytes, tokens * 5 // 4, segmentation="6" * 16)]
    text, (header, _, row) = told(found)
    assert header == ["A", "B", "bits per byte", "error", "beyond 2 se"]
    assert row[3:] == ["paired, 62 blocks", "yes"]
    assert "the tokenizers differ" in text


def test_unlike_parts_of_a_text_have_no_difference() -> None:
    found = entries(2)
    found[1]["perplexity_results"] = [scored_blocks(*(values[:40] for values in blocks_of(found[1])))]
    text, table = told(found)
    assert not table
    assert "different parts of the text were scored" in text


def test_no_gain_is_significant_between_sizes_that_were_scored_on_unlike_parts_of_a_text() -> None:
    found = entries(2)
    (step,) = gains(Results(found))
    assert step.is_significant
    assert "different parts" not in gain_section(Results(found)).markdown()  # type: ignore[union-attr]
    found[1]["perplexity_results"] = [scored_blocks(*(values[:40] for values in blocks_of(found[1])))]
    (step,) = gains(Results(found))
    assert step.se is not None
    assert step.is_significant is None
    text = gain_section(Results(found)).markdown()  # type: ignore[union-attr]
    assert "| not known |" in text
    assert "different parts of the text were scored, so no gain between them is called significant" in text
    assert "it is not known whether it is better" in summary_section(Results(found)).markdown()


def test_two_measures_have_tables_of_their_own() -> None:
    found = entries(2)
    for one in found:
        one["perplexity_results"].append(score(3.0, data="pydocs"))
    assert quality_section(Results(found)).markdown().count("**Differences**") == 2  # type: ignore[union-attr]


def test_a_difference_that_stands_out_alone_may_not_among_many() -> None:
    odd = Difference(2.3, Error(1.0, 62))
    dull = [Difference(0.1, Error(1.0, 62))] * 5
    assert significance_texts([odd]) == ["yes"]
    assert significance_texts([odd, *dull]) == ["yes, not after Holm", *["no"] * 5]
    assert significance_texts([Difference(6.0, Error(1.0, 62)), *dull])[0] == "yes"
    assert significance_texts([Difference(1.0, Error(None, None)), odd]) == ["not known", "yes"]
    assert (Difference(0.0, Error(0.0, 62)).is_significant, Difference(0.0, Error(0.0, 62)).p) == (False, 1.0)


def test_gains_have_paired_errors_and_seeds_of_one_size_are_averaged_block_by_block() -> None:
    found = entries(3)
    found[1]["params_total"] = found[0]["params_total"]  # a and b are two seeds, c is the smaller size
    a, b, c = map(the_score, found)
    (step,) = gains(Results(found))
    mean = {"blocks": c["blocks"] | {"nats": np.mean([a["blocks"]["nats"], b["blocks"]["nats"]], axis=0)}}
    assert step.is_paired
    assert step.se == pytest.approx(
        paired_by_hand(mean, c, "tokens") / np.log2(step.larger_N / step.smaller_N), rel=1e-9
    )
    assert "Errors are paired over blocks of the text." in gain_section(Results(found)).markdown()  # type: ignore[union-attr]
    del c["blocks"]
    (step,) = gains(Results(found))
    assert not step.is_paired
    text = gain_section(Results(found)).markdown()  # type: ignore[union-attr]
    assert "Errors combine two errors as if they were independent" in text


def test_blocks_are_in_no_table() -> None:
    found = entries(2)
    table = rows(Results(found))
    assert not any("blocks" in name for row in table for name in row)
    assert "[" not in to_csv(table)


def test_two_decoders_scored_on_one_stream_have_the_paired_error_of_their_documents() -> None:
    """By way of JSON; the reference scores each document by itself in float64."""
    stream = random_stream(24 * 64 + 1, document=window_documents(24))
    protocol = Protocol(name="non_overlapping", max_length=64, stride=64)
    found, nats, windows = [], [], cut_windows(stream.tokens)
    for decoder in map(random_decoder, (1, 2)):
        result = perplexity(decoder, stream, protocol, batch_tokens=640)
        found.append(json.loads(json.dumps(result, allow_nan=False)))
        with torch.no_grad():
            chances = decoder.double()(windows[:, :-1]).log_softmax(-1)
        nats.append(-chances.gather(-1, windows[:, 1:, None]).sum(dim=(1, 2)).numpy())
    num_bytes = stream.token_bytes[1:].reshape(24, 64).sum(axis=1)
    reference = [{"blocks": {"nats": one, "bytes": num_bytes}} for one in nats]
    of = compare(*found, "bits_per_byte")
    assert of.error.num_blocks == 24
    assert of.error.se == pytest.approx(paired_by_hand(*reference, "bytes") / math.log(2), rel=1e-4)
    assert of.value == pytest.approx((nats[0] - nats[1]).sum() / num_bytes.sum() / math.log(2), rel=1e-4)
    _, (_, _, row) = told([entry(name, 10**5, perplexity_results=[one]) for name, one in zip("xy", found, strict=True)])
    assert row[-2] == "paired, 24 blocks"
    # Against itself there is no difference and no error; a constant shift per byte, to the digits stored, has none.
    again = copy.deepcopy(found[0])
    again["blocks"]["nats"] = [float(f"{n + 0.1 * size:.7g}") for n, size in zip(nats[0], num_bytes, strict=True)]
    assert paired_error([(1.0, found[0]), (-1.0, found[0])], "bits_per_byte").se == 0
    assert paired_error([(1.0, found[0]), (-1.0, again)], "bits_per_byte").se < 1e-4 * found[0]["se_bits_per_byte"]
