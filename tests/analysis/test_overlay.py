"""Checkpoints from elsewhere over the laws of runs: what is laid over, what it is held against, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from slm.analysis.overlay import check_overlay_of_sweep, overlay_entry, read_overlay
from slm.analysis.run import analyse_runs
from slm.evaluation.report.write import write_report
from slm.scaling import Settings, table_from_frame
from slm.scaling.overlay import Model, overlay_law, overlay_models
from slm.sweep.config import check_settings
from slm.sweep.run import run_sweep
from tests.evaluation.reported import published, tiny
from tests.sweep.designs import QUICK, composed, table

MODELS = """model,params_total,loss,bits_per_byte,train_tokens,vocab_size,eval_data,protocol,max_length,bits_per_byte_b
small,3e6,3.9,1.5,,49152,wiki,sliding,1024,1.6
large,6e8,2.9,0.9,2e12,49152,wiki,sliding,1024,
"""


def runs() -> pd.DataFrame:
    """Two families of 20 N^-alpha nats a token, of 2.5 bytes each."""
    frame = table({"a": 0.1, "b": 0.12})
    return frame.assign(bits_per_byte=frame["loss"] / np.log(2) / 2.5, vocab_size=1024)


def laid(models: str, *overrides: str, frame: pd.DataFrame | None = None) -> dict[str, Any]:
    """What overlay.json would hold of `models`, a CSV file's text, over `power` laws of `frame`."""
    Path("models.csv").write_text(models)
    overlay = read_overlay(check_settings(composed("overlay=models.csv", *overrides)))
    return overlay_entry(overlay, table_from_frame(runs() if frame is None else frame), "power", Settings(), 1)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_straight_law_says_what_ordinary_least_squares_says_of_one_more_run() -> None:
    frame = runs().drop_duplicates(["family", "params_total"])
    held = table_from_frame(frame)
    how = {"target": "bits_per_byte", "size": "params_total", "settings": Settings(), "seed": 1}
    models = [Model(6e8, 0.9), Model(1e7, 2.0)]
    for family in overlay_models(held, models, "power", **how):
        rows = frame[frame["family"] == family["family"]]
        fitted = stats.linregress(x := np.log(rows["params_total"]), y := np.log(rows["bits_per_byte"]))
        sigma = np.sqrt(((y - fitted.intercept - fitted.slope * x) ** 2).sum() / (len(x) - 2))
        for model, said in zip(models, family["models"], strict=True):
            centre = fitted.intercept + fitted.slope * np.log(model.N)
            leverage = 1 / len(x) + (np.log(model.N) - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum()
            reach = stats.t.ppf(0.975, len(x) - 2) * sigma * np.sqrt(1 + leverage)
            found = [said[key] for key in ("value", "low", "high")]
            np.testing.assert_allclose(found, np.exp([centre, centre - reach, centre + reach]), rtol=1e-6)
            assert said["log_ratio"] == pytest.approx(np.log(model.value) - centre, abs=1e-6)
            assert said["inside"] == (abs(said["log_ratio"]) < reach)
        assert [said["times_beyond"] for said in family["models"]] == [pytest.approx(6e8 / np.exp(x).max()), 1.0]


def test_a_law_in_tokens_too_is_asked_at_the_models_own_and_else_at_the_tables() -> None:
    N, D = (np.array(grid).ravel() for grid in np.meshgrid(np.geomspace(1e7, 1e9, 5), np.geomspace(1e9, 1e11, 5)))
    frame = pd.DataFrame({"params_total": N, "tokens": D, "loss": 1.7 + 400 / N**0.34 + 410 / D**0.28})
    models = [Model(1e10, 2.0, 1e12), Model(1e10, 2.0)]
    how = {"target": "loss", "size": "params_total", "settings": Settings(), "seed": 1}
    (family,) = overlay_models(table_from_frame(frame), models, overlay_law("chinchilla"), **how)
    wanted = [1.7 + 400 / 1e10**0.34 + 410 / tokens**0.28 for tokens in (1e12, np.median(D))]
    assert [said["value"] for said in family["models"]] == pytest.approx(wanted, rel=1e-4)
    assert family["held"] == np.median(D)


def test_a_law_that_asks_for_more_than_size_and_tokens_is_replaced() -> None:
    laws = ("power_floor", "width_depth", "power_C")
    assert [overlay_law(law) for law in laws] == ["power_floor", "power", "power"]


def test_an_overlay_is_in_the_report_with_all_that_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    """And is gone after an analysis without it."""
    runs().to_csv("runs.csv", index=False)
    Path("models.csv").write_text(MODELS)
    asked = ("runs=runs.csv", "output_dir=out", *QUICK, "analysis.laws=[power]", "analysis.law=power")
    analyse_runs(check_settings(composed(*asked, "overlay=models.csv")))
    found, report = json.loads(Path("out/overlay.json").read_text()), Path("out/report.md").read_text()
    assert [(point["name"], point["tokens"]) for point in found["points"]] == [("small", None), ("large", 2e12)]
    assert {family["family"] for family in found["families"]} == {"a", "b"}
    assert Path("out/figures/overlay.png").stat().st_size > 1000
    said = ["Data", "Tokens", "Tokenizer", "Context", "Recipe", "Extrapolation"]
    assert [caveat.partition(":")[0] for caveat in found["caveats"]] == said
    assert all(f"- {caveat}" in report for caveat in found["caveats"])
    assert "1 of 2 lie beyond the sizes of the runs, by a factor of up to 10." in report
    assert "on 1B tokens, the checkpoints on 2T tokens and on a number that the file does not state (sm" in report
    monkeypatch.setattr("slm.analysis.run.make_report", lambda folder: None)
    analyse_runs(check_settings(composed(*asked)))
    assert not Path("out/overlay.json").exists()
    assert not Path("out/figures/overlay.png").exists()


def test_another_measure_is_laid_over_where_a_checkpoint_has_it() -> None:
    found = laid(MODELS, "overlay_column=bits_per_byte_b")
    (point,) = found["points"]
    assert (point["name"], point["value"], point["measure"]) == ("small", 1.6, "bits_per_byte_b")
    assert found["notes"] == ["Not overlaid because bits_per_byte or params_total is missing: large."]


def test_what_evaluate_writes_can_be_laid_over(tmp_path: Path) -> None:
    write_report(tmp_path, entries := published()[:1] + tiny()[1:2], command="python evaluate.py")
    found = laid((tmp_path / "results.csv").read_text())
    bits = {entry["name"]: entry["perplexity_results"][0]["bits_per_byte"] for entry in entries}
    assert {point["name"]: point["value"] for point in found["points"]} == {n: b for n, b in bits.items() if b}


def test_nats_a_token_are_laid_over_only_within_one_tokenizer() -> None:
    only_loss = table({"a": 0.1, "b": 0.12}).assign(tokenizer="llama")
    models = "model,params_total,loss,tokenizer\nm,6e8,2.9,{}\n"
    assert laid(models.format("llama"), frame=only_loss)["target"] == "loss"
    with pytest.raises(ValueError, match="no bits_per_byte, and loss per token does not compare across tokenizers"):
        laid(models.format("gpt2"), frame=only_loss)


@pytest.mark.parametrize(
    ("models", "override", "said"),
    [
        (MODELS, "overlay=nowhere.csv", "^overlay=nowhere.csv does not exist"),
        (MODELS, "overlay_column=bits_per_byte_c", "no column bits_per_byte_c, which overlay_column names: .*byte_b"),
        (MODELS, "analysis.size=params_non_embedding", "has no column params_non_embedding, which is the N"),
        ("model,params_total\na,1e9\n", "seed=1", "has no column bits_per_byte"),
        ("model,bits_per_byte\na,1\n", "seed=1", "has no column params_total"),
        ("model,params_total,bits_per_byte\n", "seed=1", "^overlay=.*models.csv has no rows"),
        ("model,params_total,bits_per_byte\na,1e9,high\n", "seed=1", "row 1, column bits_per_byte: high is not a num"),
        ("model,params_total,loss\na,1e9,2.0\n", "seed=1", "overlay=.* has no bits_per_byte"),
    ],
)
def test_a_file_that_cannot_be_laid_over_is_one_sentence_before_training(models: str, override: str, said: str) -> None:
    Path("models.csv").write_text(models)
    runs().assign(params_non_embedding=1e6).to_csv("runs.csv", index=False)
    for source in ("runs=runs.csv", "runs=null"):
        config = check_settings(composed(source, "overlay=models.csv", "output_dir=out", *QUICK, override))
        with pytest.raises(ValueError, match=said) as caught:
            (analyse_runs if config["runs"] else run_sweep)(config)
        assert "\n" not in str(caught.value)
        assert not Path("out").exists()


def test_nats_a_token_may_be_laid_over_runs_to_come_if_the_file_names_a_tokenizer_that_theirs_may_be() -> None:
    Path("models.csv").write_text("model,params_total,loss,tokenizer_fingerprint\na,1e9,2.0,0af3\n")
    check_overlay_of_sweep(check_settings(composed("overlay=models.csv")))
    Path("models.csv").write_text("model,params_total,loss,tokenizer\na,1e9,2.0,llama\n")  # theirs is a fingerprint
    with pytest.raises(ValueError, match="has no bits_per_byte"):
        check_overlay_of_sweep(check_settings(composed("overlay=models.csv")))
