"""The report says what results.json says: every part may be missing, and nothing is compared that does not compare."""

import copy
import csv
import io
import math
import random
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slm.evaluation.report.quality import quality_section
from slm.evaluation.report.results import (
    Results,
    average,
    difference_error,
    family_of,
    is_significant,
    unique_labels,
)
from slm.evaluation.report.rows import rows, to_csv
from slm.evaluation.report.scaling import fit_laws, gain_section, gains
from slm.evaluation.report.speed import speed_section
from slm.evaluation.report.tasks import tasks_section
from slm.evaluation.report.write import checkpoints_section, print_report, summary_section, write_report
from slm.runtime.words import with_error
from slm.scaling import fit, read_table
from tests.evaluation.reported import correlated_blocks, entry, published, score, scored_blocks, speed, task, tiny
from tests.seeds import seeded

COMMAND = "python evaluate.py 'checkpoints=[a,b]'"
SEGMENTATION = score(3.0)["segmentation"]
PUBLISHED_COLUMNS = ["model", "params_total", "perplexity", "tokens_per_second", "peak_memory_mb", "seconds"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("eval")
    write_report(made, published() + tiny(), command=COMMAND)
    return made


def cells(text: str, heading: str) -> list[dict[str, str]]:
    """The rows of the first table below a heading or bold line, with escapes undone."""
    lines = text[text.index(heading) :].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    table = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        marked = line.replace("\\|", "\0").replace("\\*", "*")
        table.append([cell.strip().replace("\0", "|") for cell in marked.strip("|").split("|")])
    return [dict(zip(table[0], row, strict=True)) for row in table[2:]]


def scored(**results: dict[str, Any]) -> list[dict[str, Any]]:
    """Checkpoints of one size, by name, with one result of perplexity each."""
    return [entry(name, 10**7, perplexity_results=[result]) for name, result in results.items()]


def markdown(section: Callable[..., Any], entries: list[dict[str, Any]]) -> str:
    return section(Results(entries)).markdown()


def close(shown: str, value: float) -> bool:
    """Whether a printed number is the value to the digits printed."""
    digits = shown.split(" ")[0].replace(",", "")
    return abs(float(digits) - value) <= 0.5000001 * 10.0 ** -len(digits.partition(".")[2])


def test_every_figure_of_quality_is_that_of_the_results_with_its_error(folder: Path) -> None:
    text = (folder / "report.md").read_text()
    shown = {row["checkpoint"]: row for row in cells(text, "**wikitext2, sliding")}
    assert len(shown) == 8
    for one in published() + tiny()[:4]:
        (of, *_), row = one["perplexity_results"], shown[one["name"]]
        assert close(row["loss (nats per token)"], of["loss"])
        assert close(row["perplexity"], of["perplexity"])
        assert close(row["**bits per byte**"], of["bits_per_byte"])
        assert close(row["perplexity"].split("± ")[1], of["perplexity"] * of["se_loss"])
        assert int(row["tokens scored"].replace(",", "")) == of["tokens"]


def test_every_speed_and_size_is_that_of_the_results(folder: Path) -> None:
    shown = {row["checkpoint"]: row for row in cells((folder / "report.md").read_text(), "## Speed and memory")}
    for one in published() + tiny():
        of, row = one["speed"], shown[one["name"]]
        assert close(row["decode tokens/s"], of["decode_tokens_per_second"])
        assert close(row["prefill tokens/s"], of["prefill_tokens_per_second"])
        assert float(row["peak MB"].replace(",", "")) == pytest.approx(of["peak_memory_bytes"] / 1e6, rel=5e-4)
        assert row["KV cache"] == ("yes" if of["cache"] else "no")
        assert int(row["KV bytes, first token"].replace(",", "")) == of["kv_bytes_per_token"]
        assert int(row["KV bytes, full context"].replace(",", "")) == of["kv_cache_bytes"]
        assert int(row["state bytes"].replace(",", "")) == of["state_bytes"]


def test_tasks_have_their_values_and_a_missing_one_its_reason(folder: Path) -> None:
    text = (folder / "report.md").read_text()
    shown = {row["task"]: row for row in cells(text, "## Tasks")}
    for one in tiny()[:4]:
        for name, of in one["tasks"].items():
            if "value" in of:
                assert close(shown[name][one["name"]], of["value"])
    assert shown["boolq"][tiny()[1]["name"]] == "–"
    assert "boolq: boolq needs data that is not here: set task_files.boolq" in text
    assert float(shown["**average of 2**"][tiny()[0]["name"]].split()[0]) == pytest.approx((0.30 + 0.55) / 2)


def test_the_average_has_its_chance_also_if_the_first_checkpoint_failed_in_all_tasks() -> None:
    failed = entry("failed", 1000, tasks={name: {"error": "no data"} for name in ("quiz", "exam")})
    complete = entry("complete", 1000, tasks={"quiz": task(0.5, chance=0.25), "exam": task(0.6, chance=0.5)})
    for entries in ([complete, failed], [failed, complete]):
        section = tasks_section(Results(entries))
        assert section is not None
        shown = {row["task"]: row for row in cells(section.markdown(), "## Tasks")}
        assert shown["**average of 2**"]["chance"] == "0.375"


def test_the_csv_has_the_published_columns_first_and_is_a_table_of_runs(folder: Path) -> None:
    with (folder / "results.csv").open() as file:
        read = list(csv.DictReader(file))
    assert list(read[0])[:6] == PUBLISHED_COLUMNS
    figures = [float(read[0][name]) for name in PUBLISHED_COLUMNS[1:]]
    assert figures == [124_635_456, 11.961319, 23.715576, 701.737984, 85.886318]
    table = read_table(folder / "results.csv")
    assert table.families == ["MobileLLM", "deep thin", "deep thin shared"]
    assert any("no loss (row" in note for note in table.notes)
    assert {(row["block_uses"], row["depth"]) for row in read if "shared" in row["model"]} == {("16", "8")}
    alpha = fit(table.family("MobileLLM"), "power", target="perplexity").params["alpha"]
    assert alpha == pytest.approx(0.245707, abs=5e-7)


def test_training_tokens_make_the_csv_a_table_with_budgets_only_where_all_are_known(tmp_path: Path) -> None:
    for entries, tokens in ((tiny(), {20_000_000}), (tiny() + published(), set())):
        path = tmp_path / "results.csv"
        path.write_text(to_csv(rows(Results(entries))))
        assert set(read_table(path).frame.get("tokens", [])) == tokens


def test_tasks_without_a_text_make_the_csv_a_table_whose_target_is_a_task(tmp_path: Path) -> None:
    entries = [e | {"perplexity_results": [], "tasks": {"piqa": task(0.5 + n / 10)}} for n, e in enumerate(tiny())]
    path = tmp_path / "results.csv"
    path.write_text(to_csv(rows(Results(entries))))
    table = read_table(path, target="tasks/piqa")
    assert table.frame["tasks/piqa"].tolist() == [0.5 + n / 10 for n in range(len(entries))]
    assert set(table.frame["tokens"]) == {20_000_000}


def test_a_second_measure_has_columns_of_its_own_and_two_texts_of_one_name_stay_separate() -> None:
    other = score(3.0) | {"data_fingerprint": "0" * 16}
    entries = scored(a=score(3.5), b=other)
    made = rows(Results(entries))
    assert made[0]["loss"] == 3.5
    assert (made[0]["status"], made[1]["status"]) == ("completed", "no loss")
    assert made[1]["loss_wikitext2_sliding_1024_512_00000000"] == 3.0
    assert "2 different texts are called wikitext2" in markdown(quality_section, entries)
    assert rows(Results(tiny()))[0]["loss_pydocs_non_overlapping_256"] == pytest.approx(3.9)


def test_different_tokenizers_are_warned_of_and_compared_by_bits_per_byte_alone() -> None:
    # More tokens of the same text: a lower loss for the same bits.
    entries = scored(coarse=score(3.0), fine=score(2.8, tokens=500_000))
    results = Results(entries)
    assert (results.metric_for(results.primary), results.fit_metric) == ("bits_per_byte", "bits_per_byte")
    quality, summary = quality_section(results), summary_section(results)
    assert quality
    assert "the tokenizers differ, so losses and perplexities are not comparable" in quality.markdown()
    assert "Lowest bits per byte on wikitext2, sliding windows of 1024 tokens every 512: coarse" in summary.markdown()


def test_errors_of_averages_and_differences_are_those_of_many_simulated_evaluations() -> None:
    rng = np.random.default_rng(seeded())
    p, n = np.array([0.3, 0.6, 0.8]), np.array([500, 1000, 200])
    one = entry("a", 10**7, tasks={str(i): task(float(p[i]), int(n[i])) for i in range(3)})
    value, se = average(one, ["0", "1", "2"])
    drawn = (rng.binomial(n, p, size=(40_000, 3)) / n).mean(axis=1)
    assert value == pytest.approx(p.mean())
    assert se == pytest.approx(drawn.std(), rel=0.02)
    assert difference_error(0.3, 0.4) == pytest.approx(0.5)
    assert difference_error(0.3, None) is None
    assert is_significant(1.01, 0.5)
    assert is_significant(-0.99, 0.5) is False
    assert is_significant(8.0, None) is None


def test_gains_between_sizes_have_propagated_errors() -> None:
    first, second = gains(Results(tiny()))[:2]
    assert first.value == pytest.approx(0.38)  # 4.10 to 3.72 from six million parameters to twelve
    assert first.se == pytest.approx(math.sqrt(2) * 0.012)
    assert (second.smaller_N, second.larger_N) == (12e6, 24e6)
    assert second.value == pytest.approx(0.29)  # the shared family is not in this step


def test_checkpoints_of_no_stated_family_are_said_to_be_taken_for_one() -> None:
    entries = [entry(name, size, perplexity_results=[score(3.0)]) for name, size in (("small", 10**7), ("big", 10**8))]
    text = gain_section(Results(entries)).markdown()  # type: ignore[union-attr]
    assert "unnamed: these checkpoints state no family and are taken as a single family" in text


def test_a_note_is_said_once_for_all_that_it_is_about() -> None:
    short = score(3.0, notes=["No BOS.", "One window."])
    other = score(3.0, notes=["No BOS."], protocol="non_overlapping", max_length=64, stride=64)
    entries = [entry(name, 10**7, notes=["Loaded."], perplexity_results=[short, other]) for name in ("a", "b")]
    entries.append(entry("c", 10**7, perplexity_results=[other]))
    text = checkpoints_section(Results(entries)).markdown()
    window = "wikitext2, sliding windows of 1024 tokens every 512: One window."
    for line in ("- a and b: Loaded.", "- a, b and c: No BOS.", f"- a and b: {window}"):
        assert text.count(line) == 1
    assert text.count("No BOS.") == 1


@pytest.mark.parametrize(
    ("budgets", "said"),
    [((10**9, 10**9), ""), ((10**9, 10**10), "m: training tokens differ"), ((None, None), "m: training tokens are")],
)
def test_gains_say_when_the_larger_model_saw_other_tokens(budgets: tuple[int | None, int | None], said: str) -> None:
    entries = [
        entry(f"m-{size}M", size * 10**6, train_tokens=budget, perplexity_results=[score(3.5 - size / 100)])
        for size, budget in zip((10, 20), budgets, strict=True)
    ]
    text = gain_section(Results(entries)).markdown()  # type: ignore[union-attr]
    assert said in text
    assert ("training tokens" in text) is bool(said)


def test_three_sizes_draw_a_law_and_identify_no_exponent(tmp_path: Path) -> None:
    (found,) = fit_laws(Results(tiny()))
    assert (found["family"], found["fitted"], found["identified"]) == ("deep thin", True, False)
    write_report(tmp_path, tiny(), command=COMMAND)
    text = (tmp_path / "report.md").read_text()
    assert "NOT IDENTIFIED" in text
    assert "3 distinct sizes and 3 values for 2 parameters are too few" in text
    assert "alpha = 0." not in text
    assert "3 sizes are enough only for an average slope" in text


def test_a_token_more_is_no_other_tokenizer_and_a_part_of_the_text_is_warned_of() -> None:
    bare = score(3.1, tokens=335_687, bytes=1_290_587, segmentation=SEGMENTATION)
    half = score(3.2, tokens=167_844, bytes=645_295, segmentation=SEGMENTATION)
    results = Results(scored(a=score(3.0), b=bare))
    assert results.has_same_tokens(results.primary)
    assert "**Caution:**" not in quality_section(results).markdown()  # type: ignore[union-attr]
    results = Results(scored(a=score(3.0), b=half))
    assert results.has_same_tokens(results.primary)
    text = quality_section(results).markdown()  # type: ignore[union-attr]
    assert "different parts of the text were scored (645,295 and 1,290,590 bytes)" in text


def test_the_price_of_sharing_is_the_ratio_of_times() -> None:
    text = markdown(speed_section, tiny())
    assert "uses each block 2 times" in text
    assert "0.938 times the time in prefill (9,600 against 9,000 tokens/s)" in text
    assert "1.50 times the time in decode (320.0 against 480.0 tokens/s)" in text
    assert "uses each block" not in markdown(speed_section, tiny()[:1])


@pytest.mark.parametrize("other", [{"cache": True}, {"compiled": True}, {"device_name": "A100"}, {"new_tokens": 64}])
def test_speeds_under_other_conditions_are_warned_of(other: dict[str, Any]) -> None:
    entries = [entry(name, 10**7, speed=speed(100)) for name in ("a", "b")]
    entries.append(entry("c", 10**7, speed=speed(900, **other)))
    section = speed_section(Results(entries))
    assert section
    assert "**Caution:** c was measured under other conditions" in section.markdown()
    assert "Fastest decoding: a" in summary_section(Results(entries)).markdown()


def test_tasks_that_were_limited_are_warned_of() -> None:
    text = markdown(tasks_section, [entry("a", 10**7, tasks={"piqa": task(0.5, 200), "arc_easy": task(0.5, 2376)})])
    assert "only a part of the items was scored: piqa (200 of 1838)" in text


@pytest.mark.parametrize(
    ("value", "se", "shown"),
    [
        (3.28312, 0.01234, "3.283 ± 0.012"),
        (11.961319, 0.0996, "11.96 ± 0.10"),
        (712.4, 13.0, "712 ± 13"),
        (2.5, None, "2.500"),
        (2.5, 0.0, "2.500"),
        (None, 0.1, "–"),
        (float("nan"), 0.1, "–"),
    ],
)
def test_a_number_has_the_digits_that_its_error_carries(value: Any, se: Any, shown: str) -> None:
    assert with_error(value, se) == shown


@pytest.mark.parametrize(
    ("name", "stated", "family"),
    [
        ("MobileLLM-125M", None, "MobileLLM"),
        ("facebook/MobileLLM-1.5B-layer-share", None, "facebook/MobileLLM-layer-share"),
        ("SmolLM2-135M-Instruct", None, "SmolLM2-Instruct"),
        ("run-3", None, "unnamed"),
        ("MobileLLM-125M", "mine", "mine"),
    ],
)
def test_a_family_is_stated_or_the_name_without_its_size(name: str, stated: str | None, family: str) -> None:
    assert family_of(entry(name, 10, family=stated)) == family


def test_labels_of_figures_are_short_and_unique() -> None:
    names = [f"outputs/2026-11-22/{'x' * 30}{i}{'y' * 30}" for i in range(12)] + ["z", "outputs/z"]
    labels = unique_labels(names)
    assert len(set(labels)) == len(labels)
    assert max(map(len, labels)) <= 24
    assert unique_labels(["runs/a", "runs/b"]) == ["a", "b"]


def test_the_files_named_are_there_whole_and_an_old_figure_is_removed(tmp_path: Path) -> None:
    with_tasks = write_report(tmp_path, tiny(), command=COMMAND)
    assert all(path.is_file() for path in with_tasks)
    names, text = {"size.png", "pareto.png", "doubling.png", "tasks.png"}, (tmp_path / "report.md").read_text()
    assert {path.name for path in with_tasks if path.suffix == ".png"} == names
    assert all(f"](figures/{name})" in text for name in names)
    written = write_report(tmp_path, [entry("bare", 10**6)], command=COMMAND)
    files = {"results.csv", "report.md", "report.html"}
    assert {path.name for path in written} == files
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == files


def test_what_another_wrote_into_a_name_stays_text(tmp_path: Path) -> None:
    name = 'a|b <script> *x* $y$ "q", größe'
    one = entry(name, 10**6, notes=["see [x](http://y) | z"], perplexity_results=[score(3.0)])
    write_report(tmp_path, [one], command=COMMAND)
    text = (tmp_path / "report.md").read_text()
    assert "<script>" not in text
    assert (tmp_path / "report.html").read_text().count("<script") == 1  # of the page itself
    assert "a\\|b" in text
    assert "](http://y)" not in text
    assert next(csv.DictReader(io.StringIO((tmp_path / "results.csv").read_text())))["model"] == name


def test_the_terminal_shows_the_figures_and_what_was_not_evaluated(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(tiny()[:2], Path("out"))
    shown = " ".join(capsys.readouterr().out.split())
    assert "1.8333 ± 0.0054" in shown  # bits per byte: 4.1 * 400,000 / 1,290,590 / ln 2
    assert "0.3000 ± 0.0094" in shown  # arc_easy: sqrt(0.3 * 0.7 / 2376)
    assert "boolq needs data that is not here" in shown
    assert shown.endswith("report: out/report.html")


STATED = shlex.split("""
    schema name checkpoint kind fingerprint params_total stored_dtype dtype device status data data_fingerprint protocol
    max_length stride cache prompt_tokens new_tokens arc_easy piqa boolq
""")
"""What every entry states; all else may be missing or null."""


def pruned(value: Any, rng: random.Random) -> Any:
    """The same entry with parts left out or null, as a partial evaluation has them."""
    if isinstance(value, list):
        return [pruned(one, rng) for one in value]
    if not isinstance(value, dict):
        return value
    made = {}
    for key, one in value.items():
        if key in STATED or rng.random() > 0.15:
            made[key] = one if key == "blocks" else pruned(one, rng)
        elif rng.random() < 0.5:
            made[key] = None
    return made


def in_blocks() -> list[dict[str, Any]]:
    """Three checkpoints whose results have blocks."""
    nats, *sizes = correlated_blocks(np.random.default_rng(seeded()), 3)
    return scored(**{f"kept-{place}": scored_blocks(one, *sizes) for place, one in enumerate(nats)})


@pytest.mark.parametrize("seed", range(8))
def test_any_part_may_be_missing(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seeded(seed))
    entries = [pruned(copy.deepcopy(one), rng) for one in published() + tiny() + in_blocks()]
    write_report(tmp_path, entries, command=COMMAND)
    text = (tmp_path / "report.md").read_text()
    assert "None" not in text
    assert "nan" not in text
