"""What W&B wrote of an evaluation, read back from its files."""

import json
from pathlib import Path

import pytest

from slm.evaluation.report.write import write_report
from slm.evaluation.run import record
from tests.evaluation.reported import published, tiny
from tests.tracking.offline import SETTINGS, inspected

ENTRIES = published()[:1] + tiny()[1:2]
ENTRIES[1]["tasks"]["piqa"]["also"] = {"bits_per_byte": {"value": 1.5, "se": 0.1}}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation", numbered=False)
    files = write_report(folder, ENTRIES, command="python evaluate.py")
    (folder / "results.json").write_text(json.dumps(ENTRIES))
    config = {"checkpoints": ["a", "b"], "ship": {}, "logger": SETTINGS | {"job_type": "evaluate"}}
    record(folder, ENTRIES, config, files)
    return folder


def test_the_summary_has_the_figures_of_each_checkpoint_and_none_that_is_missing(recorded: Path) -> None:
    (file,) = recorded.glob("wandb/offline-run-*/run-*.wandb")
    run = inspected(file)
    summary = run["summary"]
    assert run["name"] == "evaluation-evaluation"
    assert run["config"] == {"checkpoints": ["a", "b"]}
    assert summary["MobileLLM-125M/perplexity"] == pytest.approx(11.961319)
    assert summary["MobileLLM-125M/decode_tokens_per_second"] == 23.715576
    ours = tiny()[1]
    assert summary["deep|thin 1_größe*/bits_per_byte"] == ours["perplexity_results"][0]["bits_per_byte"]
    assert summary["deep|thin 1_größe*/task/piqa"] == ours["tasks"]["piqa"]["value"]
    assert summary["deep|thin 1_größe*/task/piqa/bits_per_byte"] == 1.5
    assert "deep|thin 1_größe*/task/boolq" not in summary
    assert b"evaluate" in file.read_bytes()


def test_tables_and_figures_are_logged_and_the_table_is_that_of_the_csv(recorded: Path) -> None:
    (file,) = recorded.glob("wandb/offline-run-*/run-*.wandb")
    summary = inspected(file)["summary"]
    assert summary["evaluation"]["nrows"] == 2
    assert summary["tasks"]["nrows"] == 3
    assert summary["figures/size"]["_type"] == "image-file"
    (table,) = recorded.glob("wandb/offline-run-*/files/media/table/evaluation_*.json")
    written = json.loads(table.read_text())
    row = dict(zip(written["columns"], written["data"][0], strict=True))
    assert (row["model"], row["params_total"], row["cache"]) == ("MobileLLM-125M", 124_635_456, False)
    assert row["fingerprint"] == "0123456789abcdef"
