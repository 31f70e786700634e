"""What MLflow stored of a run, read back by its own client."""

from pathlib import Path
from typing import Any

import pytest

from slm.tracking import Record, check_logger, open_trackers, record_directory
from tests.tracking.offline import SETTINGS

pytest.importorskip("mlflow", reason="needs slm[mlflow]")
pytest.importorskip("alembic", reason="needs slm[mlflow]")


def logger_in(folder: Path, **changes: Any) -> dict[str, Any]:
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    return SETTINGS | {"wandb": False, "mlflow": True, "tracking_uri": uri} | changes


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mlflow")  # a new database takes over a second


@pytest.fixture(autouse=True)
def _inside(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)  # where mlruns/ is made


def runs_named(folder: Path, name: str) -> tuple[Any, list[Any]]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=logger_in(folder)["tracking_uri"])
    experiment = client.get_experiment_by_name("slm-test")
    assert experiment is not None
    return client, [run for run in client.search_runs([experiment.experiment_id]) if run.info.run_name == name]


def test_a_killed_and_continued_run_is_one_run_with_every_step_once(place: Path) -> None:
    folder = place / "run"
    folder.mkdir()
    config = {"name": "killed", "model": {"hidden_size": 32}, "long": "x" * 9000, "logger": logger_in(place)}
    first = open_trackers(folder, config, columns=["loss", "tokens"])
    for step in (1, 2, 3):
        for tracker in first:
            tracker.log(step, {"loss": 1 / step, "tokens": step * 10})
    second = open_trackers(folder, config, columns=["loss", "tokens"], resume_step=1)  # its checkpoint was older
    for step in (2, 3, 4):
        for tracker in second:
            if step == 4:
                tracker.log_sample(step, 40, "Once", " upon")
            tracker.log(step, {"loss": 1 / step, "tokens": step * 10})
    for tracker in second:
        tracker.finish({"status": "completed", "params_total": 7, "val": {"loss": 2.0}}, succeeded=True)
    client, (run,) = runs_named(place, "killed")
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(entry.step, entry.value) for entry in history] == [(step, 1 / step) for step in (1, 2, 3, 4)]
    assert run.info.status == "FINISHED"
    assert run.data.params["model.hidden_size"] == "32"
    assert run.data.metrics["params_total"] == 7
    assert run.data.tags["status"] == "completed"
    stored = Path(client.download_artifacts(run.info.run_id, "samples/step-000004.txt", str(place)))
    assert stored.read_text() == "Once upon"


def test_a_directory_of_results_is_one_run_however_often_it_is_recorded(place: Path) -> None:
    folder = place / "analysis"
    (folder / "figures").mkdir(parents=True)
    (folder / "figures/a.png").write_bytes(b"picture")
    for value in (1.5, 2.5):
        record_directory(
            Record(
                folder=folder,
                kind="analysis",
                name="results",
                config={"logger": logger_in(place), "analysis": {"level": 0.95}},
                tables={},
                images=[],
                summary={"worth/a_in_b/factor": value, "verdict": "a is better"},
                files=[folder / "figures/a.png"],
            )
        )
    client, (run,) = runs_named(place, "results")
    assert run.data.metrics["worth/a_in_b/factor"] == 2.5
    assert run.data.tags["verdict"] == "a is better"
    assert run.data.params == {"analysis.level": "0.95"}
    assert [item.path for item in client.list_artifacts(run.info.run_id, "figures")] == ["figures/a.png"]


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("http://127.0.0.1:9", "no server answers"),
        ("sqlite://mlflow.db", "must be sqlite:///FILE"),
        ("sqlite:///nowhere/at/all.db", "a folder that exists"),
        ("mlruns", "must be sqlite:///FILE or"),
        ("http://localhost:abc", "no server answers"),
    ],
)
def test_a_place_that_cannot_be_is_one_sentence(uri: str, said: str, place: Path) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        check_logger(logger_in(place, tracking_uri=uri))
    assert "\n" not in str(caught.value)


def test_a_server_that_goes_away_ends_the_log_and_not_the_training(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = place / "lost"
    folder.mkdir()
    trackers = open_trackers(folder, {"name": "lost", "logger": logger_in(place)}, columns=["tokens"])

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("gone")

    monkeypatch.setattr("mlflow.tracking.MlflowClient.log_batch", refuse)
    for step in (1, 2):
        for tracker in trackers:
            tracker.log(step, {"tokens": step})
    assert capsys.readouterr().err.count("MLflow takes no more (gone)") == 1
