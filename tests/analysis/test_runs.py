"""The runs under a directory become one table that the scaling analysis reads."""

from pathlib import Path

import pytest

from slm.analysis.runs import collect_runs
from slm.scaling.tables import table_from_frame
from tests.sweep.designs import result, write

UNREADABLE = {"{": "not JSON", "[]": "must hold the result of a run", '{"status": "completed"}': "has no family"}


def test_every_run_is_a_row_whatever_became_of_it(tmp_path: Path) -> None:
    write(tmp_path / "0", result())
    write(tmp_path / "nested" / "1", result(seed=2, status="diverged", val=None))
    write(tmp_path / "2", result(status="interrupted"))
    runs = collect_runs(tmp_path)
    statuses = {"0": "completed", "2": "interrupted", "nested/1": "diverged"}
    assert dict(zip(runs["run_id"], runs["status"], strict=True)) == statuses
    assert runs["loss"].notna().tolist() == [True, False, False]  # a partial validation compares with nothing
    table = table_from_frame(runs)
    assert len(table.frame) == 1
    assert "1 interrupted (row 2), 1 diverged (row 3)" in table.notes[0]


def test_a_branch_is_of_the_cluster_of_its_trunk_also_through_another_branch(tmp_path: Path) -> None:
    branch = {"name": "twig", "train_tokens": 500_000}
    write(tmp_path / "8M", result())
    write(tmp_path / "4M", result(**branch, branched_from={"name": "tiny-seed1", "step": 90}))
    write(tmp_path / "2M", result(train_tokens=200_000, branched_from={"name": "twig", "step": 40}))
    write(tmp_path / "other", result(seed=2))
    write(tmp_path / "orphan", result(seed=3, branched_from={"name": "gone", "step": 40}))
    frame = table_from_frame(collect_runs(tmp_path)).frame
    clusters = dict(zip(frame["run_id"], frame["cluster"], strict=True))
    assert clusters == {"8M": "8M", "4M": "8M", "2M": "8M", "other": "other", "orphan": "gone"}


def test_runs_of_another_optimizer_or_average_are_another_cell(tmp_path: Path) -> None:
    write(tmp_path / "old", result())  # from before there was a choice
    write(tmp_path / "adamw", result(seed=2, optimizer="adamw", ema_decay=None))
    write(tmp_path / "average", result(seed=2, optimizer="adamw", ema_decay=0.999))
    write(tmp_path / "muon", result(seed=2, optimizer="muon", ema_decay=None))
    frame = table_from_frame(collect_runs(tmp_path)).frame.set_index("run_id")
    assert frame.at["old", "cell"] == frame.at["adamw", "cell"]
    assert frame["cell"].nunique() == 3


def test_runs_from_weights_and_with_a_teacher_are_other_cells_than_runs_from_scratch(tmp_path: Path) -> None:
    distill = {"fingerprint": "feed", "temperature": 2.0, "weight": 0.5, "top_k": None}
    write(tmp_path / "old", result())  # from before there was a choice
    write(tmp_path / "scratch", result(seed=2, init_from=None, distill=None))
    write(tmp_path / "weights", result(init_from={"fingerprint": "beef"}))
    write(tmp_path / "taught", result(distill=distill))
    write(tmp_path / "warmer", result(distill=distill | {"temperature": 4.0}))
    frame = table_from_frame(collect_runs(tmp_path)).frame.set_index("run_id")
    assert frame.at["old", "cell"] == frame.at["scratch", "cell"]
    assert frame["cell"].nunique() == 4


def test_a_row_has_the_figures_of_its_result(tmp_path: Path) -> None:
    write(tmp_path / "run", result())
    row = table_from_frame(collect_runs(tmp_path / "run")).frame.iloc[0]
    expected = {"run_id": "run", "cluster": "run", "family": "deep", "params_total": 2_099_328, "tokens": 1_000_000}
    expected |= {"flops": 14_161_920.0 * 1_000_000, "flops_6n": 6 * 2_099_328 * 1_000_000, "width": 128, "depth": 8}
    expected |= {"lr": 0.004, "schedule": "cosine(final_fraction=0.1, warmup_fraction=0.05)", "loss": 4.0}
    expected |= {"data_fingerprint": "1234567890123456", "bits_per_byte": 1.8, "val_bytes": 927_208}
    assert {name: row[name] for name in expected} == expected


def test_a_setting_of_the_schedule_that_is_not_set_is_as_if_there_were_none(tmp_path: Path) -> None:
    """Runs from before there was a `warmup_steps` are matched with those after."""
    write(tmp_path / "run", result(schedule=result()["schedule"] | {"warmup_steps": None}))
    assert collect_runs(tmp_path)["schedule"].item() == "cosine(final_fraction=0.1, warmup_fraction=0.05)"


def test_repeats_of_the_text_and_validation_by_source_are_columns(tmp_path: Path) -> None:
    by_source = {"web": {"loss": 3.5, "bits_per_byte": 1.6}, "code": {"loss": 4.5, "bits_per_byte": 2.0}}
    data = {"name": "mix", "fingerprint": "f" * 16, "epochs": 2.5}
    write(tmp_path / "mixed", result(data=data, val=result()["val"] | {"by_source": by_source}))
    write(tmp_path / "older", result(seed=2))
    runs = collect_runs(tmp_path).set_index("run_id")
    assert runs["epochs"].to_dict() == pytest.approx({"mixed": 2.5, "older": float("nan")}, nan_ok=True)
    assert runs.loc["mixed", ["val_web_loss", "val_code_bits_per_byte"]].tolist() == [3.5, 2.0]
    assert runs.loc["older", ["val_web_loss", "val_code_bits_per_byte"]].isna().all()


@pytest.mark.parametrize(("content", "said"), [*UNREADABLE.items(), (result(shape=None), "other fields")])
def test_a_result_that_cannot_be_read_is_named(content: object, said: str, tmp_path: Path) -> None:
    write(tmp_path / "0", content)
    with pytest.raises(ValueError, match=said) as caught:
        collect_runs(tmp_path)
    assert str(tmp_path / "0" / "result.json") in str(caught.value)


def test_a_directory_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no run"):
        collect_runs(tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        collect_runs(tmp_path / "none")
